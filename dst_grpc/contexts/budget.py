"""Budget: memory accounting per device, and which contexts to evict to make room for another.

A context that is being unloaded counts until its memory is free. Nothing is loaded or unloaded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.contexts.failures import does_not_fit
from dst_grpc.domain.readings import MemoryKind, MemoryReading

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from dst_grpc.contexts.device import DeviceMemory
    from dst_grpc.contexts.entries import ContextEntry
    from dst_grpc.contexts.lifecycle import CacheRecord, Lifecycle


class Budget:
    """Decides which contexts fit. Each device has its own memory, and the same budget."""

    def __init__(self, lifecycle: Lifecycle, memory: Callable[[str], DeviceMemory], budget_bytes: int | None) -> None:
        """Count the bytes of the contexts of *lifecycle*.

        Args:
            lifecycle: the cache's records.
            memory: the memory of a device.
            budget_bytes: for each device; None = no bound.
        """
        self._lifecycle = lifecycle
        self._memory_of = memory
        self._memories: dict[str, DeviceMemory] = {}
        self._budget_bytes = budget_bytes

    def memory(self, device: str) -> DeviceMemory:
        """The memory of *device*."""
        if device not in self._memories:
            self._memories[device] = self._memory_of(device)
        return self._memories[device]

    def readings(self, device: str) -> Iterator[MemoryReading]:
        """What the contexts of *device* take, and what is taken of it altogether. May be called on any thread."""
        counted = self._lifecycle.counted_bytes(device)
        yield MemoryReading(kind=MemoryKind.WEIGHTS, device=device, used_bytes=counted, limit_bytes=self._budget_bytes)
        memory = self._memories.get(device)
        if memory is not None and (allocated := memory.allocated) is not None:
            used, most = allocated
            yield MemoryReading(kind=MemoryKind.ALLOCATOR, device=device, used_bytes=used, limit_bytes=most)

    def check(self, wanted: Collection[ContextEntry]) -> None:
        """Check, before any work, whether contexts fit together.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if not, even with everything idle unloaded.
        """
        missing = [entry for entry in wanted if not self._lifecycle.is_counted(entry)]
        for device in {entry.device for entry in missing}:
            here = [entry for entry in wanted if entry.device == device]
            excess = self._excess(device, sum(entry.parameter_bytes for entry in missing if entry.device == device))
            if excess > sum(record.counted_bytes for record in self._next(device, keep=here)):
                raise self._refusal(here, sum(entry.parameter_bytes for entry in here), excess)

    def next_to_go(self, record: CacheRecord, stuck: Collection[CacheRecord]) -> CacheRecord | None:
        """The context to evict next to make room for that of *record*; None if there is room.

        Args:
            record: the record of the context to load.
            stuck: unloaded contexts whose memory is still referenced outside the cache.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if evicting everything idle would not make enough room.
        """
        entry, needed = record.entry, record.entry.parameter_bytes
        excess = self._excess(entry.device, needed)
        if excess <= 0:
            return None
        candidates = [other for other in self._next(entry.device) if other not in stuck]
        if sum(other.counted_bytes for other in candidates) < excess:
            raise self._refusal([entry], needed, excess)
        return candidates[0]

    def _refusal(self, entries: Sequence[ContextEntry], needed: int, excess: int) -> Exception:
        return does_not_fit(entries, needed, self._budget_bytes or 0, excess)

    def _excess(self, device: str, needed: int) -> int:
        """Bytes over the budget of *device* once *needed* more are taken."""
        if self._budget_bytes is None:
            return 0
        used = self.memory(device).used_bytes(self._lifecycle.counted_bytes(device))
        return used + needed - self._budget_bytes

    def _next(self, device: str, keep: Collection[ContextEntry] = ()) -> list[CacheRecord]:
        """Contexts of *device*: those being unloaded, then idle ones other than *keep*, least recently used first."""
        idle = [record for record in self._lifecycle.evictable() if record.entry not in keep]
        return [record for record in (*self._lifecycle.unloading(), *idle) if record.entry.device == device]
