"""Who may take a device's memory: what is free, each caller its share, and nobody is passed over for ever."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dst_grpc.pipeline.door import Ticket

_MAX_PASSED_OVER = 8
"""How often others may be let in before a request that does not fit what is free."""


class MemoryShares:
    """Estimated bytes that requests take on one device while they run. Used on the event loop only."""

    def __init__(self, limit_bytes: int) -> None:
        """Start with everything free."""
        self.limit_bytes = limit_bytes
        """Bytes of all together."""
        self.used_bytes = 0
        """Bytes taken."""
        self._held: Counter[str] = Counter()
        """Bytes that each caller's requests take."""
        self._started: dict[Ticket, None] = {}
        """Those that take some, in the order in which they began."""
        self._starving: Ticket | None = None

    def consider(self, nexts: Iterable[Ticket]) -> None:
        """Find out whether one of *nexts*, of which one is each caller's next, was passed over too often: until it is
        let in, nobody else is."""
        self._starving = next((one for one in nexts if one.passed_over >= _MAX_PASSED_OVER and self._waits(one)), None)

    def fits(self, ticket: Ticket) -> bool:
        """Whether a request may start, or go on."""
        if ticket.has_started:
            return True
        if self._starving is not None and self._starving is not ticket:
            return False
        return self._is_within_share(ticket) and ticket.peak_bytes <= self.limit_bytes - self.used_bytes

    def take(self, ticket: Ticket) -> None:
        """Let a request start, which fits."""
        ticket.start()
        self._started[ticket] = None
        self.used_bytes += ticket.peak_bytes
        self._held[ticket.caller.name] += ticket.peak_bytes

    def release(self, ticket: Ticket) -> None:
        """Give the bytes of a request that has started back; does nothing the second time."""
        if not ticket.has_started:
            return
        self._started.pop(ticket, None)
        self.used_bytes -= ticket.peak_bytes
        self._held[ticket.caller.name] -= ticket.peak_bytes
        ticket.peak_bytes = 0
        if not self._held[ticket.caller.name]:
            del self._held[ticket.caller.name]

    def shrink(self, ticket: Ticket, n_bytes: int) -> None:
        """Take no more than *n_bytes* any longer for a request that has started."""
        freed = max(ticket.peak_bytes - n_bytes, 0) if ticket.has_started else 0
        ticket.peak_bytes -= freed
        self.used_bytes -= freed
        self._held[ticket.caller.name] -= freed

    def in_the_way(self, nexts: Iterable[Ticket]) -> list[Ticket]:
        """Requests whose readers have stalled, and whose memory one of *nexts* waits for."""
        stalled = [one for one in self._started if one.urgency.reader is not None and one.urgency.reader.has_stalled]
        if not stalled:
            return []
        waiting = [one for one in nexts if not self.fits(one)]
        callers = {one.caller.name for one in waiting if not self._is_within_share(one)}
        if len(callers) < len(waiting):  # one waits for what anybody holds
            return stalled
        return [one for one in stalled if one.caller.name in callers]

    def note_passed_over(self, nexts: Iterable[Ticket]) -> None:
        """Others were let in: count it for those of *nexts* that wait for memory."""
        for ticket in nexts:
            ticket.passed_over += self._waits(ticket)

    def _waits(self, ticket: Ticket) -> bool:
        """Whether a request waits for others to give memory back, and not for its own caller's requests."""
        is_too_large = ticket.peak_bytes > self.limit_bytes - self.used_bytes
        return not ticket.has_started and is_too_large and self._is_within_share(ticket)

    def _is_within_share(self, ticket: Ticket) -> bool:
        share = max(ticket.peak_bytes, int(self.limit_bytes * ticket.grant.memory_share))
        return self._held[ticket.caller.name] + ticket.peak_bytes <= share
