"""ACDC: finds a circuit by trying to cut each edge in turn (Conmy et al. 2023, https://github.com/ArthurConmy/ACDC).

Readers go from the last to the first in the graph's order, and for each its sources from the last to the first. An edge
stays cut if that raises the metric by less than the threshold; otherwise it is restored. The order matters, and every
decision depends on those before it. Nodes with latents are tried likewise, from the last layer to the first.

Most edges stay cut. So several next ones are cut at once, one more in each row of a batch, as if all before stayed cut;
what comes after an edge that has to be restored is thrown away. The decisions are the same as one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dst_grpc.causal.circuits import live_readers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.node_space import NodeSpace

MAX_AHEAD = 64
"""Most edges that are cut at once, unless told otherwise."""

Place = tuple[int, ...]
"""The place of an edge, or a node, in a circuit's mask."""
HasEffect = Callable[["Mask", Place], bool]
"""Whether to cut what is at a place changes anything, in a circuit."""


class Candidates(Protocol):
    """What a search tries to cut."""

    @property
    def whole(self) -> Mask:
        """The circuit that keeps everything."""

    @property
    def order(self) -> Sequence[Place]:
        """In which order it is tried."""

    def effects(self) -> HasEffect:
        """What has an effect, if it is asked in that order."""


@dataclass(frozen=True, slots=True)
class EdgeCandidates:
    """All edges of a graph, from the last reader to the first."""

    graph: Graph
    """The graph."""

    @property
    def whole(self) -> Mask:
        """All edges, [S, D]."""
        return self.graph.mask

    @property
    def order(self) -> list[Place]:
        """Readers, and for each its sources, from the last to the first."""
        mask = self.graph.mask
        return [(s, r) for r in reversed(range(mask.shape[1])) for s in np.flatnonzero(mask[:, r])[::-1].tolist()]

    def effects(self) -> HasEffect:
        """Whether a reader has any: that is for all its edges the same."""
        of_reader, is_live = -1, False

        def has_effect(kept: Mask, edge: Place) -> bool:
            nonlocal of_reader, is_live
            if edge[1] != of_reader:
                of_reader, is_live = edge[1], bool(live_readers(self.graph, kept)[edge[1]])
            return is_live

        return has_effect


@dataclass(frozen=True, slots=True, eq=False)
class NodeCandidates:
    """All nodes with latents, from the last layer to the first."""

    space: NodeSpace
    """The nodes."""
    differs: Mask
    """Which are not as their alternatives [N]: as all before a node is kept when it is tried, only these have an
    effect."""

    @property
    def whole(self) -> Mask:
        """All nodes, [N]."""
        return np.ones(self.space.count, dtype=bool)

    @property
    def order(self) -> list[Place]:
        """Nodes from the last to the first that a forward pass comes to."""
        groups = [range(group.first, group.first + group.count) for group in self.space.in_passing]
        return [(node,) for group in reversed(groups) for node in reversed(group)]

    def effects(self) -> HasEffect:
        """Whether a node differs from its alternative."""
        return lambda _, node: bool(self.differs[node])


@dataclass(frozen=True, slots=True, eq=False)
class AcdcStep:
    """The state after some edges were tried."""

    kept: Mask
    """The circuit so far: edges that were not tried are kept."""
    n_tried: int
    """Edges tried so far."""
    metric: float
    """The circuit's metric."""
    ahead: int
    """How many circuits are measured together to get to the next state; at most."""


def acdc(
    candidates: Candidates,
    measure: Callable[[Sequence[Mask]], Sequence[float]],
    threshold: float,
    *,
    absolute: bool = False,
    max_ahead: int = MAX_AHEAD,
) -> Iterator[AcdcStep]:
    """Find a circuit; yields the state before the first edge and after each batch, the last of which is the result.

    Args:
        candidates: the edges, or nodes.
        measure: the metric of each of several circuits: what is to stay small.
        threshold: an edge stays cut if the metric rises by less.
        absolute: count falls of the metric as rises of the same size.
        max_ahead: most edges that are cut at once.
    """
    kept = candidates.whole.copy()
    (metric,) = measure([kept])
    edges = candidates.order
    n_tried, ahead = 0, 1
    yield AcdcStep(kept.copy(), n_tried, metric, ahead)
    while n_tried < len(edges):
        trials = _trials(candidates.effects(), kept, edges[n_tried:], ahead)
        circuits = [trial.circuit for trial in trials if trial.circuit is not None]
        metrics = iter(measure(circuits) if circuits else ())
        n_cut = 0
        for trial in trials:
            n_tried += 1
            new = metric if trial.circuit is None else next(metrics)
            change = abs(new - metric) if absolute else new - metric
            if not change < threshold:
                break
            kept[trial.edge] = False
            metric = new
            n_cut += trial.circuit is not None
        ahead = min(2 * ahead, max_ahead) if n_cut == len(circuits) else max(n_cut, 1)
        yield AcdcStep(kept.copy(), n_tried, metric, ahead)


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One more edge to cut."""

    edge: Place
    """Its place."""
    circuit: Mask | None
    """What is kept without it, and without those tried before; None if it has no effect, and nothing need run."""


def _trials(has_effect: HasEffect, kept: Mask, edges: Sequence[Place], ahead: int) -> list[_Trial]:
    """The first of *edges*, as far as *ahead* circuits have to be run for them."""
    found: list[_Trial] = []
    for edge in edges:
        if not has_effect(kept, edge):
            found.append(_Trial(edge, None))
            continue
        if not ahead:
            break
        ahead -= 1
        kept = kept.copy()
        kept[edge] = False
        found.append(_Trial(edge, kept))
    return found
