"""Expiry: unloads contexts that have been idle for longer than a time to live."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from dst_grpc.contexts.lifecycle import CacheRecord


class Expiry:
    """Unloads contexts that have been idle for the time to live, with at most one task, which sleeps until the next is
    due."""

    def __init__(
        self,
        ttl_seconds: float | None,
        idle: Callable[[], Iterable[CacheRecord]],
        unload: Callable[[CacheRecord], object],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """Start no task before `look`.

        Args:
            ttl_seconds: how long a context may be idle; None = for ever.
            idle: the contexts that may be unloaded.
            unload: begins to unload one.
            clock: a monotonic clock, in seconds.
            sleep: waits for a number of seconds.
        """
        self._ttl_seconds = ttl_seconds
        self._idle, self._unload = idle, unload
        self._clock, self._sleep = clock, sleep
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Called when a context becomes idle."""
        if self._ttl_seconds is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(self._ttl_seconds))

    async def _run(self, ttl_seconds: float) -> None:
        """Unload each context when it is due, until none is idle."""
        while idle := list(self._idle()):
            now = self._clock()
            for record in idle:
                if now >= record.last_used + ttl_seconds:
                    self._unload(record)
            left = [record.last_used + ttl_seconds - now for record in self._idle()]
            if left:
                await self._sleep(min(left))

    async def close(self) -> None:
        """Stop unloading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
