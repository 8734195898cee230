"""context.proto: the state of what the server has loaded; and what a reload of the registry changed. Reading raises
DataLoss; see `_reader.read_answer`."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import context_pb2 as pb
from dst_grpc._gen.dst.v1 import context_service_pb2 as service_pb
from dst_grpc.domain.resolution import ContextKind, ContextState, ContextStatus, RegistryChange
from dst_grpc.wire._durations import duration_to_wire, seconds_from_wire
from dst_grpc.wire._reader import Reader, read_answer
from dst_grpc.wire.enums import CONTEXT_KIND, CONTEXT_STATE
from dst_grpc.wire.errors import error_from_status, error_to_status


def context_status_to_wire(status: ContextStatus) -> pb.ContextStatus:
    """The message of a context's state; its idle duration to the nearest nanosecond."""
    return pb.ContextStatus(
        handle=status.handle,
        kind=CONTEXT_KIND.to_wire(status.kind),
        state=CONTEXT_STATE.to_wire(status.state),
        bytes_total=status.bytes_total,
        bytes_loaded=status.bytes_loaded,
        device=status.device,
        pins=status.pins,
        pinned=status.pinned,
        hits=status.hits,
        idle_duration=duration_to_wire(status.idle_duration),
        error=None if status.error is None else error_to_status(status.error),
    )


def context_status_from_wire(message: pb.ContextStatus) -> ContextStatus:
    """The context's state; its error, if any, is equal in content but another object. Raises DataLoss."""
    return read_answer(read_context_status, message)


def read_context_status(message: pb.ContextStatus) -> ContextStatus:
    """The context's state, for messages that hold one. Raises InvalidRequest, which `read_answer` makes DataLoss."""
    reader = Reader(message)
    kind = reader.required_enum("kind", CONTEXT_KIND, ContextKind.MODEL)
    state = reader.required_enum("state", CONTEXT_STATE, ContextState.NOT_LOADED)
    return reader.finish(
        lambda: ContextStatus(
            handle=message.handle,
            kind=kind,
            state=state,
            bytes_total=message.bytes_total,
            bytes_loaded=message.bytes_loaded,
            device=message.device,
            pins=message.pins,
            pinned=message.pinned,
            hits=message.hits,
            idle_duration=seconds_from_wire(message.idle_duration),
            error=error_from_status(message.error) if message.HasField("error") else None,
        )
    )


def registry_change_to_wire(change: RegistryChange) -> service_pb.ReloadRegistryResponse:
    """The message of what a reload changed."""
    return service_pb.ReloadRegistryResponse(added=change.added, removed=change.removed, changed=change.changed)


def registry_change_from_wire(message: service_pb.ReloadRegistryResponse) -> RegistryChange:
    """What a reload changed. Every message is valid."""
    return RegistryChange(added=tuple(message.added), removed=tuple(message.removed), changed=tuple(message.changed))
