"""Edges of attribution graphs, by the nodes that they end in; and which of them are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

Array = np.ndarray[Any, Any]

LEAST_SUM = 1e-10
"""What shares are taken of at least, so that a node without edges has shares of 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphEdges:
    """Edges: those into the first of `targets` are the first `counts[0]` of `sources` and `weights`, and so on."""

    targets: Array
    """Numbers of nodes, int32 [r]."""
    counts: Array
    """How many edges end in each, int32 [r]."""
    sources: Array
    """The node that each edge comes from, int32 [e]."""
    weights: Array
    """Its weight, the direct effect of the source on the target; float32 [e]."""

    def __post_init__(self) -> None:
        """Check that the arrays fit together; raises InvalidRequest."""
        problems = Violations()
        n_rows, n_edges = len(self.targets), len(self.sources)
        problems.check(len(self.counts) == n_rows, "counts", f"must be {n_rows} as targets, not {len(self.counts)}")
        problems.check(
            len(self.weights) == n_edges, "weights", f"must be {n_edges} as sources, not {len(self.weights)}"
        )
        is_whole = bool((self.counts >= 0).all()) and int(self.counts.sum(dtype=np.int64)) == n_edges
        problems.check(is_whole, "counts", f"must add up to the {n_edges} edges")
        problems.raise_if_any()

    @classmethod
    def of_matrix(cls, matrix: Array, targets: Array | None = None) -> Self:
        """The entries of *matrix* that are not 0.

        Args:
            matrix: weights by target and source, float32 [r, n].
            targets: the node of each row [r]; None = the rows are those of all nodes.
        """
        rows, sources = np.nonzero(matrix)
        ends = rows if targets is None else np.asarray(targets)[rows]
        return cls.of_pairs(ends, sources, matrix[rows, sources])

    @classmethod
    def of_pairs(cls, ends: Array, sources: Array, weights: Array) -> Self:
        """Edges by *sources* and *ends*, in this order [e], with their *weights*."""
        begins = np.flatnonzero(np.diff(ends, prepend=-1))
        return cls(
            targets=ends[begins].astype(np.int32),
            counts=np.diff(begins, append=len(ends)).astype(np.int32),
            sources=sources.astype(np.int32),
            weights=weights.astype(np.float32),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The edges of all *parts*, in order."""
        if not parts:
            return cls.of_pairs(*(np.empty(0, np.int32),) * 3)
        pairs = [np.concatenate([getattr(part, name) for part in parts]) for name in ("ends", "sources", "weights")]
        return cls.of_pairs(*pairs)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.sources)

    @property
    def byte_count(self) -> int:
        """Bytes of its arrays."""
        return int(self.targets.nbytes + self.counts.nbytes + self.sources.nbytes + self.weights.nbytes)

    @cached_property
    def ends(self) -> Array:
        """The node that each edge ends in, int32 [e]."""
        return np.repeat(self.targets, self.counts)

    @cached_property
    def _starts(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def inputs_of(self, node: int) -> slice:
        """The places of the edges into *node*; for edges whose targets ascend."""
        row = int(np.searchsorted(self.targets, node))
        if row == len(self.targets) or self.targets[row] != node:
            return slice(0, 0)
        return slice(int(self._starts[row]), int(self._starts[row + 1]))

    def at(self, places: Array) -> Self:
        """The edges at *places*, indices or a mask, in that order."""
        return self.of_pairs(self.ends[places], self.sources[places], self.weights[places])

    @property
    def ascending(self) -> Self:
        """The same edges, by ascending targets, then as they are."""
        return self.at(np.argsort(self.ends, kind="stable"))

    def sums(self, n_nodes: int) -> Array:
        """The sum of the magnitudes of the edges into each node, float32 [n_nodes]."""
        return np.bincount(self.ends, np.abs(self.weights), minlength=n_nodes).astype(np.float32)

    def matrix(self, n_nodes: int, targets: Array | None = None) -> Array:
        """Weights by target and source, float32 [r, n_nodes].

        Args:
            n_nodes: how many nodes there are.
            targets: the node of each row [r], ascending, all that edges end in; None = all nodes.
        """
        rows = self.ends if targets is None else np.searchsorted(targets, self.ends)
        matrix = np.zeros((n_nodes if targets is None else len(targets), n_nodes), np.float32)
        matrix[rows, self.sources] = self.weights
        return matrix

    def pieces(self, n_edges: int) -> Iterator[Self]:
        """The edges in order, at most *n_edges* at once."""
        for start in range(0, len(self), n_edges):
            yield self.at(np.arange(start, min(start + n_edges, len(self))))

    # What is asked for

    def strongest_inputs(self, node: int, allowed: Array, k: int) -> Array:
        """The places of the *k* edges into *node* of the largest magnitude, from nodes that are *allowed* [n]; only if
        targets ascend."""
        inputs = self.inputs_of(node)
        places = inputs.start + np.flatnonzero(allowed[self.sources[inputs]])
        return self._strongest(places, k)

    def strongest_outputs(self, node: int, allowed: Array, k: int) -> Array:
        """The places of the *k* edges from *node* of the largest magnitude, to nodes that are *allowed* [n]."""
        places = np.flatnonzero(self.sources == node)
        return self._strongest(places[allowed[self.ends[places]]], k)

    def above(self, min_weight: float, allowed: Array) -> Array:
        """The places of the edges of a magnitude of at least *min_weight* between nodes that are *allowed* [n]."""
        is_strong = np.abs(self.weights) >= min_weight
        return np.flatnonzero(is_strong & allowed[self.ends] & allowed[self.sources])

    def _strongest(self, places: Array, k: int) -> Array:
        """The *k* of *places* of the largest magnitude, which descends; of equal ones the first."""
        magnitudes = np.abs(self.weights[places])
        if k < len(places):  # of equal ones at the limit, all are sorted, so that the first are kept
            limit = np.partition(magnitudes, len(places) - k)[len(places) - k]
            places = places[magnitudes >= limit]
            magnitudes = np.abs(self.weights[places])
        return places[np.argsort(-magnitudes, kind="stable")[:k]]
