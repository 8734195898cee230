"""A device as the checks see it: its memory, its time, and a pipeline whose models are on it.

On a CPU the same figures come from the profiler's allocations and from a limit of the process's address space, so that
every check can be tried without a GPU, except for what is about a GPU alone.
"""

from __future__ import annotations

import math
import resource
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.contexts import write_gpt2_small
from benchmarks.measure import peak_bytes
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.device import pick_device
from dst_grpc.pipeline import Bounds, DeviceLimits, Limits, Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Device:
    """cpu, or cuda:N."""

    name: str

    @classmethod
    def picked(cls, wanted: str) -> Device:
        """The device of *wanted*; raises InvalidRequest if this machine has none."""
        return cls(pick_device(wanted))

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name.startswith("cuda")

    @property
    def title(self) -> str:
        """What it is called."""
        return torch.cuda.get_device_name(self.name) if self.is_gpu else "CPU"

    def wait(self) -> None:
        """Until it has done all that was launched."""
        if self.is_gpu:
            torch.cuda.synchronize(self.name)

    def allocated(self) -> int | None:
        """Bytes of all tensors on it; None on a CPU, which does not count them."""
        return torch.cuda.memory_allocated(self.name) if self.is_gpu else None

    def peak(self, work: Callable[[], object]) -> int:
        """Most bytes of tensors, beyond those there before, at any moment of *work*."""
        if not self.is_gpu:
            return peak_bytes(work)
        self.wait()
        before = torch.cuda.memory_allocated(self.name)
        torch.cuda.reset_peak_memory_stats(self.name)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.name) - before

    @contextmanager
    def short_of_memory(self, spare_bytes: int) -> Iterator[None]:
        """Have only about *spare_bytes* more memory than is in use."""
        if self.is_gpu:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self.name).total_memory
            fraction = (torch.cuda.memory_reserved(self.name) + spare_bytes) / total
            torch.cuda.set_per_process_memory_fraction(fraction, self.name)
            try:
                yield
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, self.name)
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass(frozen=True)
class Served:
    """A random model in the shape of GPT-2 small on a device, and the pipeline that answers about it."""

    device: Device
    cache: ContextCache
    pipeline: Pipeline

    @property
    def registry(self) -> Registry:
        """The registry of the one model, "small"."""
        return self.cache.registry


@asynccontextmanager
async def served(device: Device, folder: Path) -> AsyncIterator[Served]:
    """Serve a new model, written to *folder*; nothing is kept of one request for another, and all are admitted."""
    registry = Registry.build(
        models={"small": write_gpt2_small(folder / "small", torch.float32)},
        device=device.name,
        include_embedded=False,
    )
    async with AsyncExitStack() as stack:
        cache = ContextCache(registry)
        stack.push_async_callback(cache.close)
        limits = Limits(
            bounds=Bounds(max_requests_per_caller=1000),
            of_device=DeviceLimits(max_run_bytes=_NO_LIMIT, patience=math.inf),
            store_bytes=0,
        )
        pipeline = Pipeline(cache, limits)
        stack.push_async_callback(pipeline.close)
        yield Served(device, cache, pipeline)
