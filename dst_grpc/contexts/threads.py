"""Threads for blocking work: a new one for each call, which ends with it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threads:
    """Runs functions off the event loop, a limited number at a time.

    OpenMP keeps a pool of threads for every thread that has computed, and several pools slow one another down: a
    loading thread that stayed alive would make each pass of the device's thread several times slower.
    """

    def __init__(self, name: str, *, at_once: int) -> None:
        """Name threads *name*; at most *at_once* of them run, and further calls wait."""
        self._name = name
        self._free = asyncio.Semaphore(at_once)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of *work* of *arguments*, or its exception. If the caller is cancelled, *work* goes on and its
        result is dropped."""
        async with self._free:
            thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            # Passed in a list: futures that cross threads form reference cycles, which would keep a result until a
            # collection.
            results: list[T] = []
            try:
                await asyncio.get_running_loop().run_in_executor(thread, _append, results, work, *arguments)
            finally:
                thread.shutdown(wait=False)
            return results.pop()


def _append(results: list[T], work: Callable[..., T], *arguments: object) -> None:
    """Append the result of *work*. Not a closure, whose variables would outlive a cleared frame."""
    results.append(work(*arguments))
