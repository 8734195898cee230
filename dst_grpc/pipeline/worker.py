"""The one thread that owns a device. torch runs here and nowhere else; the event loop only waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dst_grpc.errors import Reason, Unavailable
from dst_grpc.failures import failure_of, is_out_of_memory, out_of_memory, without_frames, without_locals
from dst_grpc.pipeline.own_time import others_run

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_WORTH_THREADS = 4_000_000_000
"""Operations, divided by the number of threads, below which a job runs on one: its threads would wait for each other at
every operation, where others use the cores for as long as the system lets them, and take cores from the event loop. Of
two threads that is some 60 ms, of which they would save half; more of them save more, and are hindered less."""


class Worker:
    """Runs one job at a time, in order of arrival. A job cancelled while it waits never runs.

    A job may be interrupted by another where it gives way (`give_way`), which then runs there to its end.
    """

    def __init__(self, device: str) -> None:
        """Start the thread of *device*."""
        self.device = device
        """Its name."""
        self._busy_seconds = 0.0
        self._busy_since: float | None = None
        """When the running job began."""
        self._is_closed = False
        self._n_threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"dst-{device}", initializer=self._note_thread)
        self._ident: int | None = None
        """Of the thread."""
        self._interrupting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        """Jobs that wait until the running one gives way, and their results."""

    def submit(self, job: Callable[[], T], *, operations: int = 0) -> asyncio.Future[T]:
        """Run *job*; its result.

        Args:
            job: the function to run.
            operations: its approximate floating-point operations; small jobs run on one thread.

        Returns:
            The future result. It fails with Exhausted (OUT_OF_MEMORY) if the device cannot hold the job, and is
            cancelled if the worker is closed before the job runs.
        """
        loop = asyncio.get_running_loop()
        if self._is_closed:
            dropped: asyncio.Future[T] = loop.create_future()
            dropped.cancel()
            return dropped
        return loop.run_in_executor(self._thread, self._timed, partial(self._guarded, job, operations))

    def interrupt(self, job: Callable[[], T], *, operations: int = 0) -> asyncio.Future[T]:
        """Run *job* as soon as the running job gives way, at the latest once that is over; else as `submit`."""
        result: Future[T] = Future()
        self._interrupting.append((result, partial(self._guarded, job, operations)))
        if self._is_closed:
            self._drop_interrupting()
        else:
            asyncio.get_running_loop().run_in_executor(self._thread, self._timed, self._run_interrupting)
        return asyncio.wrap_future(result)

    def give_way(self) -> None:
        """Called by jobs wherever another may run: runs what interrupts them.

        Does nothing on other threads than the worker's, such as those on which torch runs backward passes of a GPU.
        """
        if self._interrupting and threading.get_ident() == self._ident:
            threads = torch.get_num_threads()
            with others_run(), torch.enable_grad():  # as where jobs begin
                self._run_interrupting()
            _use_threads(threads)

    def _run_interrupting(self) -> None:
        while self._interrupting:
            result, job = self._interrupting.popleft()
            try:
                result.set_result(job())
            except BaseException as error:  # noqa: BLE001  it is for whoever waits for the result
                result.set_exception(error)

    def _drop_interrupting(self) -> None:
        with suppress(IndexError):  # the running job gave way meanwhile
            while True:
                self._interrupting.popleft()[0].cancel()

    def _note_thread(self) -> None:
        self._ident = threading.get_ident()

    def _timed(self, job: Callable[[], T]) -> T:
        self._busy_since = started = time.monotonic()
        try:
            return job()
        finally:
            self._busy_since = None
            self._busy_seconds += time.monotonic() - started

    def _guarded(self, job: Callable[[], T], operations: int) -> T:
        _use_threads(self._n_threads if operations * self._n_threads >= _WORTH_THREADS else 1)
        try:
            return job()
        except BaseException as error:
            told = self.translated(failure_of(error))
            if told is error:
                raise
            raise told from told.__cause__

    @property
    def busy_seconds(self) -> float:
        """How long jobs have run, that which runs included. May be read on any thread."""
        seconds, since = self._busy_seconds, self._busy_since
        return seconds if since is None else seconds + time.monotonic() - since

    def translated(self, error: Exception) -> Exception:
        """*error*, or the error that replaces it for the caller; neither keeps alive what the job held."""
        if not is_out_of_memory(error):
            return without_locals(error)
        without_frames(error)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return out_of_memory(self.device)

    async def close(self) -> None:
        """Let the running job end and drop the others."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._drop_interrupting()
        await asyncio.to_thread(self._thread.shutdown, wait=True)


def _use_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def stopping() -> Unavailable:
    """What those are told whose jobs will not run."""
    return Unavailable("the server is stopping", reason=Reason.DRAINING)
