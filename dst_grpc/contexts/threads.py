"""Threads for blocking work: a new one for each call, which ends with it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threads:
    """Runs work off the event loop, a few pieces at a time.

    OpenMP keeps a pool of threads for every thread that ever computed, and several pools slow one another down: left
    alive, a thread that once loaded would make each pass of the device's thread several times slower.
    """

    def __init__(self, name: str, *, at_once: int) -> None:
        """Call threads *name*; at most *at_once* of them run, and further work waits."""
        self._name = name
        self._free = asyncio.Semaphore(at_once)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What *work* of *arguments* returns, or raises. Cancelled, it goes on alone and its outcome is dropped."""
        async with self._free:
            thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            # In a list of ours: futures that cross threads form cycles, and would keep a result until a collection.
            results: list[T] = []
            try:
                await asyncio.get_running_loop().run_in_executor(thread, _append, results, work, *arguments)
            finally:
                thread.shutdown(wait=False)
            return results.pop()


def _append(results: list[T], work: Callable[..., T], *arguments: object) -> None:
    """Append what *work* returns. No closure, whose variables would outlive a cleared frame."""
    results.append(work(*arguments))
