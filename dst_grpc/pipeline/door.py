"""The door: every request passes it before any work is done for it, and is refused if too many wait already.

Cheap checks only, so that a refusal is quick however many come: of how many requests wait, of the bytes of their
messages, and of the caller's quota. What a request costs, and so whether it can be served before its deadline, is known
once it is planned; the scheduler of its device decides that.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import Grant, Priority
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.domain.urgency import WHENEVER
from dst_grpc.errors import Exhausted, Reason, Unavailable
from dst_grpc.pipeline.quotas import Quotas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.urgency import Urgency

SHARE_OF_BYTES = 0.25
"""Part of the bytes of waiting messages that one caller may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many requests may wait."""

    max_requests: int = 4096
    """All together."""
    max_requests_per_caller: int = 256
    """Of one caller."""
    max_bytes: int = 256 << 20
    """Bytes of their messages, together; one caller may have a quarter of them."""


class Ticket:
    """One request's place, from its arrival to its end: whose it is, how urgent, and the memory that it takes."""

    __slots__ = (
        "_on_start",
        "caller",
        "expected",
        "grant",
        "has_started",
        "passed_over",
        "peak_bytes",
        "request_bytes",
        "timeline",
        "urgency",
    )

    def __init__(
        self,
        caller: Caller,
        urgency: Urgency = WHENEVER,
        grant: Grant = Grant(),  # noqa: B008  frozen
        *,
        request_bytes: int = 0,
        timeline: Timeline | None = None,
        on_start: Callable[[Ticket], None] | None = None,
    ) -> None:
        """Made by the door; *on_start* is called when its first job starts."""
        self.caller, self.grant, self.urgency = caller, grant, urgency
        self.peak_bytes = 0
        """Device memory that it takes while it runs, estimated; known once it is planned."""
        self.request_bytes = request_bytes
        """Bytes of its message."""
        self.timeline = timeline or Timeline()
        """Where it is noted what becomes of it."""
        self.timeline.now = Stage.QUEUE
        self.expected = 0.0
        """Seconds that it was expected to take when it was let in; 0 if that is not known, or over."""
        self.has_started = False
        """Whether a job of it has started; its memory is then taken."""
        self.passed_over = 0
        """How often others were let in before it because it did not fit the free memory."""
        self._on_start = on_start

    @property
    def priority(self) -> Priority:
        """Its class: that of the request, unless its caller is granted a lesser one."""
        is_batch = Priority.BATCH in {self.urgency.priority, self.grant.priority}
        return Priority.BATCH if is_batch else Priority.INTERACTIVE

    def start(self) -> None:
        """It waits no longer."""
        self.has_started = True
        self.timeline.now = Stage.PASS
        if self._on_start is not None:
            self._on_start(self)
            self._on_start = None


class Door:
    """Lets requests in. Used on the event loop only."""

    def __init__(self, bounds: Bounds, grant_of: Callable[[str], Grant], clock: Callable[[], float]) -> None:
        """Start with nobody inside; *grant_of* gives what a caller is granted, by its name."""
        self._bounds, self._grant_of = bounds, grant_of
        self.quotas = Quotas(grant_of, clock)
        """The callers' quotas."""
        self._waiting: Counter[str] = Counter()
        """Waiting requests of each caller."""
        self._bytes: Counter[str] = Counter()
        """Bytes of their messages."""
        self._n_waiting = self._n_bytes = 0
        self._is_closed = False

    @contextmanager
    def entered(
        self, caller: Caller, urgency: Urgency, request_bytes: int, timeline: Timeline | None = None
    ) -> Iterator[Ticket]:
        """Let a request in for the time of the block, of whom *timeline* tells what becomes of it.

        It counts as waiting until its first job starts.

        Raises:
            Exhausted: (QUEUE_FULL) if too many wait; (QUOTA_EXCEEDED) if its caller has used up its quota.
            Unavailable: (DRAINING) once closed.
        """
        self.check(caller.name, request_bytes)
        with self._inside(caller, urgency, request_bytes, timeline) as ticket:
            yield ticket

    @contextmanager
    def waiting(self, caller: Caller, request_bytes: int) -> Iterator[None]:
        """Count a request that waits for something else than a device, such as to be read, for the time of the block.

        Raises:
            Exhausted: (QUEUE_FULL) if too many wait.
            Unavailable: (DRAINING) once closed.
        """
        self._check_room(caller.name, request_bytes)
        with self._inside(caller, WHENEVER, request_bytes, None):
            yield

    @contextmanager
    def _inside(
        self, caller: Caller, urgency: Urgency, request_bytes: int, timeline: Timeline | None
    ) -> Iterator[Ticket]:
        grant = self._grant_of(caller.name)
        ticket = Ticket(caller, urgency, grant, request_bytes=request_bytes, timeline=timeline, on_start=self._leave)
        self._count(ticket, 1)
        try:
            yield ticket
        finally:
            if not ticket.has_started:
                self._leave(ticket)

    def close(self) -> None:
        """Refuse all further requests."""
        self._is_closed = True

    def _leave(self, ticket: Ticket) -> None:
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, change: int) -> None:
        caller, size = ticket.caller.name, change * ticket.request_bytes
        self._waiting[caller] += change
        self._bytes[caller] += size
        self._n_waiting += change
        self._n_bytes += size
        if not self._waiting[caller]:
            del self._waiting[caller], self._bytes[caller]

    def check(self, caller: str, request_bytes: int) -> None:
        """Raise what `entered` does, unless a request may come in."""
        self._check_room(caller, request_bytes)
        self.quotas.check(caller)

    def _check_room(self, caller: str, request_bytes: int) -> None:
        if self._is_closed:
            raise Unavailable("the server is stopping", reason=Reason.DRAINING)
        bounds = self._bounds
        if self._waiting[caller] >= bounds.max_requests_per_caller:
            raise Exhausted.full(
                "too many requests of the caller wait", "max_queued_requests_per_caller", bounds.max_requests_per_caller
            )
        if self._n_waiting >= bounds.max_requests:
            raise Exhausted.full("too many requests wait", "max_queued_requests", bounds.max_requests)
        # A request is let in if nothing else waits, however large: the size of a message has a limit of its own.
        largest = int(bounds.max_bytes * SHARE_OF_BYTES)
        if self._bytes[caller] and self._bytes[caller] + request_bytes > largest:
            raise Exhausted.full("too many bytes of the caller's requests wait", "max_queued_bytes_per_caller", largest)
        if self._n_bytes and self._n_bytes + request_bytes > bounds.max_bytes:
            raise Exhausted.full("too many bytes of requests wait", "max_queued_bytes", bounds.max_bytes)
