"""The graph of a model: its sources, its readers, and the edges between them, in their order.

Sources S = 1 + L (H + 1): `input`; then of each layer its heads and its MLP. Readers D = L (3 H + 1) + 1: of each layer
the queries of its heads, their keys, their values, then its MLP; last `logits`. What a reader reads are all sources
that write before it, so that in this order they are always the first ones. Scores of edges are a matrix [S, D]; edges
themselves are numbered along its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.domain.graph_nodes import Edge, Reader, Source
from dst_grpc.domain.locations import ActivationLocationType

if TYPE_CHECKING:
    import numpy.typing as npt

    from dst_grpc.domain.architecture import Architecture, ModelDimensions

PARTS = (AttentionTraceType.Q, AttentionTraceType.K, AttentionTraceType.V)
"""The inputs of a head, in their order."""
_L = ActivationLocationType
HEAD_INPUTS = dict(zip(PARTS, (_L.ATTN_QUERY, _L.ATTN_KEY, _L.ATTN_VALUE), strict=True))
"""The tap of each input of heads."""


@dataclass(frozen=True)
class Graph:
    """The nodes and edges of one model."""

    n_layers: int
    """Layers (L)."""
    n_heads: int
    """Query heads of a layer (H)."""
    is_parallel: bool = False
    """Whether the MLP of a layer reads the same residual as its attention: no edge leads from a head to it."""

    @classmethod
    def of(cls, dimensions: ModelDimensions, architecture: Architecture) -> Graph:
        """The graph of a model of that kind."""
        return cls(dimensions.n_layers, dimensions.n_heads, architecture.parallel)

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """All sources."""
        nodes = (*range(self.n_heads), None)  # the heads, then the MLP
        return (Source(), *(Source(layer, head) for layer in range(self.n_layers) for head in nodes))

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """All readers."""
        found = []
        for layer in range(self.n_layers):
            found += [Reader(layer, head, part) for part in PARTS for head in range(self.n_heads)]
            found.append(Reader(layer))
        return (*found, Reader())

    def index_of_source(self, source: Source) -> int:
        """Its place among the sources; raises KeyError if the model has no such source."""
        return self._index_of_source[source]

    def index_of_reader(self, reader: Reader) -> int:
        """Its place among the readers; raises KeyError if the model has no such reader."""
        return self._index_of_reader[reader]

    def sources_before(self, layer: int) -> int:
        """How many sources write before the heads of *layer* read: the first so many; for L, all sources."""
        return 1 + layer * (self.n_heads + 1)

    def sources_read_by(self, reader: Reader) -> int:
        """How many sources *reader* reads: the first so many."""
        if reader.layer is None:
            return len(self.sources)
        also_heads = reader.head is None and not self.is_parallel
        return self.sources_before(reader.layer) + (self.n_heads if also_heads else 0)

    def first_reader_of(self, layer: int) -> int:
        """Index of the first reader of *layer*, its first query; for L, that of the logits."""
        return layer * (3 * self.n_heads + 1)

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Which pairs of source and reader are edges, [S, D]."""
        counts = np.array([self.sources_read_by(reader) for reader in self.readers])
        return np.arange(len(self.sources))[:, None] < counts

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, in their order."""
        return tuple(Edge(self.sources[s], self.readers[r]) for s, r in np.argwhere(self.mask))

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.mask.sum())

    def place_of(self, edge: Edge) -> tuple[int, int] | None:
        """The places of its source and of its reader; None if the model has no such edge."""
        row, column = self._index_of_source.get(edge.source), self._index_of_reader.get(edge.reader)
        return None if row is None or column is None or not self.mask[row, column] else (row, column)

    def has(self, edge: Edge) -> bool:
        """Whether *edge* is one of the edges."""
        return self.place_of(edge) is not None

    @cached_property
    def _index_of_source(self) -> dict[Source, int]:
        return {source: i for i, source in enumerate(self.sources)}

    @cached_property
    def _index_of_reader(self) -> dict[Reader, int]:
        return {reader: i for i, reader in enumerate(self.readers)}
