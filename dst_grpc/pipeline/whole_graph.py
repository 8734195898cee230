"""A computed attribution graph as it is kept: its nodes, and its edges as a list; and what other thresholds leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.graph_answers import GraphNodeScores, GraphSummary
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeTable
from dst_grpc.errors import Exhausted, Reason
from dst_grpc.graphs.influence import input_sums, prune
from dst_grpc.graphs.nodes import AttributionGraph

if TYPE_CHECKING:
    from typing import Any

    from dst_grpc.domain.graph import GraphSource
    from dst_grpc.domain.results import Provenance
    from dst_grpc.graphs.influence import GraphScores
    from dst_grpc.graphs.nodes import GraphNodes

    Array = np.ndarray[Any, Any]

_NODE_BYTES = 120
"""What a node takes in tables, with its name; about."""
_EDGE_BYTES = 8
_FINISHING_BYTES = 22
"""For each pair of a reader and a node: the effect, an edge as it is kept, and what pruning computes besides."""


def most_bytes(candidates: GraphNodes, n_features: int) -> int:
    """At most so many bytes does a graph take of which *n_features* of *candidates* are nodes: only units and
    targets have edges into them."""
    n_nodes = len(candidates) - len(candidates.active) + n_features
    of_edges = _EDGE_BYTES * (n_features + len(candidates.targets)) * (n_nodes + 1)
    return of_edges + _NODE_BYTES * n_nodes + _bytes_of(candidates)


def finishing_bytes(n_readers: int, n_nodes: int) -> int:
    """What it takes to prune a graph whose rows are known, and to make it as it is kept."""
    return _FINISHING_BYTES * n_readers * n_nodes


def check_finishing(needed: int, limit: int) -> None:
    """Raise Exhausted (MEMORY_BUDGET_EXCEEDED) if the *needed* bytes are more than *limit*."""
    if needed > limit:
        raise Exhausted(
            f"pruning the graph needs about {needed} bytes, and it may have {limit}; ask for fewer feature nodes",
            reason=Reason.MEMORY_BUDGET_EXCEEDED,
            metadata={"needed_bytes": str(needed), "limit_bytes": str(limit)},
        )


def _bytes_of(nodes: GraphNodes) -> int:
    arrays = (nodes.active, nodes.kinds, nodes.activations, nodes.selected, nodes.targets.vectors)
    return sum(one.nbytes for one in arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedEdges:
    """What pruning leaves of a graph."""

    scores: GraphNodeScores
    """Of all nodes."""
    edges: GraphEdges
    """The edges that are left."""
    summary: GraphSummary
    """The pruned graph as a whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeGraph:
    """A graph with all its edges."""

    model: str
    """Handle of its model."""
    transcoders: str
    """Handle of its transcoders; empty if features are no units."""
    autoencoders: tuple[str, ...]
    """Handles of the autoencoders whose latents are units."""
    sources: tuple[GraphSource, ...]
    """What its units are."""
    token_strings: tuple[str, ...]
    """Its prompt."""
    nodes: GraphNodes
    """Its nodes."""
    edges: GraphEdges
    """Its edges; their targets ascend."""
    of_graph: GraphScores
    """How much of it passes through units rather than errors."""
    scores: GraphNodeScores
    """Of all nodes, as the request for it prunes them."""
    provenance: Provenance
    """What its numbers depend on."""

    @cached_property
    def table(self) -> GraphNodeTable:
        """Its nodes, as they are sent."""
        return table_of(self.nodes)

    @property
    def byte_count(self) -> int:
        """Bytes that it takes."""
        return self.edges.byte_count + _NODE_BYTES * len(self.nodes) + _bytes_of(self.nodes)

    def pruned(self, node_threshold: float, edge_threshold: float) -> PrunedEdges:
        """What *node_threshold* and *edge_threshold* leave."""
        graph = AttributionGraph(nodes=self.nodes, effects=self.edges.matrix(len(self.nodes), self.nodes.readers))
        return pruned(graph, self.of_graph, len(self.edges), node_threshold, edge_threshold)


def pruned(
    graph: AttributionGraph, of_graph: GraphScores, n_edges: int, node_threshold: float, edge_threshold: float
) -> PrunedEdges:
    """What *node_threshold* and *edge_threshold* leave of *graph*, which has *n_edges* and the scores *of_graph*."""
    found = prune(graph, node_threshold, edge_threshold)
    rows, sources = np.nonzero(found.edge_mask)
    edges = GraphEdges.of_pairs(graph.nodes.readers[rows], sources, graph.effects[rows, sources])
    summary = GraphSummary(
        edge_count=n_edges,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        kept_node_count=int(found.node_mask.sum()),
        kept_edge_count=len(edges),
        replacement_score=of_graph.replacement,
        completeness_score=of_graph.completeness,
    )
    of_nodes = GraphNodeScores(
        nodes=np.arange(len(graph.nodes), dtype=np.int32),
        cumulative_scores=found.cumulative_scores,
        input_sums=input_sums(graph).astype(np.float32),
        kept=found.node_mask,
    )
    return PrunedEdges(scores=of_nodes, edges=edges, summary=summary)


def table_of(nodes: GraphNodes) -> GraphNodeTable:
    """*nodes* as they are sent."""
    return GraphNodeTable.of(
        features=nodes.features,
        kinds=nodes.feature_kinds,
        activations=nodes.activations[nodes.selected],
        errors=nodes.errors,
        token_ids=nodes.token_ids.tolist(),
        target_ids=nodes.targets.token_ids.tolist(),
        target_names=nodes.targets.names,
    )
