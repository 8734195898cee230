"""ContextCache: what is loaded, who uses it, and what has to go to make room.

Of those who want the same context one loads it and all get it; different ones load in parallel. A context in use is
pinned and stays. All state is touched on the event loop only; loads and the freeing of memory run on threads. Which
contexts there are is the registry's to say, and how one is read the loader's.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from dst_grpc.contexts.budget import Budget
from dst_grpc.contexts.device import memory_of
from dst_grpc.contexts.entries import AutoencoderEntry, Entry
from dst_grpc.contexts.expiry import Expiry
from dst_grpc.contexts.failures import closing, copied, is_in_use, is_pinned, not_loaded
from dst_grpc.contexts.lease import Lease
from dst_grpc.contexts.lives import Lives
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.slots import Slot
from dst_grpc.contexts.threads import Threads
from dst_grpc.contexts.watches import Mailbox, Watches
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.resolution import AutoencoderInfo, ContextState, ContextStatus, LoadProgress, ModelInfo
from dst_grpc.errors import DstError, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.device import DeviceMemory
    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.loading import Loader
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.contexts.slots import Context, OnLoadProgress
    from dst_grpc.domain.resolution import RegistryChange

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
        ttl_seconds: float | None = None,
        loader: Loader | None = None,
        memory: Callable[[str], DeviceMemory] = memory_of,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        release_seconds: float = _RELEASE_SECONDS,
    ) -> None:
        """Start empty.

        Args:
            registry: what may be loaded.
            budget_bytes: bytes that loaded contexts may take together on a device; None = no limit.
            ttl_seconds: how long a context may be idle before it is unloaded; None = for ever.
            loader: reads what is not loaded; None = from files.
            memory: of a device.
            clock: seconds, from any beginning.
            sleep: waits for a number of seconds.
            release_seconds: how long to wait for the memory of an unloaded context that somebody still holds.
        """
        self._registry = registry
        self._loader = loader or FileLoader()
        self._clock = clock
        self._slots: dict[Entry, Slot] = {}
        self._watches = Watches()
        self._threads = Threads("dst-load", at_once=_MAX_PARALLEL_LOADS)
        self._budget = Budget(self._slots, memory, budget_bytes)
        self._lives = Lives(
            self._slots, self._budget, self._threads, self._watches, clock=clock, release_seconds=release_seconds
        )
        self._expiry = Expiry(ttl_seconds, self._may_go, self._lives.begin_unload, clock=clock, sleep=sleep)
        self._is_closing = False

    @property
    def registry(self) -> Registry:
        """What may be loaded now."""
        return self._registry

    def adopt(self, registry: Registry) -> RegistryChange:
        """From now on, load what *registry* says; what it does not hold goes as soon as nobody uses it."""
        previous, self._registry = self._registry, registry
        for slot in list(self._slots.values()):
            if not registry.holds(slot.entry):
                slot.is_replaced, slot.is_kept = True, False
                self._look_at(slot)
                if slot.state is ContextState.FAILED:
                    self._slots.pop(slot.entry, None)
        return registry.change_from(previous)

    @asynccontextmanager
    async def lease(
        self,
        model: ModelEntry,
        autoencoders: Iterable[AutoencoderEntry] = (),
        *,
        handles: Iterable[str] = (),
        on_progress: OnLoadProgress | None = None,
    ) -> AsyncIterator[Lease]:
        """Hold a model and its autoencoder sets, loading what is not loaded yet.

        Args:
            model: of the registry that this cache has, or one that it had.
            autoencoders: of *model*.
            handles: those by which a client named any of these. A registry takes them for good while the digest of the
                files is not known; loading tells it.
            on_progress: told of the progress of loads that this waits for.

        Raises:
            NotFound: if one of *handles* is of another revision than the files.
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they do not fit beside what is pinned, known before anything is
                loaded unless it is pinned meanwhile; (OUT_OF_MEMORY).
            DataLoss: if files are corrupt, have changed, or fail their self-check.
            Unavailable: if a load failed for a reason that may pass, or the cache is closing.
        """
        async with AsyncExitStack() as pins:
            entries = list(autoencoders)
            self._budget.check([model, *entries])
            context = await pins.enter_async_context(self._pinned(model, on_progress))
            sets: dict[str, AutoencoderContext] = {}
            for entry in entries:
                loaded = await pins.enter_async_context(self._pinned(entry, on_progress))
                sets[entry.name] = cast("AutoencoderContext", loaded)
            lease = Lease(cast("ModelContext", context), sets)
            try:
                lease.check(handles)
                yield lease
            finally:
                lease.end()

    async def load(self, ref: str, *, pin: bool = False) -> AsyncGenerator[ContextStatus, None]:
        """Load a context and yield its status as it changes, AVAILABLE last; raises as `lease` does.

        With *pin*, it stays loaded until `unpin`, whether anybody uses it or not.
        """
        entry = self._registry.entry(ref)
        mailbox = Mailbox()

        def note(_progress: LoadProgress) -> None:
            mailbox.put(entry, self._slots[entry].status(self._clock()))

        async def wait() -> ContextStatus:
            try:
                self._budget.check([entry.model, entry] if isinstance(entry, AutoencoderEntry) else [entry])
                async with self._pinned(entry, note):
                    entry.check_answers_to(ref, "context", Reason.CONTEXT_NOT_FOUND)  # now that its digest is known
                    slot = self._slots[entry]
                    if pin:
                        self._keep(slot, kept=True)
                    status = slot.status(self._clock())
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

    def unpin(self, ref: str) -> ContextStatus:
        """Let a context that was loaded with `pin` go when its time comes; raises NotFound if it is not loaded."""
        slot = self._loaded(ref)
        if slot.is_kept:
            self._keep(slot, kept=False)
            self._look_at(slot)
        return slot.status(self._clock())

    async def unload(self, ref: str) -> ContextStatus:
        """Unload a context and answer once its memory is free.

        Raises:
            NotFound: (CONTEXT_NOT_FOUND) if it is unknown or not loaded.
            PreconditionFailed: (CONTEXT_IN_USE) if somebody uses it or waits for it; (CONTEXT_PINNED).
            Unavailable: if something outside the cache holds on to its memory.
        """
        slot = self._loaded(ref)
        if slot.pins or slot.state is ContextState.LOADING:
            raise is_in_use(slot.entry, slot.pins)
        if slot.is_kept:
            raise is_pinned(slot.entry)
        await self._lives.release(slot)
        return slot.status(self._clock())

    def statuses(self) -> list[ContextStatus]:
        """Every context that is loaded, being loaded or unloaded, or failed to load; by handle."""
        now = self._clock()
        return sorted((slot.status(now) for slot in self._slots.values()), key=lambda status: status.handle)

    def status(self, ref: str) -> ContextStatus:
        """One context, NOT_LOADED if it is not in the cache; raises NotFound if it is unknown."""
        entry = self._registry.entry(ref)
        now = self._clock()
        return self._slots.get(entry, Slot(entry=entry, last_used=now)).status(now)

    def describe(self, info: _Info) -> _Info:
        """What the registry says of a context, brought up to date: its state, and what only loading it could tell."""
        try:
            slot = self._slots.get(self._registry.entry(info.name))
        except NotFound:  # the registry changed since
            return info
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
        now = self._clock()
        slots = sorted(self._slots.values(), key=lambda slot: slot.entry.name)
        async with aclosing(self._watches.watch((slot.entry, slot.status(now)) for slot in slots)) as statuses:
            async for status in statuses:
                yield status

    async def close(self) -> None:
        """Stop loads, unload what is idle and end every watch. Whoever still holds a lease keeps what it holds."""
        self._is_closing = True
        await self._expiry.close()
        loads = [slot.load for slot in self._slots.values() if slot.load is not None]
        await asyncio.gather(*loads)
        for slot in [slot for slot in self._slots.values() if slot.is_idle]:
            self._lives.begin_unload(slot)
        unloads = [slot.unload for slot in self._slots.values() if slot.unload is not None]
        if unloads:
            # Whoever keeps a context beyond its lease is not waited for: there will be no other use for the memory.
            _, stuck = await asyncio.wait(unloads, timeout=_CLOSE_SECONDS)
            for unload in stuck:
                unload.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        self._watches.close()

    def _loaded(self, ref: str) -> Slot:
        """The slot of what is loaded, or on its way in or out; also of a handle that the registry knows no more."""
        try:
            slot = self._slots.get(self._registry.entry(ref))
        except NotFound:
            parsed = ContextRef.parse(ref)
            replaced = [slot for slot in self._slots.values() if parsed.is_handle and slot.entry.answers_to(parsed)]
            slot = replaced[0] if replaced else None
        if slot is None or slot.state is ContextState.FAILED:
            raise not_loaded(ref)
        return slot

    def _may_go(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.may_go]

    def _keep(self, slot: Slot, *, kept: bool) -> None:
        slot.is_kept = kept
        self._watches.tell(slot.entry, slot.status(self._clock()))

    def _look_at(self, slot: Slot) -> None:
        """See whether *slot* has to go now, or some time."""
        if slot.is_replaced and slot.is_idle:
            self._lives.begin_unload(slot)
        elif slot.may_go:
            self._expiry.look()

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
            if not slot.pins:
                self._look_at(slot)

    async def _slot(self, entry: Entry) -> Slot:
        """The slot of *entry*, once it is not being unloaded; nothing may be awaited between this and pinning it."""
        while True:
            slot = self._slots.get(entry)
            if slot is None:
                is_replaced = not self._registry.holds(entry)
                slot = Slot(entry=entry, last_used=self._clock(), is_replaced=is_replaced)
                slot.is_kept = entry.registered.is_pinned and not is_replaced
                self._slots[entry] = slot
            if slot.unload is None:
                return slot
            await self._lives.release(slot)

    async def _context(self, slot: Slot, on_progress: OnLoadProgress | None) -> Context:
        """The context of a pinned *slot*: there, or awaited from the load that is under way, or from one begun now."""
        slot.last_used = self._clock()
        if slot.context is not None:
            slot.hits += 1
            return slot.context
        load = slot.load
        if load is None:
            load = self._lives.begin_load(slot, self._read)
            # Those who wait may all be gone by the time it is there.
            load.add_done_callback(lambda _: self._look_at(slot))
        if on_progress is not None:
            slot.listeners.add(on_progress)
            on_progress(slot.progress())
        try:
            # Shielded: one who stops waiting must not stop the load for the others.
            outcome = await asyncio.shield(load)
        finally:
            if on_progress is not None:
                slot.listeners.discard(on_progress)
        if isinstance(outcome, DstError):
            raise copied(outcome)
        return outcome

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
                await self._lives.make_room(slot)
                await self._threads.run(_fill, box, self._loader.load_autoencoders, entry, model, on_progress)
        else:
            await self._lives.make_room(slot)
            await self._threads.run(_fill, box, self._loader.load_model, entry, on_progress)
        return box.pop()

    def _note_progress(self, slot: Slot, done: int) -> None:
        slot.bytes_loaded = done
        for listener in tuple(slot.listeners):
            listener(slot.progress())

    def __repr__(self) -> str:
        """What it holds, by name."""
        return f"ContextCache({', '.join(sorted(f'{slot.entry.name} {slot.state}' for slot in self._slots.values()))})"


def _fill(box: list[Context], load: Callable[..., Context], *arguments: object) -> None:
    """Put what *load* returns into *box*. No closure, whose variables would outlive a cleared frame."""
    box.append(load(*arguments))
