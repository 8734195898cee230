"""The attribution graphs that are kept for later questions, in main memory.

A graph belongs to the caller who asked for it; if recordings are shared, graphs are too. When the budget is spent, the
caller of whom most is kept loses what it used least recently, so that nobody can have others' graphs dropped by asking
for many; and each graph is dropped when nobody has used it for a while. Used on the event loop only; a graph that a
query uses stays alive until the query ends.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from dst_grpc.contexts.sweeps import Sweeps, Timer
from dst_grpc.domain.graph_answers import MAX_PROMPT_CHARACTERS, KeptGraph
from dst_grpc.errors import Exhausted, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.domain.callers import Caller
    from dst_grpc.pipeline.whole_graph import WholeGraph

DEFAULT_KEPT_GRAPH_BYTES = 512 << 20
DEFAULT_KEPT_GRAPH_SECONDS = 3600.0


@dataclass(slots=True, eq=False)
class _Kept:
    """A kept graph."""

    graph: WholeGraph
    caller: str
    expires_at: float
    """Reading of the store's clock, in seconds, when it is dropped."""


class KeptGraphs:
    """Keeps graphs by handle, the most recently used last."""

    def __init__(
        self,
        budget_bytes: int = DEFAULT_KEPT_GRAPH_BYTES,
        ttl_seconds: float = DEFAULT_KEPT_GRAPH_SECONDS,
        *,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        """Start empty; a budget of 0 keeps nothing.

        Args:
            budget_bytes: of all graphs together.
            ttl_seconds: how long a graph is kept that nobody uses.
            shared: whether every caller finds all graphs, not only its own.
            clock: gives seconds, from any beginning.
            call_later: schedules a call after a number of seconds; None = on the running event loop.
        """
        self.budget_bytes = budget_bytes
        """Bytes that may be kept."""
        self._ttl_seconds, self._shared = ttl_seconds, shared
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._sweeps = Sweeps(self._sweep, call_later)
        self.byte_count = 0
        """Bytes kept now."""

    def check_room(self, byte_count: int) -> None:
        """Raise Exhausted if a graph of *byte_count* can never be kept."""
        if byte_count > self.budget_bytes:
            raise Exhausted(
                f"the graph may take {byte_count} bytes, and the server keeps at most {self.budget_bytes} of graphs: "
                "ask for fewer features, or do not have it kept",
                reason=Reason.QUOTA_EXCEEDED,
                metadata={"kept_graph_bytes": str(self.budget_bytes), "needed_bytes": str(byte_count)},
            )

    def keep(self, graph: WholeGraph, caller: Caller) -> KeptGraph | None:
        """Keep *graph* for *caller*, and drop others beyond the budget; None if it alone takes more."""
        if graph.byte_count > self.budget_bytes:
            return None
        handle = f"graph-{secrets.token_urlsafe(16)}"
        self._kept[handle] = _Kept(graph, caller.name, self._expiry())
        self.byte_count += graph.byte_count
        while self.byte_count > self.budget_bytes:
            self._forget(self._next_to_go(handle))
        self._sweeps.go_on()
        return self.described(handle)

    def get(self, handle: str, caller: Caller) -> WholeGraph:
        """The graph of *handle*, which is then kept for as long again; raises NotFound."""
        kept = self._find(handle, caller)
        kept.expires_at = self._expiry()
        self._kept.move_to_end(handle)
        return kept.graph

    def handles(self, caller: Caller) -> list[str]:
        """The handles of the graphs that *caller* finds, in order."""
        self._sweep()
        return sorted(handle for handle, kept in self._kept.items() if self._finds(caller, kept))

    def described(self, handle: str) -> KeptGraph:
        """What is told of a graph that is kept."""
        kept = self._kept[handle]
        graph, left = kept.graph, kept.expires_at - self._clock()
        return KeptGraph(
            handle=handle,
            byte_count=graph.byte_count,
            expire_time=datetime.now(UTC) + timedelta(seconds=left),
            model=graph.model,
            transcoders=graph.transcoders,
            autoencoders=graph.autoencoders,
            sources=graph.sources,
            prompt="".join(graph.token_strings)[:MAX_PROMPT_CHARACTERS],
            node_count=len(graph.nodes),
        )

    def drop(self, handle: str, caller: Caller) -> None:
        """Drop the graph of *handle*; raises NotFound."""
        self._find(handle, caller)
        self._forget(handle)

    def close(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self.byte_count = 0
        self._sweeps.close()

    def _finds(self, caller: Caller, kept: _Kept) -> bool:
        return self._shared or kept.caller == caller.name

    def _find(self, handle: str, caller: Caller) -> _Kept:
        self._sweep()
        found = self._kept.get(handle)
        if found is not None and self._finds(caller, found):
            return found
        # Without similar names: handles must not be guessable.
        raise NotFound(
            f"there is no graph {handle!r}: it was not computed for this caller, or was dropped",
            resource_type="graph",
            resource_name=handle,
            reason=Reason.GRAPH_NOT_FOUND,
            metadata={"resource_type": "graph", "resource_name": handle},
        )

    def _next_to_go(self, new: str) -> str:
        """The least recently used graph of the caller of whom most is kept; of another, if that has *new* alone."""
        bytes_of = Counter[str]()
        for kept in self._kept.values():
            bytes_of[kept.caller] += kept.graph.byte_count
        older = (handle for handle in self._kept if handle != new)
        return max(older, key=lambda handle: bytes_of[self._kept[handle].caller])  # the first of several

    def _expiry(self) -> float:
        return self._clock() + self._ttl_seconds

    def _forget(self, handle: str) -> None:
        self.byte_count -= self._kept.pop(handle).graph.byte_count

    def _sweep(self) -> bool:
        """Drop what has expired; returns whether any is left."""
        now = self._clock()
        for handle in [handle for handle, kept in self._kept.items() if kept.expires_at <= now]:
            self._forget(handle)
        return bool(self._kept)
