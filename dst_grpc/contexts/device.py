"""Devices: selection, and memory in use."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch

from dst_grpc.domain.handles import is_device
from dst_grpc.domain.readings import BuildInfo
from dst_grpc.errors import InvalidRequest

_M_MMAP_THRESHOLD = -3
_OWN_MAPPING_BYTES = 128 << 10
HEAP_FACTOR = 1.25
"""What a process takes for each byte of tensors if glibc keeps what is freed: 1.1 to 1.5 were measured."""


def pick_device(wanted: str) -> str:
    """The device of *wanted*: itself, or for "auto" the best available.

    Raises:
        InvalidRequest: (field `device`) if it is not a device of this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if not is_device(wanted):
        raise InvalidRequest.of("device", f"{wanted!r} is not a device: auto, cpu, cuda, cuda:N, mps or mps:N")
    kind, _, number = wanted.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}[kind]
    if int(number or 0) >= there:
        raise InvalidRequest.of("device", f"this machine has {there} {kind} devices, so no {wanted!r}")
    return f"cuda:{number or 0}" if kind == "cuda" else kind


class DeviceMemory(Protocol):
    """The memory that the contexts of one device share."""

    def used_bytes(self, counted_bytes: int) -> int:
        """Bytes in use, given that loaded contexts account for *counted_bytes*."""
        ...

    def reclaim(self) -> None:
        """Return the memory of freed tensors to the system; may block, so it is called off the event loop."""
        ...

    @property
    def allocated(self) -> tuple[int, int] | None:
        """Bytes of all tensors, and of the whole memory, as the allocator counts them; None if it does not. May be
        read on any thread."""
        ...


class CountedMemory:
    """CPU memory: there are no allocator statistics, so its use is the sum of the contexts' registered bytes."""

    def used_bytes(self, counted_bytes: int) -> int:
        """The registered bytes alone."""
        return counted_bytes

    def reclaim(self) -> None:
        """Have the C library return freed memory to the system: glibc keeps blocks of up to 32 MiB for itself."""
        _c_library("malloc_trim", 0)

    @property
    def allocated(self) -> None:
        """Not counted."""
        return None


def return_freed_memory() -> None:
    """Have the C library return tensors of `_OWN_MAPPING_BYTES` or more to the system as they are freed.

    By default glibc puts ever larger blocks into heaps, and loses holes between what is recorded: a run takes
    `HEAP_FACTOR` times the memory of its tensors. A mapping of its own for each is given back at once, and costs a
    fault for each of its pages, and their clearing. For the whole process.
    """
    _c_library("mallopt", _M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)


def _c_library(name: str, *arguments: int) -> None:
    """Call a function of glibc; does nothing with another C library, which has no such function."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return
    function(*arguments)


class CudaAllocator(Protocol):
    """The functions of `torch.cuda` that are used."""

    def memory_allocated(self, device: torch.device) -> int:
        """Bytes of all tensors on *device*."""
        ...

    def synchronize(self, device: torch.device) -> None:
        """Wait until all kernels of *device* have finished."""
        ...

    def empty_cache(self) -> None:
        """Return cached blocks to the driver."""
        ...

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        """Bytes of *device* that are free, and all of them."""
        ...


class CudaMemory:
    """A GPU's memory as torch's allocator measures it.

    Two things can only be shown on a GPU: that `memory_allocated` falls by a model's bytes once the model is dropped,
    and that other processes can use the blocks after `empty_cache`. The tests use a fake allocator.
    """

    def __init__(self, device: str, allocator: CudaAllocator = torch.cuda) -> None:
        """Measure *device*, such as cuda:0."""
        self._device = torch.device(device)
        self._allocator = allocator

    def used_bytes(self, counted_bytes: int) -> int:
        """The larger of registered and allocated bytes: a load allocates later, activations are never registered."""
        return max(counted_bytes, self._allocator.memory_allocated(self._device))

    def reclaim(self) -> None:
        """Wait for kernels that still read the tensors, and return cached blocks to the driver."""
        self._allocator.synchronize(self._device)
        self._allocator.empty_cache()

    @property
    def allocated(self) -> tuple[int, int]:
        """As torch's allocator and the driver count them."""
        return self._allocator.memory_allocated(self._device), self._allocator.mem_get_info(self._device)[1]


def build_info() -> BuildInfo:
    """Which torch computes."""
    return BuildInfo(torch=torch.__version__, cuda=torch.version.cuda or "")


def memory_of(device: str) -> DeviceMemory:
    """The memory of *device*."""
    return CudaMemory(device) if device.startswith("cuda") else CountedMemory()
