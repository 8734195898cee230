"""Lives: contexts on their way from state to state: loaded, unloaded, out of others' way.

NOT_LOADED -> LOADING -> AVAILABLE -> UNLOADING -> NOT_LOADED. Touched on the event loop only; what blocks runs on
threads. When a context is loaded or has to go is the cache's to say.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.contexts.failures import still_held, translated, without_frames
from dst_grpc.contexts.freed import when_freed
from dst_grpc.domain.resolution import ContextState
from dst_grpc.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dst_grpc.contexts.budget import Budget
    from dst_grpc.contexts.entries import Entry
    from dst_grpc.contexts.slots import Context, Slot
    from dst_grpc.contexts.threads import Threads
    from dst_grpc.contexts.watches import Watches
    from dst_grpc.errors import DstError

_log = logging.getLogger(__name__)


class Lives:
    """Moves slots from state to state, and tells who watches."""

    def __init__(
        self,
        slots: dict[Entry, Slot],
        budget: Budget,
        threads: Threads,
        watches: Watches,
        *,
        clock: Callable[[], float],
        release_seconds: float,
    ) -> None:
        """Move what is in *slots*.

        Args:
            slots: the cache's; what is unloaded leaves them.
            budget: what fits on which device.
            threads: for what blocks.
            watches: told of every change.
            clock: seconds, from any beginning.
            release_seconds: how long to wait for the memory of an unloaded context that somebody still holds.
        """
        self._slots, self._budget, self._threads, self._watches = slots, budget, threads, watches
        self._clock = clock
        self._release_seconds = release_seconds
        # One at a time makes room on a device, or two would count on the same bytes. The loads run in parallel.
        self._rooms: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def begin_load(
        self, slot: Slot, read: Callable[[Slot], Coroutine[None, None, Context]]
    ) -> asyncio.Task[Context | DstError]:
        """Load the context of *slot*, which *read* reads; a failure is the task's result, not raised by it."""
        slot.error = None
        slot.load = asyncio.create_task(self._load(slot, read))
        self._enter(slot, ContextState.LOADING)
        return slot.load

    async def _load(self, slot: Slot, read: Callable[[Slot], Coroutine[None, None, Context]]) -> Context | DstError:
        """Load what *slot* is for; a failure is returned, not raised, as there may be nobody left to hear it."""
        try:
            context = await read(slot)
        except Exception as error:  # noqa: BLE001  a load may fail in any way, and each must reach its waiters
            failure = translated(slot.entry, error)
            _log.warning("load failed context=%s reason=%s", slot.entry.name, failure.reason, exc_info=error)
            without_frames(failure)
        else:
            slot.load, slot.context = None, context
            slot.bytes_loaded = slot.counted_bytes = context.parameter_bytes
            slot.last_used = self._clock()
            self._enter(slot, ContextState.AVAILABLE)
            return context
        # Of what was loaded so far nothing is left but cycles and what allocators keep; it counts until those are gone.
        if slot.counted_bytes:
            await self._threads.run(gc.collect)
            await self._reclaim(slot)
        slot.load, slot.error = None, failure
        slot.bytes_loaded = slot.counted_bytes = 0
        self._enter(slot, ContextState.FAILED)
        if slot.is_replaced or (isinstance(slot.entry, AutoencoderEntry) and slot.entry.is_anonymous):
            self._slots.pop(slot.entry, None)
        return failure

    async def make_room(self, slot: Slot) -> None:
        """Put the bytes of *slot* on its account, unloading what is idle, longest unused first, until they fit.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they cannot fit.
            Unavailable: (CONTEXT_IN_USE) if somebody outside the cache holds on to what was unloaded.
        """
        async with self._rooms[slot.entry.device]:
            stuck: dict[Slot, Unavailable] = {}
            while other := self._next_to_go(slot, stuck):
                try:
                    await self.release(other)
                except Unavailable as error:
                    stuck[other] = error
            slot.counted_bytes = slot.entry.parameter_bytes

    def _next_to_go(self, slot: Slot, stuck: dict[Slot, Unavailable]) -> Slot | None:
        """As the budget says, but if what is stuck would have been enough, that is why it fails."""
        try:
            return self._budget.next_to_go(slot, stuck)
        except Exception as refusal:
            if not stuck:
                raise
            raise next(iter(stuck.values())) from refusal

    def begin_unload(self, slot: Slot) -> asyncio.Task[None]:
        """Unload *slot*, which nobody may be using."""
        slot.unload = asyncio.create_task(self._unload(slot))
        self._enter(slot, ContextState.UNLOADING)
        return slot.unload

    async def release(self, slot: Slot) -> None:
        """Unload *slot*, or wait for the unload that is under way; raises Unavailable if it takes too long."""
        unload = slot.unload or self.begin_unload(slot)
        try:
            async with asyncio.timeout(self._release_seconds):
                await asyncio.shield(unload)
        except TimeoutError:
            raise still_held(slot.entry, self._release_seconds) from None

    async def _unload(self, slot: Slot) -> None:
        """Drop the context and see its memory freed; until then it counts."""
        context, slot.context = slot.context, None
        if context is not None:
            freed = when_freed(context)
            del context
            await asyncio.sleep(0)  # usually that was the last reference, and the loop hears of it now
            if not freed.done():
                # A cycle may hold on, such as that of an exception with its frames. Costly, so only then.
                await self._threads.run(gc.collect)
            await freed
            await self._reclaim(slot)
        slot.counted_bytes = slot.bytes_loaded = 0
        slot.unload = None
        slot.is_kept = False
        self._slots.pop(slot.entry, None)
        self._enter(slot, ContextState.NOT_LOADED)

    async def _reclaim(self, slot: Slot) -> None:
        try:
            await self._threads.run(self._budget.memory(slot.entry.device).reclaim)
        except RuntimeError:
            # A device in trouble must not leave the slot unloading for ever; the next load will say what is wrong.
            _log.exception("memory not reclaimed context=%s", slot.entry.name)

    def _enter(self, slot: Slot, state: ContextState) -> None:
        slot.state = state
        _log.info("context=%s state=%s bytes=%d", slot.entry.name, state, slot.entry.parameter_bytes)
        self._watches.tell(slot.entry, slot.status(self._clock()))
