"""Exact effects of single edges: by how much the metric changes if one edge alone carries the value of another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.causal.circuit_runs import CutRuns, RowLogits, reference_logits
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.writes import Alternative, record
from dst_grpc.engine.cancellation import Check, never_cancelled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from dst_grpc.causal.attribution import Metrics, Pair
    from dst_grpc.causal.graph import Graph
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site

    Places = np.ndarray[Any, np.dtype[np.intp]]
    Effects = np.ndarray[Any, np.dtype[np.float64]]


def largest(scores: np.ndarray[Any, Any], mask: np.ndarray[Any, np.dtype[np.bool_]], n: int) -> tuple[Places, Places]:
    """Sources and readers of the *n* edges with the largest magnitudes of *scores* [S, D]; of equal ones the first."""
    sources, readers = np.nonzero(mask)
    order = np.argsort(-np.abs(scores[sources, readers]), kind="stable")[:n]
    return sources[order], readers[order]


def correlation(one: Effects, other: Effects) -> float | None:
    """Pearson's correlation; None of fewer than two numbers, or if either does not vary."""
    if len(one) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


@dataclass(frozen=True, eq=False)
class ExactEffects:
    """Patches edges one by one."""

    decoder: Decoder
    graph: Graph
    edges: tuple[Places, Places]
    """Sources and readers of the edges."""
    splices: Mapping[Site, Splice]
    """Autoencoders to splice in, by the site that each reconstructs."""
    check: Check = never_cancelled
    """Raises Cancelled to end a pass."""

    def of(self, pairs: Sequence[Pair], metrics: Sequence[Metrics]) -> tuple[Effects, int]:
        """The effect of each edge in each of *pairs*, [n, edges], and the passes that it took.

        Args:
            pairs: the pairs.
            metrics: their metrics without a patch.
        """
        base, other = (
            record(prompts, self.decoder, splices=self.splices, check=self.check)
            for prompts in ([pair.base for pair in pairs], [pair.source for pair in pairs])
        )
        alternative = Alternative.of(other.writes, self.decoder, base.tokens.shape[1])
        others = reference_logits(self.decoder, [pair.metric for pair in pairs], base, other)
        runs = CutRuns(self.decoder, self.graph, base, alternative, splices=self.splices, check=self.check)
        each = [(np.array([s]), np.array([r])) for s, r in zip(*self.edges, strict=True)]
        rows = [CutRow.of_edges(edge, prompt) for prompt in range(len(pairs)) for edge in each]
        found, n_passes = np.empty((len(pairs), len(each))), 2
        for places, ran in runs.batches(rows):
            n_passes += 1
            for i, place in enumerate(places):
                pair, edge = divmod(place, len(each))
                metric = pairs[pair].metric.scalar(RowLogits(ran.last[i], ran, i, others[pair])).item()
                found[pair, edge] = metric - metrics[pair].base
        return found, n_passes
