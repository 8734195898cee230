"""Turns of callers at something that only so many may have at a time."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class CallerTurns:
    """Lets a limited number go on at a time; the others wait, and their callers take turns. Used on the event loop
    only."""

    def __init__(self, *, at_once: int, at_once_per_caller: int | None = None, one_each: bool = False) -> None:
        """Start with nobody.

        Args:
            at_once: how many may go on.
            at_once_per_caller: how many of one caller; None = as many.
            one_each: whether one of each caller may go on even beyond *at_once*.
        """
        self._at_once, self._per_caller, self._one_each = at_once, at_once_per_caller or at_once, one_each
        self._going: Counter[str] = Counter()
        """How many go on, of each caller."""
        self._n_going = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Those that wait, by caller; of those who may go on, the first is next."""

    def n_waiting(self, caller: str) -> int:
        """How many of *caller* wait."""
        return len(self._waiting.get(caller, ()))

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Go on for the time of the block, once it is the turn of *caller*."""
        if caller not in self._waiting and self._may_go_on(caller):
            self._count(caller, 1)
        else:
            await self._given(caller)
        try:
            yield
        finally:
            self._end(caller)

    async def _given(self, caller: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(caller, turn)
            else:  # it was given at the same time
                self._end(caller)
            raise

    def _may_go_on(self, caller: str) -> bool:
        going = self._going[caller]
        return going < self._per_caller and (self._n_going < self._at_once or (self._one_each and not going))

    def _count(self, caller: str, change: int) -> None:
        self._n_going += change
        self._going[caller] += change
        if not self._going[caller]:
            del self._going[caller]

    def _end(self, caller: str) -> None:
        """Count one of *caller* out, and let those go on who may now."""
        self._count(caller, -1)
        for each in list(self._waiting):
            if self._may_go_on(each):
                self._give_turn(each)

    def _give_turn(self, caller: str) -> None:
        """Let the first that waits of *caller* go on; its others wait for their next turn."""
        calls = self._waiting.pop(caller)
        while calls:
            turn = calls.popleft()
            if not turn.done():
                self._count(caller, 1)
                turn.set_result(None)
                break
        if calls:
            self._waiting[caller] = calls

    def _forget(self, caller: str, turn: asyncio.Future[None]) -> None:
        calls = self._waiting.get(caller, deque())
        if turn in calls:
            calls.remove(turn)
        if not calls:
            self._waiting.pop(caller, None)
