"""Slots: the cache's record of one context. No policy stands here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.domain.resolution import ContextState, ContextStatus, LoadProgress

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.entries import Entry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.errors import DstError

    Context = ModelContext | AutoencoderContext
    OnLoadProgress = Callable[[LoadProgress], None]


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """One context's place in the cache.

    NOT_LOADED -> LOADING -> AVAILABLE -> UNLOADING -> NOT_LOADED
                     |
                     +-> FAILED with an error, from where the next who wants it goes to LOADING again
    """

    entry: Entry
    """What it is."""
    last_used: float
    """When it was last wanted or let go, on the cache's clock."""
    state: ContextState = ContextState.NOT_LOADED
    """Where in its life it is."""
    context: Context | None = None
    """The context itself; None unless AVAILABLE."""
    error: DstError | None = None
    """Why the last load failed; None unless FAILED."""
    load: asyncio.Task[Context | DstError] | None = None
    """The one load that everybody waits for; None unless LOADING."""
    unload: asyncio.Task[None] | None = None
    """The unload that everybody waits for; None unless UNLOADING."""
    pins: int = 0
    """Those who use it or wait for it."""
    is_kept: bool = False
    """Whether an operator pinned it: it stays, used or not."""
    is_replaced: bool = False
    """Whether the registry offers it no more: it goes once nobody uses it."""
    hits: int = 0
    """Times it was wanted and there."""
    bytes_loaded: int = 0
    """Bytes read so far."""
    counted_bytes: int = 0
    """Bytes of memory on its account: from before the load begins until the memory is free again."""
    listeners: set[OnLoadProgress] = field(default_factory=set)
    """Who wants to be told of its load's progress."""

    @property
    def may_go(self) -> bool:
        """Whether it may be unloaded to make room, or because its time is up."""
        return self.is_idle and not self.is_kept

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody uses it."""
        return self.state is ContextState.AVAILABLE and not self.pins

    def progress(self) -> LoadProgress:
        """How far its load is."""
        return LoadProgress(
            context=self.entry.handle or self.entry.name,
            bytes_done=self.bytes_loaded,
            bytes_total=self.entry.parameter_bytes,
        )

    def status(self, now: float) -> ContextStatus:
        """What operators see."""
        return ContextStatus(
            handle=self.entry.handle or self.entry.name,
            kind=self.entry.kind,
            state=self.state,
            bytes_total=self.entry.parameter_bytes,
            bytes_loaded=self.bytes_loaded,
            device=self.entry.device,
            pins=self.pins,
            pinned=self.is_kept,
            hits=self.hits,
            idle_duration=max(0.0, now - self.last_used),
            error=self.error,
        )
