"""How nodes influence targets along all paths of a graph; pruning, and two scores of how much features explain.

With A the adjacency [n, n], N is |A| with each row divided by its sum, and w [n] the weights of targets. The influence
of nodes is w (N + N^2 + ...), [n]: as edges lead only forward, the sum ends. Ameisen et al. 2025, "Circuit Tracing". Of
A and N, only the rows of readers [r, n] are held: the others are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.graph import DEFAULT_EDGE_THRESHOLD, DEFAULT_NODE_THRESHOLD

if TYPE_CHECKING:
    from dst_grpc.graphs.nodes import AttributionGraph, Floats, GraphNodes, Mask

    Doubles = np.ndarray[Any, np.dtype[np.float64]]

_SMALLEST_SUM = 1e-10
"""What a smaller sum of a row is taken for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """What is left of a graph."""

    node_mask: Mask
    """The nodes that are left, [n]."""
    edge_mask: Mask
    """The edges that are left, [r, n], by reader and source."""
    cumulative_scores: Floats
    """The share of all influence that a node and those of more influence have together, [n]: small for those that
    matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScores:
    """How much of a graph passes through features rather than errors; both between 0 and 1."""

    replacement: float
    """Of the influence that ends in embeddings or errors, the share that ends in embeddings."""
    completeness: float
    """The share of nodes' inputs that does not come from errors, the mean over nodes by their influence."""


def input_sums(graph: AttributionGraph) -> Doubles:
    """The sum of the magnitudes of the edges into each node, [n]."""
    sums = np.zeros(len(graph.nodes))
    sums[graph.nodes.readers] = np.abs(graph.effects).sum(axis=1, dtype=np.float64)
    return sums


def node_influence(graph: AttributionGraph) -> Doubles:
    """The influence of each node on the targets, [n]."""
    return _influence(_normalised(graph.effects), graph.nodes)


def prune(
    graph: AttributionGraph,
    node_threshold: float = DEFAULT_NODE_THRESHOLD,
    edge_threshold: float = DEFAULT_EDGE_THRESHOLD,
) -> Pruned:
    """The nodes of largest influence that have *node_threshold* of it together, and of the edges between them those of
    largest score that have *edge_threshold* of all scores.

    Embeddings and targets always stay. Features and errors that have no edge left that leads on, and features that
    none leads to, go too. The score of an edge is its share of its target's input, times the target's influence in the
    pruned graph, its weight included.
    """
    nodes = graph.nodes
    influence = node_influence(graph)
    kept = influence >= _threshold(influence, node_threshold)
    kept[nodes.first_embedding :] = True
    shares = _normalised(graph.effects * kept[nodes.readers, None] * kept)
    counted = (_influence(shares, nodes) + nodes.weights)[nodes.readers].astype(np.float32)
    shares *= counted[:, None]
    edges = (shares > 0) & (shares >= _threshold(shares[shares > 0], edge_threshold))
    _remove_dead_ends(nodes, kept, edges)
    return Pruned(node_mask=kept, edge_mask=edges, cumulative_scores=_cumulative(influence))


def _remove_dead_ends(nodes: GraphNodes, kept: Mask, edges: Mask) -> None:
    """Remove nodes that no path of *edges* leads through, and their edges, from *kept* and *edges*."""
    while True:
        lasting = kept.copy()
        lasting[: nodes.first_embedding] &= edges[:, : nodes.first_embedding].any(axis=0)
        lasting[: nodes.first_error] &= edges[: nodes.first_error].any(axis=1)
        edges &= lasting[nodes.readers, None] & lasting
        if (lasting == kept).all():
            return
        kept[:] = lasting


def scores(graph: AttributionGraph) -> GraphScores:
    """The replacement and the completeness score; 0 of a graph without edges."""
    nodes = graph.nodes
    shares = _normalised(graph.effects)
    influence = _influence(shares, nodes)
    errors, embeddings = _slices(nodes)
    of_tokens, of_errors = influence[embeddings].sum(), influence[errors].sum()
    counted = influence + nodes.weights
    unexplained = shares[:, errors].sum(axis=1, dtype=np.float64) @ counted[nodes.readers]
    return GraphScores(
        replacement=_share(of_tokens, of_tokens + of_errors),
        completeness=_share(counted.sum() - unexplained, counted.sum()),
    )


def _slices(nodes: GraphNodes) -> tuple[slice, slice]:
    """The errors, and the embeddings."""
    return slice(nodes.first_error, nodes.first_embedding), slice(nodes.first_embedding, nodes.first_target)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _normalised(effects: Floats) -> Floats:
    """N [r, n]."""
    shares = np.abs(effects)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True, dtype=np.float64), _SMALLEST_SUM).astype(np.float32)
    return shares


def _influence(shares: Floats, nodes: GraphNodes) -> Doubles:
    """The influence [n] of nodes, of N *shares* [r, n]."""
    total = np.zeros(len(nodes))
    reaching = nodes.weights
    while reaching[nodes.readers].any() and np.isfinite(reaching).all():  # what is not finite would never end
        reaching = reaching[nodes.readers] @ shares
        total += reaching
    return total


def _threshold(values: Any, share: float) -> float:
    """The largest of *values* such that those that are at least as large have *share* of their sum together."""
    if not values.size:
        return 0.0
    descending = np.sort(values, axis=None)[::-1]
    place = np.searchsorted(_cumulative_shares(descending), share)
    return float(descending[min(int(place), descending.size - 1)])


def _cumulative(influence: Doubles) -> Floats:
    """The cumulative share of each node, [n]."""
    order = np.argsort(-influence, kind="stable")
    found = np.empty(len(influence), dtype=np.float32)
    found[order] = _cumulative_shares(influence[order])
    return found


def _cumulative_shares(descending: Any) -> Doubles:
    sums = np.cumsum(descending, dtype=np.float64)
    total: Doubles = sums / sums[-1] if sums[-1] else sums
    return total
