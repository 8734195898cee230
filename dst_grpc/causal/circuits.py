"""Circuits: sets of kept edges, as masks [..., S, D] of a graph; which to keep, and how good they are. Reads no
weights.

Pruning, selection and the areas under the curve are those of the EAP-IG library and of the Mechanistic Interpretability
Benchmark (https://github.com/hannamw/MIB-circuit-track).
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.causal.graph import Graph

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Scores = np.ndarray[Any, np.dtype[np.floating[Any]]]


def live_readers(graph: Graph, kept: Mask) -> Mask:
    """Readers [..., D] from which a path of kept edges leads to the logits: what others read has no effect."""
    live = np.zeros((*kept.shape[:-2], len(graph.readers)), dtype=bool)
    live[..., -1] = True
    for layer in reversed(range(graph.n_layers)):
        first, reader = graph.sources_before(layer), graph.first_reader_of(layer)
        mlp, heads = first + graph.n_heads, slice(first, first + graph.n_heads)
        live[..., reader + 3 * graph.n_heads] = (kept[..., mlp, :] & live).any(axis=-1)
        alive = (kept[..., heads, :] & live[..., None, :]).any(axis=-1)
        live[..., reader : reader + 3 * graph.n_heads] = np.concatenate((alive,) * 3, axis=-1)
    return live


def reached_sources(graph: Graph, kept: Mask) -> Mask:
    """Sources [..., S] to which a path of kept edges leads from the embedding."""
    reached = np.zeros((*kept.shape[:-2], len(graph.sources)), dtype=bool)
    reached[..., 0] = True
    for layer in range(graph.n_layers):
        first, reader = graph.sources_before(layer), graph.first_reader_of(layer)
        inputs = kept[..., reader : reader + 3 * graph.n_heads] & reached[..., None]
        of_heads = inputs.any(axis=-2).reshape(*kept.shape[:-2], 3, graph.n_heads)
        reached[..., first : first + graph.n_heads] = of_heads.any(axis=-2)
        of_mlp = kept[..., reader + 3 * graph.n_heads] & reached
        reached[..., first + graph.n_heads] = of_mlp.any(axis=-1)
    return reached


def pruned(graph: Graph, kept: Mask) -> Mask:
    """*kept* without the edges that lie on no path of kept edges from the embedding to the logits."""
    return kept & reached_sources(graph, kept)[..., :, None] & live_readers(graph, kept)[..., None, :]


def edges_of_nodes(graph: Graph, nodes: Mask) -> Mask:
    """The circuit [..., S, D] that keeps the edges out of some *nodes* [..., S]: others are ablated as a whole."""
    return graph.mask & nodes[..., None]


def top(values: Scores, count: int) -> Mask:
    """The *count* largest of *values*, of equal ones the first; a mask of the same shape."""
    chosen = np.zeros(values.size, dtype=bool)
    chosen[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(values.shape)


def top_edges(graph: Graph, values: Scores, count: int) -> Mask:
    """The *count* edges of largest *values* [S, D], of equal ones the first."""
    return top(np.where(graph.mask, values, -np.inf), min(count, graph.n_edges)) & graph.mask


def greedy_edges(graph: Graph, values: Scores, count: int) -> Mask:
    """*count* edges chosen one by one from the logits on: always the one of largest *values* [S, D] that ends in a node
    which an edge chosen before starts from. Fewer if there are no more such edges."""
    kept = np.zeros_like(graph.mask)
    readers_of = _readers_of_sources(graph)
    waiting: list[tuple[float, int, int]] = []

    def reach(readers: Sequence[int]) -> None:
        for reader in readers:
            for source in np.flatnonzero(graph.mask[:, reader]).tolist():
                heapq.heappush(waiting, (-float(values[source, reader]), source, reader))

    reach([len(graph.readers) - 1])
    reached: set[int] = set()
    for _ in range(min(count, graph.n_edges)):
        if not waiting:
            break
        _, source, reader = heapq.heappop(waiting)
        kept[source, reader] = True
        if source not in reached:
            reached.add(source)
            reach(readers_of.get(source, ()))
    return kept


def _readers_of_sources(graph: Graph) -> dict[int, list[int]]:
    """The readers of each node that has any, by its place among the sources."""
    found: dict[int, list[int]] = {}
    for i, reader in enumerate(graph.readers[:-1]):
        layer = 0 if reader.layer is None else reader.layer
        source = graph.sources_before(layer) + (graph.n_heads if reader.head is None else reader.head)
        found.setdefault(source, []).append(i)
    return found


def faithfulness(metric: float, *, clean: float, empty: float) -> float | None:
    """(metric - empty) / (clean - empty): how much of what the whole model has beyond the empty circuit a circuit
    recovers. None where the two hardly differ."""
    gap = clean - empty
    return None if abs(gap) < 1e-6 * max(abs(clean), abs(empty), 1.0) else (metric - empty) / gap


def areas(fractions: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Areas under faithfulness (CPR), and under its distance from 1 (CMD), over the fractions that are kept; by the
    trapezoid rule from the first fraction to the last."""
    steps = list(pairwise(zip(fractions, values, strict=True)))
    cpr = sum((b - a) * (f + g) / 2 for (a, f), (b, g) in steps)
    cmd = sum((b - a) * (abs(1 - f) + abs(1 - g)) / 2 for (a, f), (b, g) in steps)
    return cpr, cmd
