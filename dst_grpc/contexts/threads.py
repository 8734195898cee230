"""Threads for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.contexts.caller_turns import CallerTurns
from dst_grpc.failures import without_locals

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threads:
    """Runs functions off the event loop, a limited number at a time, on threads that stay. Callers take turns.

    Starting one for each call would take as long as most of the work, and where memory is short may never return:
    Python waits for a thread that died before it had begun.
    """

    def __init__(self, name: str, *, at_once: int) -> None:
        """Name threads *name*; at most *at_once* of them run, and further calls wait."""
        self._name = name
        self._turns = CallerTurns(at_once=at_once)
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix=name)

    async def run(self, work: Callable[..., T], *arguments: object, caller: str = "") -> T:
        """The result of *work* of *arguments*, or its exception, once it is the turn of *caller*. If this is cancelled,
        *work* goes on and its result is dropped."""
        async with self._turns.turn(caller):
            return await _run(self._executor, work, *arguments)


class ShortThreads(Threads):
    """Threads that end with the call that they are for, so that they may compute.

    OpenMP keeps a pool of threads for every thread that has computed, and several pools slow one another down: a
    loading thread that stayed alive would make each pass of the device's thread several times slower.
    """

    async def run(self, work: Callable[..., T], *arguments: object, caller: str = "") -> T:
        """As that of `Threads`."""
        async with self._turns.turn(caller):
            executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            try:
                return await _run(executor, work, *arguments)
            finally:
                executor.shutdown(wait=False)


async def _run(executor: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
    # Passed in a list: futures that cross threads form reference cycles, which would keep a result until a collection.
    results: list[T] = []
    await asyncio.get_running_loop().run_in_executor(executor, _append, results, work, *arguments)
    return results.pop()


def _append(results: list[T], work: Callable[..., T], *arguments: object) -> None:
    """Append the result of *work*. Not a closure, whose variables would outlive a cleared frame."""
    try:
        results.append(work(*arguments))
    except BaseException as error:
        without_locals(error)  # which the futures would keep likewise
        raise
