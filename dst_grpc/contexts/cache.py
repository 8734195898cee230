"""ContextCache: leases on loaded contexts, and operators' access to the cache.

The public interface of three modules: `lifecycle` owns the records and states of all contexts, `budget` decides which
fit, and `transfers` loads and unloads. All state is used on the event loop only. The registry decides which contexts
exist.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from dst_grpc.contexts.budget import Budget
from dst_grpc.contexts.device import memory_of
from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.contexts.failures import is_in_use, is_pinned, not_loaded
from dst_grpc.contexts.lease import Lease
from dst_grpc.contexts.lifecycle import CacheRecord, Lifecycle
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.transfers import Transfers
from dst_grpc.contexts.watches import Mailbox, Watches
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.readings import ContextsReading
from dst_grpc.domain.resolution import AutoencoderInfo, ContextState, ContextStatus, LoadProgress, ModelInfo
from dst_grpc.errors import DstError, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.device import DeviceMemory
    from dst_grpc.contexts.entries import ContextEntry, ModelEntry
    from dst_grpc.contexts.lifecycle import OnLoadProgress
    from dst_grpc.contexts.loading import Loader
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.resolution import RegistryChange
    from dst_grpc.domain.work import OnLoad

_RELEASE_SECONDS = 30.0
_Info = TypeVar("_Info", ModelInfo, AutoencoderInfo)


class ContextCache:
    """The contexts that are loaded.

    A context is loaded once however many requests need it; different contexts load in parallel. A context in use is
    pinned, so it is not unloaded.
    """

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
            registry: the contexts that may be loaded.
            budget_bytes: bytes that loaded contexts may take together on a device; None = no limit.
            ttl_seconds: how long a context may be idle before it is unloaded; None = for ever.
            loader: loads contexts; None = from files.
            memory: the memory of a device.
            clock: a monotonic clock, in seconds.
            sleep: waits for a number of seconds.
            release_seconds: how long to wait for the memory of an unloaded context that is still referenced.
        """
        self._registry = registry
        self._clock = clock
        self._watches = Watches()
        self._lifecycle = Lifecycle(clock, self._watches.tell)
        self._budget = Budget(self._lifecycle, memory, budget_bytes)
        self._transfers = Transfers(
            self._lifecycle,
            self._budget,
            loader or FileLoader(),
            is_offered=self._is_offered,
            ttl_seconds=ttl_seconds,
            release_seconds=release_seconds,
            clock=clock,
            sleep=sleep,
        )

    @property
    def registry(self) -> Registry:
        """The current registry."""
        return self._registry

    def adopt(self, registry: Registry) -> RegistryChange:
        """Use *registry* from now on; contexts that it does not have are unloaded once unused."""
        previous, self._registry = self._registry, registry
        for record in self._lifecycle.records():
            if not registry.holds(record.entry):
                self._lifecycle.withdraw(record)
                self._transfers.settle(record)
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
            model: an entry of the cache's registry, or of a former one.
            autoencoders: sets of *model*.
            handles: the handles that a client used for any of these. They are checked after loading, as the digest of
                the files may not be known before.
            on_progress: called with the progress of loads that this waits for.

        Raises:
            NotFound: if one of *handles* is of another revision than the files.
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they do not fit beside the pinned contexts, raised before anything is
                loaded unless one is pinned meanwhile; (OUT_OF_MEMORY).
            DataLoss: if files are corrupt, have changed, or fail their self-check.
            Unavailable: if a load failed for a reason that may pass, or the cache is closing.
        """
        async with AsyncExitStack() as holds:
            entries = list(dict.fromkeys(autoencoders))
            self._budget.check([model, *entries])
            context = await holds.enter_async_context(self._transfers.held(model, on_progress))
            sets: dict[str, AutoencoderContext] = {}
            for entry in entries:
                loaded = await holds.enter_async_context(self._transfers.held(entry, on_progress))
                sets[entry.name] = cast("AutoencoderContext", loaded)
            lease = Lease(cast("ModelContext", context), sets)
            try:
                lease.check(handles)
                yield lease
            finally:
                lease.end()

    def use_loaded(self, entries: Sequence[ContextEntry]) -> bool:
        """Whether all of *entries* are loaded; if so, each has had one more request."""
        records = [self._lifecycle.find(entry) for entry in entries]
        found = [record for record in records if record is not None and record.state is ContextState.AVAILABLE]
        if len(found) < len(entries):
            return False
        for record in found:
            self._lifecycle.note_use(record)
        return True

    async def load(self, ref: str, *, pin: bool = False) -> AsyncGenerator[ContextStatus, None]:
        """Load a context and yield its status as it changes, AVAILABLE last.

        With *pin*, it stays loaded until `unpin`, used or not.

        Raises:
            NotFound: if it is unknown.
            DstError: as `lease` does.
        """
        entry = self._registry.entry(ref)
        mailbox = Mailbox()

        def note(_progress: LoadProgress) -> None:
            mailbox.put(entry, self._record(entry).status(self._clock()))

        async def wait() -> ContextStatus:
            try:
                self._budget.check([entry.model, entry] if isinstance(entry, AutoencoderEntry) else [entry])
                async with self._transfers.held(entry, note):
                    entry.check_answers_to(ref, "context", Reason.CONTEXT_NOT_FOUND)  # its digest is known now
                    record = self._record(entry)
                    if pin:
                        self._lifecycle.set_pinned(record, pinned=True)
                    status = record.status(self._clock())
                    return replace(status, pins=status.pins - 1)  # except for this pin, which is about to be removed
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
        """Unpin a context, so that it can be evicted or expire; raises NotFound if it is not loaded."""
        record = self._loaded(ref)
        if record.pinned:
            self._lifecycle.set_pinned(record, pinned=False)
            self._transfers.settle(record)
        return record.status(self._clock())

    async def unload(self, ref: str) -> ContextStatus:
        """Unload a context; returns once its memory is free.

        Raises:
            NotFound: (CONTEXT_NOT_FOUND) if it is unknown or not loaded.
            PreconditionFailed: (CONTEXT_IN_USE) if a request uses it or waits for it; (CONTEXT_PINNED).
            Unavailable: if its memory is still referenced outside the cache.
        """
        record = self._loaded(ref)
        if record.pins or record.state is ContextState.LOADING:
            raise is_in_use(record.entry, record.pins)
        if record.pinned:
            raise is_pinned(record.entry)
        await self._transfers.release(record)
        return record.status(self._clock())

    def statuses(self) -> list[ContextStatus]:
        """Every context that is loaded, being loaded or unloaded, or failed to load; by handle."""
        now = self._clock()
        return sorted((record.status(now) for record in self._lifecycle.records()), key=lambda status: status.handle)

    def status(self, ref: str) -> ContextStatus:
        """One context, NOT_LOADED if it is not in the cache; raises NotFound if it is unknown."""
        failed = self._registry.failure(ref)
        if failed is not None:
            return failed.status()
        return self._record(self._registry.entry(ref)).status(self._clock())

    @property
    def version(self) -> object:
        """While it is the same, so is what `describe` gives."""
        return self._registry, self._lifecycle.n_changes

    def describe(self, info: _Info) -> _Info:
        """*info* of the registry, with the context's state and what only loading determines: handle, digest, figures,
        error."""
        if info.error is not None:  # it cannot be loaded
            return info
        try:
            record = self._lifecycle.find(self._registry.entry(info.name))
        except DstError:  # the registry has changed since
            return info
        if record is None:
            return info
        context = record.context
        if context is None:
            return replace(info, state=record.state, error=record.error)
        known = replace(info, state=record.state, handle=context.handle, digest=context.digest)
        if isinstance(known, AutoencoderInfo):
            return replace(known, measured=cast("AutoencoderContext", context).measured)
        return known

    def readings(self) -> ContextsReading:
        """How many contexts are in each state, and what they take. May be called on any thread."""
        registered, records = self._registry.registered(), self._lifecycle.records()
        known = [record for record in records if registered.get(record.entry.name) is record.entry]
        states = Counter(record.state for record in records)
        states[ContextState.FAILED] += len(self._registry.failed)
        states[ContextState.NOT_LOADED] += len(registered) - len(known)
        return ContextsReading(
            by_state={state.value: states[state] for state in ContextState},
            bytes_of={record.entry.name: record.counted_bytes for record in known if record.counted_bytes},
            memory=tuple(
                reading
                for device in sorted({record.entry.device for record in records})
                for reading in self._budget.readings(device)
            ),
        )

    def observe(self, observer: OnLoad) -> None:
        """From now on, tell *observer* what was loaded."""
        self._transfers.observers.append(observer)

    async def watch(self) -> AsyncGenerator[ContextStatus, None]:
        """Every context now, then each that changes its state; a slow watcher gets the latest state of each."""
        now = self._clock()
        records = sorted(self._lifecycle.records(), key=lambda record: record.entry.name)
        async with aclosing(self._watches.watch((record.entry, record.status(now)) for record in records)) as statuses:
            async for status in statuses:
                yield status

    async def close(self) -> None:
        """Stop loads, unload idle contexts and end every watch. Open leases keep their contexts."""
        await self._transfers.close()
        self._watches.close()

    def _is_offered(self, entry: ContextEntry) -> bool:
        return self._registry.holds(entry)

    def _record(self, entry: ContextEntry) -> CacheRecord:
        """The record of *entry*; a new one, which is not kept, if there is none."""
        return self._lifecycle.find(entry) or CacheRecord(entry=entry, last_used=self._clock())

    def _loaded(self, ref: str) -> CacheRecord:
        """The record of a context that is loaded, loading or unloading, also by a handle that left the registry."""
        try:
            record = self._lifecycle.find(self._registry.entry(ref))
        except NotFound:
            parsed = ContextRef.parse(ref)
            records = self._lifecycle.records() if parsed.is_handle else []
            record = next((record for record in records if record.entry.answers_to(parsed)), None)
        if record is None or record.state is ContextState.FAILED:
            raise not_loaded(ref)
        return record

    def __repr__(self) -> str:
        """Its contexts, by name."""
        records = sorted(f"{record.entry.name} {record.state}" for record in self._lifecycle.records())
        return f"ContextCache({', '.join(records)})"
