"""The protocol by which logs, metrics and guards observe calls of every shape.

`rpc` adapts it once to the four shapes of gRPC; observers never touch streams, requests or responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol

from dst_grpc.domain.callers import NOBODY, Caller
from dst_grpc.domain.timeline import Timeline
from dst_grpc.observability.trace_context import TraceParent

HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
"""What the full names of health checks begin with. They come every few seconds, and are of no interest."""


@dataclass(slots=True, kw_only=True, eq=False)
class ItemInfo:
    """One request of a stream. The bytes grow until it is answered."""

    index: int
    """Its number in the stream, by arrival."""
    request_id: str
    """The client's own id for it."""
    timeline: Timeline
    """What becomes of it."""
    started_at: float = field(default_factory=time.monotonic)
    """Reading of `time.monotonic`, in seconds, when it was read."""
    first_put_at: float | None = None
    """Reading of `time.monotonic` when the first message of its answer was made, and had room to wait."""
    received_bytes: int = 0
    """Bytes of its message."""
    sent_bytes: int = 0
    """Bytes of the messages that answer it, so far."""


@dataclass(slots=True, kw_only=True, eq=False)
class CallInfo:
    """One call in progress. The counts grow until it ends."""

    method: str
    """Full name, e.g. `/dst.v1.DerivedScalarService/Derive`."""
    is_known: bool = True
    """Whether the server has the method."""
    peer: str = ""
    """Address of the caller as gRPC prints it."""
    metadata: Sequence[tuple[str, str | bytes]] = ()
    """The caller's metadata; keys are lower case."""
    certificate: Callable[[], Mapping[str, Iterable[bytes]]] = dict
    """Gives the names in the caller's certificate, by their kinds as gRPC calls them. Only for the time of the call."""
    request_id: str = ""
    """By which the caller and proxies know the call: the metadata `x-request-id`, else made by the server."""
    trace_parent: TraceParent | None = None
    """The span of the caller that it belongs to; None if the caller says nothing of one."""
    timeline: Timeline = field(default_factory=Timeline)
    """What becomes of its request."""
    observers: Sequence[CallObserver] = ()
    """Who observes it."""
    caller: Caller = NOBODY
    """Who it comes from, once that is known."""
    check_allowed: Callable[[CallInfo], object] = bool
    """Called with this call at each message of the caller: raises one of our errors if the caller may no longer send
    any."""
    started_at: float = field(default_factory=time.monotonic)
    """Reading of `time.monotonic`, in seconds, when the call came in."""
    is_over: bool = False
    """Whether it has ended."""
    received_bytes: int = 0
    """Bytes of request messages so far."""
    sent_bytes: int = 0
    """Bytes of response messages so far."""
    first_sent_at: float | None = None
    """Reading of `time.monotonic` when gRPC had taken the first message of a streamed answer; set at the end."""
    received_messages: int = 0
    """Request messages so far."""
    sent_messages: int = 0
    """Response messages so far."""

    def still_allowed(self) -> None:
        """Raise one of our errors if the caller may no longer send any message."""
        self.check_allowed(self)

    def on_item(self, item: ItemInfo, outcome: CallOutcome) -> None:
        """Tell observers that a request of the call, which is a stream, was answered."""
        for observer in self.observers:
            observer.on_item(self, item, outcome)

    def values(self, key: str) -> list[str]:
        """The texts of the caller's metadata under *key*, in order."""
        return [
            value if isinstance(value, str) else value.decode("utf-8", "replace")
            for name, value in self.metadata
            if name == key
        ]


_current: ContextVar[CallInfo | None] = ContextVar("call", default=None)


def enter(call: CallInfo) -> None:
    """Note that the current task, and those that it starts, work for *call*."""
    _current.set(call)


def current_call() -> CallInfo | None:
    """The call that the current task works for; None if there is none, or it is over: the task has outlived it."""
    call = _current.get()
    return None if call is None or call.is_over else call


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How a call ended, or a request of a stream."""

    code: str
    """Name of the status code, e.g. `OK` or `INVALID_ARGUMENT`."""
    seconds: float
    """How long it took."""
    reason: str = ""
    """Reason of the error; empty without one."""
    error_id: str = ""
    """Id under which the log has the error's text; empty unless the code is INTERNAL."""
    ended_at: float = field(default_factory=time.time)
    """When it ended, in seconds since 1970."""


class CallObserver(Protocol):
    """Observes calls from their start to their end."""

    def on_start(self, call: CallInfo) -> object:
        """Called before anything of a call is read; the result is passed to `on_end`.

        Raising one of our errors refuses the call. `on_end` is called for every observer whose `on_start` returned.
        """

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Called at the end; *token* is what `on_start` returned."""

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Called when an item of *call*, which is a stream, was answered, or has failed."""
