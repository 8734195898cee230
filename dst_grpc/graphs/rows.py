"""The rows of a graph's adjacency as they become known, and which features they make nodes.

A candidate is a node that the graph would have if all active features were nodes. Shapes: N candidates, A active
features, m rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.graphs.selection import partial_influence

if TYPE_CHECKING:
    from dst_grpc.graphs.nodes import Floats, GraphNodes, Integers


class Rows:
    """Rows that are known: of targets, and of features."""

    def __init__(self, candidates: GraphNodes, max_features: int | None) -> None:
        """Know none, of a graph in which at most *max_features* are nodes; None for all that are active."""
        n_active = len(candidates.active)
        self._candidates = candidates
        self.n_features = n_active if max_features is None else min(max_features, n_active)
        """How many features will be nodes."""
        self._is_whole = self.n_features == n_active
        self._is_node = np.zeros(n_active, dtype=bool)
        n_rows = self.n_features + len(candidates.targets)
        # In the order of nodes if all candidates are, so that it is the graph; else in that in which they are computed.
        self._values = np.zeros((n_rows, len(candidates)), dtype=np.float32)
        self._nodes, self._sums = np.zeros(0, dtype=np.int64), np.zeros(0)

    @property
    def n_known(self) -> int:
        """Features whose rows are known."""
        return int(self._is_node.sum())

    def add(self, nodes: Integers, effects: Floats) -> Floats:
        """Add the rows of *nodes* [m], features or targets, of *effects* [m, N - targets]; returns them, [m, N]."""
        known = slice(len(self._nodes), len(self._nodes) + len(nodes))
        places = np.searchsorted(self._candidates.readers, nodes) if self._is_whole else known
        self._values[places, : effects.shape[1]] = effects
        self._nodes = np.concatenate((self._nodes, nodes))
        self._sums = np.concatenate((self._sums, np.linalg.norm(effects, ord=1, axis=1)))
        self._is_node[nodes[nodes < len(self._is_node)]] = True
        added: Floats = self._values[places]
        return added

    def next_features(self, count: int) -> Integers:
        """The features whose rows are computed next: all, or *count* of those that are to come, of the largest
        influence as far as it is known, of equal ones the first."""
        if self._is_whole:
            return np.flatnonzero(~self._is_node)
        known = self._values[: len(self._nodes)]
        influence = partial_influence(known, self._nodes, self._sums, self._candidates.weights)[: len(self._is_node)]
        order = np.argsort(-influence, kind="stable")
        found: Integers = order[~self._is_node[order]][: min(count, self.n_features - self.n_known)]
        return found

    def graph(self) -> AttributionGraph:
        """The graph, once all rows are known."""
        if self._is_whole:
            return AttributionGraph(nodes=self._candidates, effects=self._values)
        selected = np.flatnonzero(self._is_node)
        nodes = replace(self._candidates, selected=selected)
        columns = np.concatenate((selected, np.arange(len(self._is_node), len(self._candidates))))
        order = np.argsort(self._nodes)
        return AttributionGraph(nodes=nodes, effects=self._values[np.ix_(order, columns)])
