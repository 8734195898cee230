"""ContextCache: what is loaded, who uses it, and what has to go to make room.

Of those who want the same context one loads it and all get it; different ones load in parallel. A context in use is
pinned and stays. All state is touched on the event loop only; loads and the freeing of memory run on threads. Which
contexts there are is the registry's to say, and how one is read the loader's.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from dst_grpc.contexts.device import memory_of
from dst_grpc.contexts.entries import AutoencoderEntry, Entry
from dst_grpc.contexts.failures import closing, copied, does_not_fit, still_held, translated, without_frames
from dst_grpc.contexts.lease import Lease
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.slots import Mailbox, Slot, when_gone
from dst_grpc.domain.resolution import AutoencoderInfo, ContextState, ContextStatus, LoadProgress, ModelInfo
from dst_grpc.errors import DstError, FieldViolation, NotFound, PreconditionFailed, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.device import DeviceMemory
    from dst_grpc.contexts.loading import Loader
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.contexts.slots import Context, OnLoadProgress

_log = logging.getLogger(__name__)
_MAX_PARALLEL_LOADS = 4
_RELEASE_SECONDS = 30.0
_CLOSE_SECONDS = 1.0
_Info = TypeVar("_Info", ModelInfo, AutoencoderInfo)


class ContextCache:
    """The contexts that are loaded."""

    def __init__(
        self,
        registry: Registry,
        *,
        budget_bytes: int | None = None,
        loader: Loader | None = None,
        memory: DeviceMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
        release_seconds: float = _RELEASE_SECONDS,
    ) -> None:
        """Start empty.

        Args:
            registry: what may be loaded.
            budget_bytes: bytes that loaded contexts may take together; None = no limit.
            loader: reads what is not loaded; None = from files.
            memory: of the device that contexts live on; None = that of the default model's.
            clock: seconds, from any beginning.
            release_seconds: how long to wait for the memory of an unloaded context that somebody still holds.
        """
        self._registry = registry
        self._budget_bytes = budget_bytes
        self._loader = loader or FileLoader()
        self._memory = memory or memory_of(registry.model("").device)
        self._clock = clock
        self._release_seconds = release_seconds
        self._slots: dict[str, Slot] = {}
        self._watchers: set[Mailbox] = set()
        # One at a time makes room, or two would count on the same bytes. The loads themselves run in parallel.
        self._room = asyncio.Lock()
        self._parallel = asyncio.Semaphore(_MAX_PARALLEL_LOADS)
        self._is_closing = False

    @asynccontextmanager
    async def lease(
        self,
        model: str,
        autoencoders: Sequence[str] = (),
        *,
        on_progress: OnLoadProgress | None = None,
    ) -> AsyncIterator[Lease]:
        """Hold a model and its autoencoder sets, loading what is not loaded yet.

        Args:
            model: name or handle; "" means the default.
            autoencoders: names or handles.
            on_progress: told of the progress of loads that this waits for.

        Raises:
            NotFound: if one is unknown, or a handle is of another revision than the files.
            InvalidRequest: if a set belongs to another model.
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if one does not fit beside what is pinned; (OUT_OF_MEMORY).
            DataLoss: if files are corrupt, have changed, or fail their self-check.
            Unavailable: if a load failed for a reason that may pass, or the cache is closing.
        """
        async with AsyncExitStack() as pins:
            owner = self._registry.model_entry(model)
            entries = {ref: self._registry.autoencoder_entry(ref, owner.name) for ref in autoencoders}
            context = await pins.enter_async_context(self._pinned(owner, on_progress))
            self._registry.model_entry(model)  # again: now the digest, and with it the revision, is known
            sets: dict[str, AutoencoderContext] = {}
            for ref, entry in entries.items():
                loaded = await pins.enter_async_context(self._pinned(entry, on_progress))
                self._registry.autoencoder_entry(ref, owner.name)
                sets[ref] = cast("AutoencoderContext", loaded)
            lease = Lease(cast("ModelContext", context), sets)
            try:
                yield lease
            finally:
                lease.end()

    async def load(self, ref: str) -> AsyncGenerator[ContextStatus, None]:
        """Load a context and yield its status as it changes, AVAILABLE last; raises as `lease` does."""
        entry = self._registry.entry(ref)
        mailbox = Mailbox()

        def note(_progress: LoadProgress) -> None:
            mailbox.put(entry.name, self._slots[entry.name].status(self._clock()))

        async def wait() -> ContextStatus:
            try:
                async with self._pinned(entry, note):
                    self._registry.entry(ref)
                    status = self._slots[entry.name].status(self._clock())
                    return replace(status, pins=status.pins - 1)  # but for this pin, which is about to go
            finally:
                mailbox.close()

        waiter = asyncio.create_task(wait())
        try:
            async with aclosing(mailbox.take()) as statuses:
                async for status in statuses:
                    yield status
            yield await waiter
        finally:
            waiter.cancel()
            with suppress(asyncio.CancelledError, DstError):
                await waiter

    async def unload(self, ref: str) -> ContextStatus:
        """Unload a context and answer once its memory is free.

        Raises:
            NotFound: (CONTEXT_NOT_FOUND) if it is unknown or not loaded.
            PreconditionFailed: (CONTEXT_IN_USE) if somebody uses it or waits for it.
            Unavailable: if something outside the cache holds on to its memory.
        """
        entry = self._registry.entry(ref)
        slot = self._slots.get(entry.name)
        if slot is None or slot.state is ContextState.END:
            raise NotFound(
                f"{ref!r} is not loaded",
                resource_type="context",
                resource_name=ref,
                reason=Reason.CONTEXT_NOT_FOUND,
                metadata={"resource_type": "context", "resource_name": ref},
            )
        if slot.pins or slot.state is ContextState.LOADING:
            problem = f"{entry.name!r} is in use by {slot.pins} requests; try again when they are done"
            raise PreconditionFailed([FieldViolation("context", problem)], reason=Reason.CONTEXT_IN_USE)
        await self._release(slot)
        return slot.status(self._clock())

    def statuses(self) -> list[ContextStatus]:
        """Every context that is loaded, being loaded or unloaded, or failed to load; by handle."""
        now = self._clock()
        return sorted((slot.status(now) for slot in self._slots.values()), key=lambda status: status.handle)

    def status(self, ref: str) -> ContextStatus:
        """One context, in START if it is not in the cache; raises NotFound if it is unknown."""
        entry = self._registry.entry(ref)
        now = self._clock()
        return self._slots.get(entry.name, Slot(entry=entry, last_used=now)).status(now)

    def describe(self, info: _Info) -> _Info:
        """What the registry says of a context, brought up to date: its state, and what only loading it could tell."""
        slot = self._slots.get(info.name)
        if slot is None:
            return info
        context = slot.context
        if context is None:
            return replace(info, state=slot.state)
        known = replace(info, state=slot.state, handle=context.handle, digest=context.digest)
        if isinstance(known, AutoencoderInfo):
            return replace(known, measured=cast("AutoencoderContext", context).measured)
        return known

    async def watch(self) -> AsyncGenerator[ContextStatus, None]:
        """Every context now, then each that changes its state; a slow watcher gets the newest state of each."""
        mailbox = Mailbox()
        now = self._clock()
        for slot in sorted(self._slots.values(), key=lambda slot: slot.entry.name):
            mailbox.put(slot.entry.name, slot.status(now))
        if self._is_closing:
            mailbox.close()
        self._watchers.add(mailbox)
        try:
            async with aclosing(mailbox.take()) as statuses:
                async for status in statuses:
                    yield status
        finally:
            self._watchers.discard(mailbox)

    async def close(self) -> None:
        """Stop loads, unload what is idle and end every watch. Whoever still holds a lease keeps what it holds."""
        self._is_closing = True
        loads = [slot.load for slot in self._slots.values() if slot.load is not None]
        await asyncio.gather(*loads)
        for slot in [slot for slot in self._slots.values() if slot.is_idle]:
            self._begin_unload(slot)
        unloads = [slot.unload for slot in self._slots.values() if slot.unload is not None]
        if unloads:
            # Whoever keeps a context beyond its lease is not waited for: there will be no other use for the memory.
            _, stuck = await asyncio.wait(unloads, timeout=_CLOSE_SECONDS)
            for unload in stuck:
                unload.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        for mailbox in self._watchers:
            mailbox.close()

    @asynccontextmanager
    async def _pinned(self, entry: Entry, on_progress: OnLoadProgress | None = None) -> AsyncIterator[Context]:
        if self._is_closing:
            raise closing()
        slot = await self._slot(entry)
        slot.pins += 1
        try:
            yield await self._context(slot, on_progress)
        finally:
            slot.pins -= 1
            slot.last_used = self._clock()

    async def _slot(self, entry: Entry) -> Slot:
        """The slot of *entry*, once it is not being unloaded; nothing may be awaited between this and pinning it."""
        while True:
            slot = self._slots.get(entry.name)
            if slot is None:
                slot = self._slots[entry.name] = Slot(entry=entry, last_used=self._clock())
            if slot.unload is None:
                return slot
            await self._release(slot)

    async def _context(self, slot: Slot, on_progress: OnLoadProgress | None) -> Context:
        """The context of a pinned *slot*: there, or awaited from the load that is under way, or from one begun now."""
        slot.last_used = self._clock()
        if slot.context is not None:
            slot.hits += 1
            return slot.context
        if slot.load is None:
            slot.error = None
            slot.load = asyncio.create_task(self._load(slot))
            self._enter(slot, ContextState.LOADING)
        if on_progress is not None:
            slot.listeners.add(on_progress)
            on_progress(slot.progress())
        try:
            # Shielded: one who stops waiting must not stop the load for the others.
            outcome = await asyncio.shield(slot.load)
        finally:
            if on_progress is not None:
                slot.listeners.discard(on_progress)
        if isinstance(outcome, DstError):
            raise copied(outcome)
        return outcome

    async def _load(self, slot: Slot) -> Context | DstError:
        """Load what *slot* is for; a failure is returned, not raised, as there may be nobody left to hear it."""
        try:
            context = await self._read(slot)
        except Exception as error:  # noqa: BLE001  a load may fail in any way, and each must reach its waiters
            failure = translated(slot.entry, error)
            _log.warning("load failed context=%s reason=%s", slot.entry.name, failure.reason, exc_info=error)
            slot.load, slot.error = None, without_frames(failure)
            slot.bytes_loaded = slot.counted_bytes = 0
            self._enter(slot, ContextState.END)
            if isinstance(slot.entry, AutoencoderEntry) and slot.entry.is_anonymous:
                self._slots.pop(slot.entry.name, None)
            return failure
        slot.load, slot.context = None, context
        slot.bytes_loaded = slot.counted_bytes = context.parameter_bytes
        slot.last_used = self._clock()
        self._enter(slot, ContextState.AVAILABLE)
        return context

    async def _read(self, slot: Slot) -> Context:
        entry = slot.entry
        loop = asyncio.get_running_loop()

        def on_progress(done: int) -> None:  # on the loading thread
            if self._is_closing:
                raise closing()
            loop.call_soon_threadsafe(self._note_progress, slot, done)

        # Through a box: futures that cross threads form cycles, and would keep their result until a collection.
        box: list[Context] = []
        if isinstance(entry, AutoencoderEntry):
            async with self._pinned(entry.model) as model:
                await self._make_room(slot)
                await self._in_thread(_fill, box, self._loader.load_autoencoders, entry, model, on_progress)
        else:
            await self._make_room(slot)
            await self._in_thread(_fill, box, self._loader.load_model, entry, on_progress)
        return box.pop()

    def _note_progress(self, slot: Slot, done: int) -> None:
        slot.bytes_loaded = done
        for listener in tuple(slot.listeners):
            listener(slot.progress())

    async def _make_room(self, slot: Slot) -> None:
        """Put the bytes of *slot* on its account, unloading what is idle, longest unused first, until they fit.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they cannot fit; nothing is unloaded in vain.
        """
        needed = slot.entry.parameter_bytes
        async with self._room:
            while (excess := self._excess(needed)) > 0:
                leaving = [other for other in self._slots.values() if other.unload is not None]
                idle = [other for other in self._slots.values() if other.is_idle]
                idle.sort(key=lambda other: other.last_used)
                if sum(other.counted_bytes for other in leaving + idle) < excess:
                    raise does_not_fit(slot.entry, self._budget_bytes or 0, excess)
                await self._release((leaving + idle)[0])
            slot.counted_bytes = needed

    def _excess(self, needed: int) -> int:
        """Bytes that are over the budget once *needed* more are taken."""
        if self._budget_bytes is None:
            return 0
        counted = sum(slot.counted_bytes for slot in self._slots.values())
        return self._memory.used_bytes(counted) + needed - self._budget_bytes

    async def _release(self, slot: Slot) -> None:
        """Unload *slot*, or wait for the unload that is under way."""
        unload = slot.unload or self._begin_unload(slot)
        try:
            async with asyncio.timeout(self._release_seconds):
                await asyncio.shield(unload)
        except TimeoutError:
            raise still_held(slot.entry, self._release_seconds) from None

    def _begin_unload(self, slot: Slot) -> asyncio.Task[None]:
        slot.unload = asyncio.create_task(self._unload(slot))
        self._enter(slot, ContextState.UNLOADING)
        return slot.unload

    async def _unload(self, slot: Slot) -> None:
        """Drop the context and see its memory freed; until then it counts."""
        context, slot.context = slot.context, None
        if context is not None:
            gone = when_gone((context, *context.parts))
            del context
            await asyncio.sleep(0)  # usually that was the last reference, and the loop hears of it now
            if not gone.done():
                # A cycle may hold on, such as that of an exception with its frames. Costly, so only then.
                await self._in_thread(gc.collect)
            await gone
            await self._reclaim(slot)
        slot.counted_bytes = slot.bytes_loaded = 0
        slot.unload = None
        self._slots.pop(slot.entry.name, None)
        self._enter(slot, ContextState.END)

    async def _reclaim(self, slot: Slot) -> None:
        try:
            await self._in_thread(self._memory.reclaim)
        except RuntimeError:
            # A device in trouble must not leave the slot unloading for ever; the next load will say what is wrong.
            _log.exception("memory not reclaimed context=%s", slot.entry.name)

    async def _in_thread(self, work: Callable[..., object], *arguments: object) -> None:
        """Do *work* on a thread of its own, which ends with it.

        OpenMP keeps a pool of threads for every thread that ever computed, and several pools slow one another down:
        left alive, a loading thread would make each pass of the device's thread several times slower.
        """
        async with self._parallel:
            thread = ThreadPoolExecutor(1, thread_name_prefix="dst-load")
            try:
                await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
            finally:
                thread.shutdown(wait=False)

    def _enter(self, slot: Slot, state: ContextState) -> None:
        slot.state = state
        _log.info("context=%s state=%s bytes=%d", slot.entry.name, state, slot.entry.parameter_bytes)
        for mailbox in self._watchers:
            mailbox.put(slot.entry.name, slot.status(self._clock()))

    def __repr__(self) -> str:
        """What it holds, by name."""
        return f"ContextCache({', '.join(f'{name} {slot.state}' for name, slot in sorted(self._slots.items()))})"


def _fill(box: list[Context], load: Callable[..., Context], *arguments: object) -> None:
    """Put what *load* returns into *box*. No closure, whose variables would outlive a cleared frame."""
    box.append(load(*arguments))
