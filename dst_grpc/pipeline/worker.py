"""The one thread that owns a device. torch runs here and nowhere else; the event loop only waits."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from dst_grpc.errors import Exhausted, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Worker:
    """Runs one job at a time, in the order in which they came. A job cancelled while it waits never runs."""

    def __init__(self, device: str) -> None:
        """Start the thread of *device*."""
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"dst-{device}")

    async def submit(self, job: Callable[[], T]) -> T:
        """Run *job* and give its result; raises Exhausted (OUT_OF_MEMORY) if the device cannot hold it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, job)

    def _guarded(self, job: Callable[[], T]) -> T:
        try:
            return job()
        except torch.OutOfMemoryError as error:
            if self._device.startswith("cuda"):
                torch.cuda.empty_cache()
            message = f"{self._device} ran out of memory; ask for fewer derived scalars, layers or tokens"
            raise Exhausted(message, reason=Reason.OUT_OF_MEMORY) from error

    async def close(self) -> None:
        """Let the running job end and drop the others."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._thread.shutdown, wait=True)
