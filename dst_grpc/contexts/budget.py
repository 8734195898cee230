"""Budget: the bytes that contexts may take on a device, and what has to go to make room for another.

What is being unloaded counts until its memory is free. Nothing here loads or unloads; it says what does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.contexts.failures import does_not_fit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from dst_grpc.contexts.device import DeviceMemory
    from dst_grpc.contexts.entries import Entry
    from dst_grpc.contexts.slots import Slot


class Budget:
    """What fits beside what is there. Each device has the same budget, and memory of its own."""

    def __init__(
        self, slots: Mapping[Entry, Slot], memory: Callable[[str], DeviceMemory], budget_bytes: int | None
    ) -> None:
        """Count the bytes of *slots*.

        Args:
            slots: the cache's, as they change.
            memory: of a device.
            budget_bytes: for each device; None = no bound.
        """
        self._slots = slots
        self._memory_of = memory
        self._memories: dict[str, DeviceMemory] = {}
        self._budget_bytes = budget_bytes

    def memory(self, device: str) -> DeviceMemory:
        """The memory of *device*."""
        if device not in self._memories:
            self._memories[device] = self._memory_of(device)
        return self._memories[device]

    def check(self, wanted: Collection[Entry]) -> None:
        """See, before any work, whether contexts could be there together.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if not, even with everything idle unloaded.
        """
        wanted = list(dict.fromkeys(wanted))  # by name and by handle, one may be wanted twice
        missing = [entry for entry in wanted if not self._is_there(entry)]
        for device in {entry.device for entry in missing}:
            here = [entry for entry in wanted if entry.device == device]
            excess = self._excess(device, sum(entry.parameter_bytes for entry in missing if entry.device == device))
            if excess > sum(slot.counted_bytes for slot in self._may_go(device, keep=here)):
                raise self._refusal(here, sum(entry.parameter_bytes for entry in here), excess)

    def next_to_go(self, slot: Slot, stuck: Collection[Slot]) -> Slot | None:
        """The context that is to go next to make room for that of *slot*; None if there is room.

        Args:
            slot: whose bytes are wanted.
            stuck: those of which nothing is expected any more.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if it cannot fit; nothing should go in vain.
        """
        needed = slot.entry.parameter_bytes
        excess = self._excess(slot.entry.device, needed)
        if excess <= 0:
            return None
        candidates = [other for other in self._may_go(slot.entry.device) if other not in stuck]
        if sum(other.counted_bytes for other in candidates) < excess:
            raise self._refusal([slot.entry], needed, excess)
        return candidates[0]

    def _refusal(self, entries: Sequence[Entry], needed: int, excess: int) -> Exception:
        return does_not_fit(entries, needed, self._budget_bytes or 0, excess)

    def _excess(self, device: str, needed: int) -> int:
        """Bytes over the budget of *device* once *needed* more are taken."""
        if self._budget_bytes is None:
            return 0
        counted = sum(slot.counted_bytes for slot in self._slots.values() if slot.entry.device == device)
        return self.memory(device).used_bytes(counted) + needed - self._budget_bytes

    def _is_there(self, entry: Entry) -> bool:
        """Whether the bytes of *entry* are counted, and will go on being so."""
        slot = self._slots.get(entry)
        return slot is not None and slot.counted_bytes > 0 and slot.unload is None

    def _may_go(self, device: str, keep: Collection[Entry] = ()) -> list[Slot]:
        """What is going already, then what is idle, longest unused first; without those to *keep*."""
        here = [slot for slot in self._slots.values() if slot.entry.device == device]
        leaving = [slot for slot in here if slot.unload is not None]
        idle = [slot for slot in here if slot.may_go and slot.entry not in keep]
        return leaving + sorted(idle, key=lambda slot: slot.last_used)
