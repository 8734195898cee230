"""The strongest paths between two nodes of an attribution graph.

An edge's share is its magnitude over the sum of the magnitudes of all edges into its target. A path's strength is the
product of its edges' shares, each with the sign of the edge. The best path from the source to each node is found by
dynamic programming; the paths are then extended backwards from the target, always the one that can become the
strongest, so that they are found in the order of their magnitude.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.graph_answers import GraphPath
from dst_grpc.domain.graph_edges import LEAST_SUM

if TYPE_CHECKING:
    from dst_grpc.domain.graph_edges import GraphEdges

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class PathSearch:
    """A graph in which paths are looked for."""

    edges: GraphEdges
    """Its edges, whose targets ascend."""
    input_sums: Array
    """The sum of the magnitudes of all edges into each node [n], those that `edges` does not have included."""
    depths: Array
    """Numbers of the nodes [n] that are smaller for the source of an edge than for its target."""

    def strongest(self, source: int, target: int, k: int, allowed: Array) -> tuple[GraphPath, ...]:
        """The *k* strongest paths from *source* to *target*, through nodes that are *allowed* [n]; the strongest
        first."""
        allowed = allowed.copy()
        allowed[[source, target]] = True
        best = self._best(source, target, allowed)
        order = count()
        # What it can become, negative; the product so far; the nodes from the first to the target.
        waiting: list[tuple[float, int, float, tuple[int, ...]]] = []
        if best[target]:
            waiting.append((-float(best[target]), next(order), 1.0, (target,)))
        found: list[GraphPath] = []
        while waiting and len(found) < k:
            _, _, strength, path = heapq.heappop(waiting)
            if path[0] == source:
                found.append(GraphPath(nodes=path, strength=strength))
                continue
            sources, shares = self._inputs(path[0])
            promises = np.abs(shares * best[sources]) * abs(strength)
            # No path beyond the k best ways to go on can be among the k best of all.
            for i in _largest(promises, k):
                longer = (int(sources[i]), *path)
                heapq.heappush(waiting, (-float(promises[i]), next(order), strength * float(shares[i]), longer))
        return tuple(found)

    def _best(self, source: int, target: int, allowed: Array) -> Array:
        """The magnitude of the strongest path from *source* to each node [n], 0 where there is none."""
        best = np.zeros(len(self.depths))
        best[source] = 1.0
        nodes = self.edges.targets
        depths = self.depths[nodes]
        is_between = (depths > self.depths[source]) & (depths <= self.depths[target]) & allowed[nodes]
        for node in nodes[is_between][np.argsort(depths[is_between], kind="stable")]:
            sources, shares = self._inputs(int(node))
            best[node] = np.max(np.abs(shares) * best[sources], initial=0.0)
        return best

    def _inputs(self, node: int) -> tuple[Array, Array]:
        """The sources of the edges into *node*, and their shares with their signs, float64."""
        inputs = self.edges.inputs_of(node)
        total = max(float(self.input_sums[node]), LEAST_SUM)
        return self.edges.sources[inputs], self.edges.weights[inputs].astype(np.float64) / total


def _largest(values: Array, k: int) -> Array:
    """The places of the *k* largest of *values* that are not 0."""
    places = np.flatnonzero(values)
    if len(places) > k:
        places = places[np.argpartition(-values[places], k - 1)[:k]]
    return places[np.argsort(-values[places], kind="stable")]
