"""An event loop in a thread of its own, and the blocking forms of async methods.

The sync client is the async client wrapped by this module; nothing is implemented twice.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from dst_grpc.client._forks import check_same_process

P = ParamSpec("P")
T = TypeVar("T")
AsyncT = TypeVar("AsyncT")
AsyncT_co = TypeVar("AsyncT_co", covariant=True)

_END = object()


class BackgroundLoop:
    """Runs coroutines for threads without an event loop, or whose loop must not be used."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dst-grpc-client", daemon=True)
        self._thread.start()
        # Runs when `close` is called, when this object is garbage collected, or when the interpreter ends: otherwise a
        # thread that still waits for the loop would wait forever.
        self._iterated: dict[AsyncGenerator[Any], list[asyncio.Task[Any]]] = {}
        self._close = weakref.finalize(self, _shut_down, self._loop, self._thread, self._pid, self._iterated)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called, or the thread is that of a parent process."""
        return self._loop.is_closed() or os.getpid() != self._pid

    def run(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* on the loop and wait for what it returns; interrupting the wait cancels it.

        It is called there, because an interrupt may come anywhere here: a coroutine that was made, and not handed over
        yet, would never be awaited.

        Raises:
            RuntimeError: If the loop is closed, or the process is a child of the one that it runs in.
        """
        if self.is_closed:
            check_same_process(self._pid)
            raise RuntimeError("this client is closed")
        result: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            if not result.cancelled():
                tasks.append(self._loop.create_task(_tell(result, function, *args, **kwargs)))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        try:
            self._loop.call_soon_threadsafe(start)
            return result.result()
        except BaseException:
            if not result.done():  # the wait was interrupted
                result.cancel()
                self._loop.call_soon_threadsafe(cancel)
            raise

    def iterate(self, source: AsyncGenerator[T]) -> Generator[T]:
        """Yield the items of *source*, one at a time on demand; closing the iterator closes the source."""
        pulling: list[asyncio.Task[Any]] = []
        self._iterated[source] = pulling
        try:
            while (item := self.run(_next, source, pulling)) is not _END:
                yield item  # type: ignore[misc]  # mypy does not see that only _END is no T
        finally:
            self._iterated.pop(source, None)
            self._finish(source, pulling)

    def _finish(self, source: AsyncGenerator[T], pulling: list[asyncio.Task[Any]]) -> None:
        if self.is_closed:
            return
        if threading.current_thread() is self._thread:
            # The garbage collector runs on this very thread, which cannot wait for itself.
            self._loop.create_task(_finish(source, pulling))
        else:
            self.run(_finish, source, pulling)

    def close(self) -> None:
        """Cancel running coroutines and end the thread. Closing twice is harmless."""
        self._close()


def _shut_down(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    pid: int,
    iterated: dict[AsyncGenerator[Any], list[asyncio.Task[Any]]],
) -> None:
    if os.getpid() != pid:
        return  # in a child the thread is not there
    if threading.current_thread() is thread:
        # The garbage collector runs on this very thread, which cannot wait for itself.
        loop.stop()
        return
    asyncio.run_coroutine_threadsafe(_end_all(iterated), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def from_thread(items: Iterable[T]) -> AsyncGenerator[T]:
    """The items of an iterable that may block, taken one at a time on another thread than the loop's."""
    iterator = iter(items)
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item  # type: ignore[misc]  # as above


async def _tell(
    result: Future[T], function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> None:
    """Call *function*, and put what it returns or raises into *result*."""
    try:
        returned = await function(*args, **kwargs)
    except asyncio.CancelledError:
        result.cancel()
        raise
    except BaseException as error:  # noqa: BLE001  it is for whoever waits for the result
        with suppress(InvalidStateError):  # unless nobody does any more
            result.set_exception(error)
    else:
        with suppress(InvalidStateError):
            result.set_result(returned)


async def _next(source: AsyncIterator[T], pulling: list[asyncio.Task[Any]]) -> T | object:
    task = asyncio.current_task()
    pulling[:] = [] if task is None else [task]
    return await anext(source, _END)


async def _finish(source: AsyncGenerator[T], pulling: list[asyncio.Task[Any]]) -> None:
    if pulling:
        # An interrupt may come before the wait that would cancel the task; a generator that runs cannot be closed.
        for task in pulling:
            task.cancel()
        await asyncio.wait(pulling)
    await source.aclose()


async def _end_all(iterated: dict[AsyncGenerator[Any], list[asyncio.Task[Any]]]) -> None:
    """Close the generators that are being iterated, then cancel what still runs."""
    # The loop would close them and the generators within them all at once, which those refuse.
    await asyncio.gather(*(_finish(*one) for one in list(iterated.items())), return_exceptions=True)
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


class Blocking(Generic[AsyncT_co]):
    """Holds an async object and its event loop."""

    def __init__(self, client: AsyncT_co, loop: BackgroundLoop) -> None:
        self._client = client
        self._loop = loop


def blocking(
    method: Callable[Concatenate[AsyncT, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Blocking[AsyncT], P], T]:
    """The blocking form of an async method, with its signature and its docstring."""

    def call(self: Blocking[AsyncT], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method, self._client, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


def blocking_iterator(
    method: Callable[Concatenate[AsyncT, P], AsyncGenerator[T]],
) -> Callable[Concatenate[Blocking[AsyncT], P], Generator[T]]:
    """The blocking form of an async generator method, with its signature and its docstring."""

    def call(self: Blocking[AsyncT], /, *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return self._loop.iterate(method(self._client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call
