"""Slows those who guess tokens: after a few wrong ones, the refusals of a host come at a steady, low rate.

What protects tokens is their length, as a right one is never kept waiting, whoever else guesses from the same host. The
limit keeps guessing from costing the server anything. (It is the generic cell rate algorithm: of each host, only the
time is kept at which it will have paid for all its guesses.)
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from dst_grpc.errors import Exhausted, Reason

_BURST = 10
"""Wrong tokens of a host that are refused at once."""
_SECONDS = 1.0
"""Time between refusals after that."""
_LONGEST_WAIT = 5.0
"""Seconds that a refusal may be held back; a guess that would wait longer is refused at once, as one too many."""
_MAX_HOSTS = 4096


class Guesses:
    """Wrong tokens by host, for the hosts that guessed last."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; *clock* gives seconds, from any beginning."""
        self._clock = clock
        self._paid_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Hosts that are remembered."""
        return len(self._paid_at)

    def wait_after_wrong(self, host: str) -> float:
        """Note a wrong token of *host*; returns the seconds to wait before it is refused.

        Raises:
            Exhausted: The wait would be too long.
        """
        now = self._clock()
        paid_at = max(now, self._paid_at.get(host, now))
        wait = paid_at - now - (_BURST - 1) * _SECONDS
        if wait > _LONGEST_WAIT:
            raise Exhausted(
                "too many wrong bearer tokens came from this host",
                reason=Reason.QUOTA_EXCEEDED,
                retry_after_seconds=wait,
            )
        self._paid_at[host] = paid_at + _SECONDS
        self._paid_at.move_to_end(host)
        if len(self._paid_at) > _MAX_HOSTS:
            self._paid_at.popitem(last=False)
        return max(0.0, wait)
