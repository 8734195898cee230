"""From a failed call to a DstError: rebuilt from the status details, or made from the code alone.

A dst-grpc server always sends details. A status without them is from gRPC itself or a proxy; its text is replaced by
one that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from dst_grpc.client._unreachable import why_unreachable
from dst_grpc.errors import Cancelled, DeadlineExceeded, DstError, Exhausted, Unavailable, Unimplemented
from dst_grpc.wire.errors import error_from_status

DETAILS_KEY = "grpc-status-details-bin"
_TOO_LARGE = ("CLIENT: Sent message larger", "SERVER: Received message larger")
"""How gRPC says that a request is larger than its own client, or the server, allows."""


@contextmanager
def our_errors(target: str, timeout: float | None = None) -> Iterator[None]:
    """Raise failed calls inside as DstErrors; *target* and *timeout* are for their messages.

    Raises:
        DstError: If a call fails; the gRPC error is its cause.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of_call(error, target, timeout) from error


def error_of_call(error: grpc.aio.AioRpcError, target: str, timeout: float | None = None) -> DstError:
    """The DstError of a failed call."""
    status = _status_details(error)
    if status is not None:
        return error_from_status(status)
    details = error.details() or "no details"
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(why_unreachable(details, target), metadata={"target": target})
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            within = "in time" if timeout is None else f"within {timeout:g} seconds"
            return DeadlineExceeded(f"{target} did not answer {within}")
        case grpc.StatusCode.CANCELLED:
            return Cancelled(f"the call to {target} was cancelled")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if details.startswith(_TOO_LARGE):
            return Exhausted(f"the request is too large ({details}): send large tensors ahead, with put_tensor")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(f"{target} has no such method; it is older than this client, or no dst-grpc server")
        case code:
            return error_from_status(Status(code=code.value[0], message=details))


def _status_details(error: grpc.aio.AioRpcError) -> Status | None:
    """The google.rpc.Status that the server sent, if there is one that agrees with the call's code."""
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = Status.FromString(value)
        except DecodeError:
            return None
        # A proxy may replace the code and leave the details; then the code counts.
        return status if status.code == error.code().value[0] else None
    return None
