"""Errors as the status of a call, or as the status of one item of a stream.

`wire.errors` determines codes and details. Here is the last step, and the rule that the text of unexpected errors stays
in the log.
"""

from __future__ import annotations

import logging
import math
import secrets
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from dst_grpc.errors import DstError, Exhausted, Internal, Unavailable
from dst_grpc.failures import is_out_of_memory, out_of_memory, without_frames
from dst_grpc.observability.calls import CallOutcome
from dst_grpc.wire import errors as wire_errors

PUSHBACK_KEY = "grpc-retry-pushback-ms"
_NEVER_RETRY = "-1"

_CODES = {code.value[0]: code for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


def as_dst_error(error: BaseException, *, method: str, request_id: str = "") -> DstError:
    """*error* itself if it is a DstError; otherwise it is logged: the answer is that memory ran out, or is Internal,
    without its text.

    *error* is left without its traceback, whose frames would keep alive what they held for as long as the client takes
    to be told.
    """
    if isinstance(error, DstError):
        without_frames(error)
        error.__cause__ = error.__context__ = None
        return error
    if is_out_of_memory(error):
        _log.warning("out of memory", exc_info=error, extra={"method": method})
        without_frames(error)
        return out_of_memory()
    error_id = secrets.token_hex(8)
    fields = {"error_id": error_id, "method": method} | ({"request_id": request_id} if request_id else {})
    _log.error("internal error", exc_info=error, extra=fields)
    without_frames(error)
    return Internal(f"internal error {error_id}", error_id=error_id, metadata={"error_id": error_id})


def code_of(error: DstError) -> grpc.StatusCode:
    """The status code of *error*."""
    return _CODES[wire_errors.code_of(error)]


def outcome_of(error: DstError | None, seconds: float, *, code: str | None = None) -> CallOutcome:
    """How a call or an item ended that took so many *seconds*: with *error*, or with *code*; OK without either."""
    if error is None:
        return CallOutcome(code=code or "OK", seconds=seconds)
    error_id = error.error_id if isinstance(error, Internal) else ""
    return CallOutcome(code=code_of(error).name, seconds=seconds, reason=error.reason, error_id=error_id)


def pushback(error: DstError) -> str | None:
    """Milliseconds until gRPC's own retries may try again; "-1" for never, None if the error does not determine it."""
    if not isinstance(error, Exhausted | Unavailable):
        return None
    if error.retry_after_seconds is None:
        return _NEVER_RETRY
    return str(math.ceil(error.retry_after_seconds * 1000))


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: DstError, metadata: Sequence[tuple[str, str | bytes]] = ()
) -> None:
    """End the call with the error's status, details and pushback, and *metadata* beside these. Nothing may follow.

    Raises:
        CancelledError: The client went away meanwhile.
    """
    status = rpc_status.to_status(wire_errors.error_to_status(error))
    trailing = (*(status.trailing_metadata or ()), *metadata)
    delay = pushback(error)
    if delay is not None:
        trailing += ((PUSHBACK_KEY, delay),)
    try:
        await context.abort(status.code, status.details, trailing)
    except grpc.aio.AbortError as aborted:
        # gRPC raises it again once the call's handler has returned. It keeps it with the call, which the frames that it
        # passes through refer to: were it raised through ours, all that they hold, as the request, would be left to be
        # collected.
        without_frames(aborted)
    except grpc.aio.BaseError:
        raise CancelledError from None
