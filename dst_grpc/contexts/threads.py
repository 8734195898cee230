"""Threads for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.failures import without_locals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")


class Threads:
    """Runs functions off the event loop, a limited number at a time, on threads that stay. Callers take turns.

    Starting one for each call would take as long as most of the work, and where memory is short may never return:
    Python waits for a thread that died before it had begun.
    """

    def __init__(self, name: str, *, at_once: int) -> None:
        """Name threads *name*; at most *at_once* of them run, and further calls wait."""
        self._name = name
        self._n_free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Calls that wait, by caller; the first is next. There are none while a thread is free."""
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix=name)

    async def run(self, work: Callable[..., T], *arguments: object, caller: str = "") -> T:
        """The result of *work* of *arguments*, or its exception, once it is the turn of *caller*. If this is cancelled,
        *work* goes on and its result is dropped."""
        async with self._turn(caller):
            return await _run(self._executor, work, *arguments)

    @asynccontextmanager
    async def _turn(self, caller: str) -> AsyncIterator[None]:
        """Have one of the threads."""
        if self._n_free:
            self._n_free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(caller, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was given at the same time
                    self._give_turn()
                raise
        try:
            yield
        finally:
            self._give_turn()

    def _give_turn(self) -> None:
        """Give the thread to the first call that waits of the next caller."""
        while self._waiting:
            caller, calls = self._waiting.popitem(last=False)
            turn = calls.popleft()
            if calls:
                self._waiting[caller] = calls
            if not turn.done():
                turn.set_result(None)
                return
        self._n_free += 1


class ShortThreads(Threads):
    """Threads that end with the call that they are for, so that they may compute.

    OpenMP keeps a pool of threads for every thread that has computed, and several pools slow one another down: a
    loading thread that stayed alive would make each pass of the device's thread several times slower.
    """

    async def run(self, work: Callable[..., T], *arguments: object, caller: str = "") -> T:
        """As that of `Threads`."""
        async with self._turn(caller):
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
