"""Sweeps: what is kept for a time is looked through now and then, as long as there is any."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEP_SECONDS = 30.0
"""How often what has expired is dropped while there are no calls."""


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Do not call it."""


class Sweeps:
    """Calls a function periodically, from when it is told to until that says that nothing is left: one timer for all.

    Used on an event loop.
    """

    def __init__(
        self, sweep: Callable[[], bool], call_later: Callable[[float, Callable[[], None]], Timer] | None = None
    ) -> None:
        """Start no timer yet.

        Args:
            sweep: drops what has expired, and says whether anything is left.
            call_later: schedules a call after a number of seconds; None = on the running event loop.
        """
        self._sweep, self._call_later = sweep, call_later
        self._timer: Timer | None = None

    def go_on(self) -> None:
        """Called when there is something to look through."""
        if self._timer is None:
            call_later = self._call_later or asyncio.get_running_loop().call_later
            self._timer = call_later(SWEEP_SECONDS, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._sweep():
            self.go_on()
