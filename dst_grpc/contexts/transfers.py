"""Transfers: the tasks that load contexts on demand, and unload others to make room.

At most one load or unload of a context is in progress, and all who need its result wait for the same task. `lifecycle`
keeps the states, and `budget` decides what fits. Used on the event loop; blocking work runs on threads.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, cast

from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
from dst_grpc.contexts.expiry import Expiry
from dst_grpc.contexts.failures import closing, copied, still_held, translated
from dst_grpc.contexts.memory_release import when_released
from dst_grpc.contexts.threads import ShortThreads
from dst_grpc.domain.resolution import ContextState
from dst_grpc.domain.work import LoadDone
from dst_grpc.errors import DstError, Unavailable
from dst_grpc.failures import failure_of, without_frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dst_grpc.contexts.budget import Budget
    from dst_grpc.contexts.entries import ContextEntry
    from dst_grpc.contexts.lifecycle import CacheRecord, Context, Lifecycle, OnLoadProgress
    from dst_grpc.contexts.loading import Loader
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.work import OnLoad

_MAX_PARALLEL = 4
_CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Transfers:
    """Loads and unloads the contexts of *lifecycle*."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        budget: Budget,
        loader: Loader,
        *,
        is_offered: Callable[[ContextEntry], bool],
        ttl_seconds: float | None,
        release_seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """Start without tasks.

        Args:
            lifecycle: the records.
            budget: decides which contexts fit.
            loader: loads contexts.
            is_offered: whether the registry still has an entry.
            ttl_seconds: how long a context may be idle before it is unloaded; None = for ever.
            release_seconds: how long to wait for the memory of an unloaded context that is still referenced.
            clock: a monotonic clock, in seconds.
            sleep: waits for a number of seconds.
        """
        self._lifecycle, self._budget, self._loader = lifecycle, budget, loader
        self._is_offered = is_offered
        self._release_seconds = release_seconds
        self._threads = ShortThreads("dst-load", at_once=_MAX_PARALLEL)
        self._expiry = Expiry(ttl_seconds, lifecycle.evictable, self.begin_unload, clock=clock, sleep=sleep)
        self._loads: dict[CacheRecord, asyncio.Task[Context | DstError]] = {}
        self._unloads: dict[CacheRecord, asyncio.Task[None]] = {}
        # One load at a time makes room on a device, or two would rely on the same bytes. The loads run in parallel.
        self._making_room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._is_closing = False
        self._clock = clock
        self.observers: list[OnLoad] = []
        """Told of what was loaded."""

    @asynccontextmanager
    async def held(self, entry: ContextEntry, on_progress: OnLoadProgress | None = None) -> AsyncIterator[Context]:
        """The context of *entry*, loaded if necessary, and not unloaded within the block.

        Raises:
            DstError: as `ContextCache.lease` does.
        """
        record = await self._pinned(entry)
        try:
            yield await self._context(record, on_progress)
        finally:
            self._lifecycle.unpin(record)
            if not record.pins:
                self.settle(record)

    def settle(self, record: CacheRecord) -> None:
        """Unload *record* now if it is withdrawn and idle; else let it expire, if it may."""
        if record.withdrawn and record.is_idle:
            self.begin_unload(record)
        elif record.is_evictable:
            self._expiry.look()

    def begin_unload(self, record: CacheRecord) -> asyncio.Task[None]:
        """Unload *record*, which is idle."""
        self._lifecycle.begin_unload(record)
        self._unloads[record] = asyncio.create_task(self._unload(record))
        return self._unloads[record]

    async def release(self, record: CacheRecord) -> None:
        """Unload *record*, or wait for its unload in progress; raises Unavailable if it takes too long."""
        unload = self._unloads.get(record) or self.begin_unload(record)
        try:
            async with asyncio.timeout(self._release_seconds):
                await asyncio.shield(unload)
        except TimeoutError:
            raise still_held(record.entry, self._release_seconds) from None

    async def close(self) -> None:
        """Stop loads and unload idle contexts."""
        self._is_closing = True
        await self._expiry.close()
        await asyncio.gather(*self._loads.values())
        for record in self._lifecycle.records():
            if record.is_idle:
                self.begin_unload(record)
        if self._unloads:
            # References outside leases are not waited for: the memory is not needed any more.
            _, stuck = await asyncio.wait(self._unloads.values(), timeout=_CLOSE_SECONDS)
            for unload in stuck:
                unload.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    async def _pinned(self, entry: ContextEntry) -> CacheRecord:
        """The record of *entry*, pinned once it is not being unloaded."""
        if self._is_closing:
            raise closing()
        while (record := self._lifecycle.find(entry)) is not None and record.state is ContextState.UNLOADING:
            await self.release(record)
        return self._lifecycle.pin(entry, offered=self._is_offered(entry))

    async def _context(self, record: CacheRecord, on_progress: OnLoadProgress | None) -> Context:
        """The context of a pinned *record*: as loaded, or from the load in progress, or from one begun now."""
        if record.context is not None:
            return record.context
        load = self._loads.get(record) or self._begin_load(record)
        if on_progress is not None:
            record.listeners.add(on_progress)
            on_progress(record.progress())
        try:
            # Shielded: cancelling one waiter must not stop the load for the others.
            outcome = await asyncio.shield(load)
        finally:
            if on_progress is not None:
                record.listeners.discard(on_progress)
        if isinstance(outcome, DstError):
            raise copied(outcome)
        return outcome

    def _begin_load(self, record: CacheRecord) -> asyncio.Task[Context | DstError]:
        self._lifecycle.begin_load(record)
        load = self._loads[record] = asyncio.create_task(self._load(record))
        # All waiters may have been cancelled by the time it is loaded.
        load.add_done_callback(lambda _: self.settle(record))
        return load

    async def _load(self, record: CacheRecord) -> Context | DstError:
        """Load *record*; an error is returned, not raised, as there may be no waiter left."""
        try:
            context = await self._read(record)
        except BaseException as error:  # noqa: BLE001  a load may fail in any way, and each must reach its waiters
            failure = translated(record.entry, failure_of(error))
            fields = {"context": record.entry.name, "reason": failure.reason.value}
            _log.warning("load failed", exc_info=error, extra=fields)
            without_frames(failure)
        else:
            del self._loads[record]
            self._lifecycle.loaded(record, context)
            return context
        # Of the tensors loaded so far only reference cycles and allocators' caches may be left; the bytes count until
        # those are freed.
        if record.counted_bytes:
            await self._threads.run(gc.collect)
            await self._reclaim(record.entry)
        del self._loads[record]
        self._lifecycle.failed(record, failure)
        return failure

    async def _read(self, record: CacheRecord) -> Context:
        entry = record.entry
        loop = asyncio.get_running_loop()

        def on_progress(done: int) -> None:  # on the loading thread
            if self._is_closing:
                raise closing()
            loop.call_soon_threadsafe(self._lifecycle.note_progress, record, done)

        if isinstance(entry, AutoencoderEntry):
            async with self.held(entry.model) as model:
                await self._make_room(record)
                with self._timed(entry.model):
                    load = self._loader.load_autoencoders
                    return await self._threads.run(load, entry, cast("ModelContext", model), on_progress)
        await self._make_room(record)
        model_entry = cast("ModelEntry", entry)
        with self._timed(model_entry):
            return await self._threads.run(self._loader.load_model, model_entry, on_progress)

    @contextmanager
    def _timed(self, model: ModelEntry) -> Iterator[None]:
        """Tell observers how long the block took, unless it fails: it loads *model*, or a set of it."""
        started = self._clock()
        yield
        done = LoadDone(model=model.name, device=model.device, seconds=self._clock() - started)
        for observer in self.observers:
            observer(done)

    async def _make_room(self, record: CacheRecord) -> None:
        """Evict idle contexts, least recently used first, until the bytes of *record* fit; then count them.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they cannot fit.
            Unavailable: (CONTEXT_IN_USE) if an unloaded context is still referenced outside the cache.
        """
        async with self._making_room[record.entry.device]:
            stuck: dict[CacheRecord, Unavailable] = {}
            while other := self._next_to_go(record, stuck):
                try:
                    await self.release(other)
                except Unavailable as error:
                    stuck[other] = error
            self._lifecycle.reserve(record)

    def _next_to_go(self, record: CacheRecord, stuck: dict[CacheRecord, Unavailable]) -> CacheRecord | None:
        """As `Budget.next_to_go`, but if evicting stuck contexts would have been enough, raise why they are stuck."""
        try:
            return self._budget.next_to_go(record, stuck)
        except Exception as refusal:
            if not stuck:
                raise
            raise next(iter(stuck.values())) from refusal

    async def _unload(self, record: CacheRecord) -> None:
        """Drop the context and wait until its memory is free; until then it counts."""
        released = when_released(cast("Context", record.context))
        self._lifecycle.drop(record)
        await asyncio.sleep(0)  # usually that was the last reference, and the loop is notified now
        if not released.done():
            # A reference cycle may remain, such as that of an exception with its frames. Collecting is costly, so only
            # then.
            await self._threads.run(gc.collect)
        await released
        await self._reclaim(record.entry)
        del self._unloads[record]
        self._lifecycle.unloaded(record)

    async def _reclaim(self, entry: ContextEntry) -> None:
        try:
            await self._threads.run(self._budget.memory(entry.device).reclaim)
        except RuntimeError:
            # A device error must not leave the context unloading for ever; the next load will report it.
            _log.exception("memory not reclaimed", extra={"context": entry.name})
