"""Slots: the cache's record of one context, and the small parts that its life is made of. No policy stands here."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.domain.resolution import ContextState, ContextStatus, LoadProgress

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.entries import Entry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.errors import DstError

    Context = ModelContext | AutoencoderContext
    OnLoadProgress = Callable[[LoadProgress], None]


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """One context's place in the cache.

    START -> LOADING -> AVAILABLE -> UNLOADING -> END
                |
                +-> END with an error, from where the next who wants it goes to LOADING again
    """

    entry: Entry
    """What it is."""
    last_used: float
    """When it was last wanted or let go, on the cache's clock."""
    state: ContextState = ContextState.START
    """Where in its life it is."""
    context: Context | None = None
    """The context itself; None unless AVAILABLE."""
    error: DstError | None = None
    """Why the last load failed; None unless END."""
    load: asyncio.Task[Context | DstError] | None = None
    """The one load that everybody waits for; None unless LOADING."""
    unload: asyncio.Task[None] | None = None
    """The unload that everybody waits for; None unless UNLOADING."""
    pins: int = 0
    """Those who use it or wait for it."""
    hits: int = 0
    """Times it was wanted and there."""
    bytes_loaded: int = 0
    """Bytes read so far."""
    counted_bytes: int = 0
    """Bytes of memory on its account: from before the load begins until the memory is free again."""
    listeners: set[OnLoadProgress] = field(default_factory=set)
    """Who wants to be told of its load's progress."""

    @property
    def is_idle(self) -> bool:
        """Whether it may be unloaded."""
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
            hits=self.hits,
            last_used_seconds_ago=max(0.0, now - self.last_used),
            error=self.error,
        )


class Mailbox:
    """What a watcher has not seen yet: the newest status of each context, however slow the watcher is."""

    def __init__(self) -> None:
        """Start empty and open."""
        self._newest: dict[str, ContextStatus] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, name: str, status: ContextStatus) -> None:
        """Leave the newest status of the context *name*."""
        self._newest.pop(name, None)
        self._newest[name] = status
        self._changed.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._changed.set()

    async def take(self) -> AsyncGenerator[ContextStatus, None]:
        """What is there and what comes, until it is closed."""
        while True:
            while self._newest:
                yield self._newest.pop(next(iter(self._newest)))
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()


def when_gone(objects: tuple[object, ...]) -> asyncio.Future[None]:
    """A future that is done once the last of *objects* has been freed. Keeps none of them alive."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    left = len(objects)

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left and not gone.done():
            gone.set_result(None)

    def on_any_thread() -> None:
        # Objects that outlive the loop have nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(one_less)

    for one in objects:
        weakref.finalize(one, on_any_thread).atexit = False
    return gone
