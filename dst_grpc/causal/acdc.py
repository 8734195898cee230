"""ACDC: finds a circuit by trying to cut each edge in turn (Conmy et al. 2023, https://github.com/ArthurConmy/ACDC).

Readers go from the last to the first in the graph's order, and for each its sources from the last to the first. An edge
stays cut if that raises the metric by less than the threshold; otherwise it is restored. The order matters, and every
decision depends on those before it.

Most edges stay cut. So several next ones are cut at once, one more in each row of a batch, as if all before stayed cut;
what comes after an edge that has to be restored is thrown away. The decisions are the same as one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.causal.circuits import live_readers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.causal.graph import Graph

MAX_AHEAD = 64
"""Most edges that are cut at once, unless told otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class AcdcStep:
    """The state after some edges were tried."""

    kept: Mask
    """The circuit so far, [S, D]: edges that were not tried are kept."""
    n_tried: int
    """Edges tried so far."""
    metric: float
    """The circuit's metric."""


def acdc(
    graph: Graph,
    measure: Callable[[Sequence[Mask]], Sequence[float]],
    threshold: float,
    *,
    absolute: bool = False,
    max_ahead: int = MAX_AHEAD,
) -> Iterator[AcdcStep]:
    """Find a circuit; yields the state before the first edge and after each batch, the last of which is the result.

    Args:
        graph: the model's.
        measure: the metric of each of several circuits [S, D]: what is to stay small.
        threshold: an edge stays cut if the metric rises by less.
        absolute: count falls of the metric as rises of the same size.
        max_ahead: most edges that are cut at once.
    """
    kept = graph.mask.copy()
    (metric,) = measure([kept])
    edges = [(s, r) for r in reversed(range(len(graph.readers))) for s in np.flatnonzero(graph.mask[:, r])[::-1]]
    yield AcdcStep(kept.copy(), 0, metric)
    n_tried, ahead = 0, 1
    while n_tried < len(edges):
        trials = _trials(graph, kept, edges[n_tried:], ahead)
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
        yield AcdcStep(kept.copy(), n_tried, metric)


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One more edge to cut."""

    edge: tuple[int, int]
    """Its source and reader."""
    circuit: Mask | None
    """What is kept without it, and without those tried before; None if its reader has no effect, and nothing need
    run."""


def _trials(graph: Graph, kept: Mask, edges: Sequence[tuple[int, int]], ahead: int) -> list[_Trial]:
    """The first of *edges*, as far as *ahead* circuits have to be run for them."""
    found: list[_Trial] = []
    of_reader, is_live = -1, False
    for source, reader in edges:
        if reader != of_reader:
            of_reader, is_live = reader, bool(live_readers(graph, kept)[reader])
        if is_live:
            if not ahead:
                break
            ahead -= 1
            kept = kept.copy()
            kept[source, reader] = False
        found.append(_Trial((source, reader), kept if is_live else None))
    return found
