"""Context lifecycle: the records of the cache, and the states that each goes through.

    NOT_LOADED -> LOADING -> AVAILABLE -> UNLOADING -> NOT_LOADED
                   |   ^
                   v   |
                  FAILED

Only `Lifecycle` changes the records; any other transition raises Internal. It loads and frees nothing itself:
`transfers` does, and reports here. Not thread-safe: used on the event loop only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.domain.resolution import ContextState, ContextStatus, LoadProgress
from dst_grpc.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.entries import ContextEntry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.errors import DstError

    Context = ModelContext | AutoencoderContext
    OnLoadProgress = Callable[[LoadProgress], None]

_S = ContextState
_TRANSITIONS = {
    _S.NOT_LOADED: {_S.LOADING},
    _S.LOADING: {_S.AVAILABLE, _S.FAILED},
    _S.AVAILABLE: {_S.UNLOADING},
    _S.UNLOADING: {_S.NOT_LOADED},
    _S.FAILED: {_S.LOADING},
}
"""The states that may follow each state."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class CacheRecord:
    """What the cache knows of one context. Changed only by `Lifecycle`."""

    entry: ContextEntry
    """The model or autoencoder set."""
    last_used: float
    """Time of the last request or release, on the cache's clock."""
    state: ContextState = ContextState.NOT_LOADED
    """Its state."""
    entered: float = field(default=0.0, init=False)
    """Since when it is in its state, on the cache's clock."""
    context: Context | None = None
    """The context itself: AVAILABLE, and UNLOADING until it is dropped."""
    error: DstError | None = None
    """Why the last load failed; None unless FAILED."""
    pins: int = 0
    """Number of requests that use it or wait for it."""
    pinned: bool = False
    """Whether an operator pinned it: it stays loaded, used or not."""
    withdrawn: bool = False
    """Whether the registry no longer has it: it is unloaded once unused."""
    hits: int = 0
    """Number of requests that found it loaded."""
    bytes_loaded: int = 0
    """Bytes read so far."""
    counted_bytes: int = 0
    """Bytes that count against the budget: from before the load begins until the memory is free again."""
    listeners: set[OnLoadProgress] = field(default_factory=set)
    """Callbacks for the progress of its load."""

    def __post_init__(self) -> None:
        """A record is made when it is first used."""
        self.entered = self.last_used

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and unused."""
        return self.state is ContextState.AVAILABLE and not self.pins

    @property
    def is_evictable(self) -> bool:
        """Whether it may be unloaded to make room, or because it expired."""
        return self.is_idle and not self.pinned

    def progress(self) -> LoadProgress:
        """Progress of its load."""
        return LoadProgress(
            context=self.entry.handle or self.entry.name,
            bytes_done=self.bytes_loaded,
            bytes_total=self.entry.parameter_bytes,
        )

    def status(self, now: float) -> ContextStatus:
        """Its status for operators."""
        return ContextStatus(
            handle=self.entry.handle or self.entry.name,
            kind=self.entry.kind,
            state=self.state,
            bytes_total=self.entry.parameter_bytes,
            bytes_loaded=self.bytes_loaded,
            device=self.entry.device,
            pins=self.pins,
            pinned=self.pinned,
            hits=self.hits,
            idle_duration=max(0.0, now - self.last_used),
            error=self.error,
        )


class Lifecycle:
    """The records of all contexts that are in use, or whose state is not NOT_LOADED."""

    def __init__(self, clock: Callable[[], float], on_change: Callable[[ContextEntry, ContextStatus], None]) -> None:
        """Start without records.

        Args:
            clock: a monotonic clock, in seconds.
            on_change: called on each change of a state or a pin.
        """
        self._clock, self._on_change = clock, on_change
        self._records: dict[ContextEntry, CacheRecord] = {}
        self.n_changes = 0
        """How often a state has changed, or a context was dropped."""

    # What there is

    def records(self) -> list[CacheRecord]:
        """Every record. May be called on any thread."""
        return list(self._records.values())

    def find(self, entry: ContextEntry) -> CacheRecord | None:
        """The record of *entry*; None if there is none, and it is NOT_LOADED."""
        return self._records.get(entry)

    def counted_bytes(self, device: str) -> int:
        """Bytes that count for all contexts of *device* together. May be asked on any thread."""
        return sum(record.counted_bytes for record in self.records() if record.entry.device == device)

    def is_counted(self, entry: ContextEntry) -> bool:
        """Whether the bytes of *entry* count already, and are not about to be freed."""
        record = self._records.get(entry)
        return record is not None and record.counted_bytes > 0 and record.state is not ContextState.UNLOADING

    def evictable(self) -> list[CacheRecord]:
        """Contexts that may be unloaded, least recently used first."""
        found = [record for record in self._records.values() if record.is_evictable]
        return sorted(found, key=lambda record: record.last_used)

    def unloading(self) -> list[CacheRecord]:
        """Contexts that are being unloaded."""
        return [record for record in self._records.values() if record.state is ContextState.UNLOADING]

    # Who uses it

    def pin(self, entry: ContextEntry, *, offered: bool) -> CacheRecord:
        """Count one more user of *entry*, which is not UNLOADING; *offered* says whether the registry still has it.

        An entry that is pinned in the registry is pinned from its first user on.
        """
        record = self._records.get(entry)
        if record is None:
            pinned = entry.registered.is_pinned and offered
            record = CacheRecord(entry=entry, last_used=self._clock(), withdrawn=not offered, pinned=pinned)
            self._records[entry] = record
        if record.state is ContextState.UNLOADING:
            raise Internal(f"{entry.name} is wanted while it is being unloaded")
        record.pins += 1
        self.note_use(record)
        return record

    def note_use(self, record: CacheRecord) -> None:
        """A request uses it now."""
        record.hits += record.state is ContextState.AVAILABLE
        record.last_used = self._clock()

    def unpin(self, record: CacheRecord) -> None:
        """Count one user fewer; raises Internal if there is none."""
        if not record.pins:
            raise Internal(f"{record.entry.name} is let go by somebody who did not use it")
        record.pins -= 1
        record.last_used = self._clock()

    def set_pinned(self, record: CacheRecord, *, pinned: bool) -> None:
        """Pin or unpin it for an operator."""
        record.pinned = pinned
        self._tell(record)

    def withdraw(self, record: CacheRecord) -> None:
        """Note that the registry no longer has it: it is unpinned, and the record of a failed load is removed."""
        record.withdrawn, record.pinned = True, False
        if record.state is ContextState.FAILED:
            del self._records[record.entry]

    # Its states

    def begin_load(self, record: CacheRecord) -> None:
        """NOT_LOADED or FAILED -> LOADING."""
        self._enter(record, ContextState.LOADING)
        record.error = None
        self._tell(record)

    def reserve(self, record: CacheRecord) -> None:
        """Count its bytes, before loading begins."""
        record.counted_bytes = record.entry.parameter_bytes

    def note_progress(self, record: CacheRecord, bytes_loaded: int) -> None:
        """Note the bytes read so far, and call its listeners."""
        record.bytes_loaded = bytes_loaded
        for listener in tuple(record.listeners):
            listener(record.progress())

    def loaded(self, record: CacheRecord, context: Context) -> None:
        """LOADING -> AVAILABLE."""
        self._enter(record, ContextState.AVAILABLE)
        record.context = context
        record.bytes_loaded = record.counted_bytes = context.parameter_bytes
        record.last_used = self._clock()
        self._tell(record)

    def failed(self, record: CacheRecord, error: DstError) -> None:
        """LOADING -> FAILED, once none of it is left in memory.

        A context that is withdrawn, or was named by path, has no record afterwards.
        """
        self._enter(record, ContextState.FAILED)
        record.error = error
        record.bytes_loaded = record.counted_bytes = 0
        self._tell(record)
        if record.withdrawn or (isinstance(record.entry, AutoencoderEntry) and record.entry.is_named_by_path):
            del self._records[record.entry]

    def begin_unload(self, record: CacheRecord) -> None:
        """AVAILABLE -> UNLOADING; raises Internal if it is in use."""
        if record.pins:
            raise Internal(f"{record.entry.name} is unloaded while {record.pins} use it")
        self._enter(record, ContextState.UNLOADING)
        self._tell(record)

    def drop(self, record: CacheRecord) -> None:
        """Drop the reference to the context, which is UNLOADING; its bytes count until they are free."""
        if record.state is not ContextState.UNLOADING:
            raise Internal(f"{record.entry.name} is dropped while it is {record.state}")
        record.context = None
        self.n_changes += 1

    def unloaded(self, record: CacheRecord) -> None:
        """UNLOADING -> NOT_LOADED, once its memory is free; removes the record."""
        self._enter(record, ContextState.NOT_LOADED)
        record.counted_bytes = record.bytes_loaded = 0
        record.pinned = False
        del self._records[record.entry]
        self._tell(record)

    def _enter(self, record: CacheRecord, state: ContextState) -> None:
        if state not in _TRANSITIONS[record.state]:
            raise Internal(f"{record.entry.name} cannot be {state} after {record.state}")
        now, entry = self._clock(), record.entry
        fields = {
            "context": entry.name,
            "kind": entry.kind.value,
            "device": entry.device,
            "bytes": entry.parameter_bytes,
            "before": record.state.value,
            "before_millis": (now - record.entered) * 1000,
        }
        record.state, record.entered = state, now
        self.n_changes += 1
        _log.info("context %s", state.value, extra=fields)

    def _tell(self, record: CacheRecord) -> None:
        self._on_change(record.entry, record.status(self._clock()))
