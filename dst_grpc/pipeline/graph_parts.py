"""Parts of answers about graphs, small enough for a frame each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.graph_answers import GraphPart, GraphPartKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.graph_answers import GraphNodeScores, GraphValue
    from dst_grpc.domain.graph_edges import GraphEdges
    from dst_grpc.domain.graph_node_table import GraphNodeTable

NODES_AT_ONCE = 16_384
"""Rows of a table in one part."""
EDGES_AT_ONCE = 100_000
"""Edges in one part."""


def part(kind: GraphPartKind, value: GraphValue) -> GraphPart:
    """A part."""
    return GraphPart(kind=kind, value=value)


def node_parts(table: GraphNodeTable) -> list[GraphPart]:
    """*table* in frames."""
    return [part(GraphPartKind.NODES, table.rows(some)) for some in _slices(len(table))]


def score_parts(of_nodes: GraphNodeScores) -> list[GraphPart]:
    """*of_nodes* in frames."""
    return [part(GraphPartKind.SCORES, of_nodes.rows(some)) for some in _slices(len(of_nodes.nodes))]


def edge_parts(edges: GraphEdges) -> list[GraphPart]:
    """*edges* in frames."""
    return [part(GraphPartKind.EDGES, piece) for piece in edges.pieces(EDGES_AT_ONCE)]


def _slices(n_rows: int) -> Iterator[slice]:
    """Of rows of tables that go into one frame; one of none if there are none."""
    for start in range(0, max(n_rows, 1), NODES_AT_ONCE):
        yield slice(start, start + NODES_AT_ONCE)
