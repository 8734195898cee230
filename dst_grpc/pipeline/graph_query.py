"""Answers questions about kept graphs. Pure numpy; runs on any thread."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.graph_answers import GraphPartKind, GraphPaths
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_paths import PathSearch
from dst_grpc.domain.graph_queries import (
    GraphEdgeDirection,
    GraphEdgeQuery,
    GraphNeighbours,
    GraphPathQuery,
)
from dst_grpc.domain.results import RunStatistics, RunSummary
from dst_grpc.errors import Violations
from dst_grpc.pipeline.graph_parts import edge_parts, node_parts, part, score_parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dst_grpc.domain.graph_answers import GraphNodeScores, GraphPart, GraphPath
    from dst_grpc.domain.graph_queries import GraphPruning, QueryGraphRequest
    from dst_grpc.pipeline.whole_graph import WholeGraph

    Array = np.ndarray[Any, Any]


def answer_query(
    graph: WholeGraph, request: QueryGraphRequest, known: Violations | None = None
) -> list[GraphPart | RunSummary]:
    """The parts of the answer to *request* about *graph*, with its summary.

    Args:
        graph: the graph.
        request: what is asked.
        known: violations found by reading the request's message, if any.

    Raises:
        InvalidRequest: listing the nodes that the graph does not have, and those of *known*.
    """
    asked, query, problems = request.filter, request.query, known or Violations()
    allowed = graph.table.allowed(asked.layers, asked.tokens, asked.kinds)
    if isinstance(query, GraphNeighbours):
        (node,) = _numbers(graph, {"neighbours.node": query.node}, problems)
        parts = _neighbours(graph, query, node, allowed)
    elif isinstance(query, GraphPathQuery):
        source, target = _numbers(graph, {"paths.source": query.source, "paths.target": query.target}, problems)
        parts = _paths(graph, query, source, target, allowed)
    else:
        problems.raise_if_any()
        parts = _edges(graph, query, allowed) if isinstance(query, GraphEdgeQuery) else _pruned(graph, query, allowed)
    statistics = RunStatistics(forward_passes=0, backward_passes=0)
    return [*parts, RunSummary(statistics=statistics, provenance=graph.provenance)]


def _numbers(graph: WholeGraph, named: Mapping[str, str], problems: Violations) -> list[int]:
    """The numbers of the nodes *named*, by their paths in the request; raises InvalidRequest with all that is wrong."""
    known, found = problems.fields, []
    for path, name in named.items():
        try:
            found.append(graph.table.place(name))
        except KeyError:
            if path not in known:
                problems.add(path, graph.table.missing(name))
    problems.raise_if_any()
    return found


def _edges(graph: WholeGraph, query: GraphEdgeQuery, allowed: Array) -> list[GraphPart]:
    found = graph.edges.at(graph.edges.above(query.min_weight, allowed))
    return [*_nodes(graph, np.union1d(found.ends, found.sources), graph.scores), *edge_parts(found)]


def _neighbours(graph: WholeGraph, query: GraphNeighbours, node: int, allowed: Array) -> list[GraphPart]:
    edges, places = graph.edges, []
    if query.direction is not GraphEdgeDirection.OUTPUTS:
        places.append(edges.strongest_inputs(node, allowed, query.top_k))
    if query.direction is not GraphEdgeDirection.INPUTS:
        places.append(edges.strongest_outputs(node, allowed, query.top_k))
    found = edges.at(np.concatenate(places))
    others = np.union1d(found.ends, found.sources)
    return [*_nodes(graph, np.union1d(others, [node]), graph.scores), *edge_parts(found)]


def _paths(graph: WholeGraph, query: GraphPathQuery, source: int, target: int, allowed: Array) -> list[GraphPart]:
    depths = graph.table.depths
    search = PathSearch(edges=graph.edges, input_sums=graph.scores.input_sums, depths=depths)
    found = search.strongest(source, target, query.top_k, allowed)
    named = np.unique([source, target, *(node for path in found for node in path.nodes)])
    return [
        *_nodes(graph, named, graph.scores),
        *edge_parts(_along(graph.edges, found)),
        part(GraphPartKind.PATHS, GraphPaths(paths=found)),
    ]


def _along(edges: GraphEdges, paths: tuple[GraphPath, ...]) -> GraphEdges:
    """The edges of *paths*, each once."""
    places = []
    for source, target in sorted({step for path in paths for step in pairwise(path.nodes)}):
        inputs = edges.inputs_of(target)
        places.append(inputs.start + int(np.flatnonzero(edges.sources[inputs] == source)[0]))
    return edges.at(np.array(sorted(places), dtype=np.int64))


def _pruned(graph: WholeGraph, query: GraphPruning, allowed: Array) -> list[GraphPart]:
    left = graph.pruned(query.node_threshold, query.edge_threshold)
    edges = left.edges.at(left.edges.above(0.0, allowed))
    nodes = np.flatnonzero(left.scores.kept & allowed)
    return [*_nodes(graph, nodes, left.scores), *edge_parts(edges), part(GraphPartKind.SUMMARY, left.summary)]


def _nodes(graph: WholeGraph, nodes: Array, scores: GraphNodeScores) -> list[GraphPart]:
    """The rows of *nodes*, and those of their *scores*."""
    return [*node_parts(graph.table.rows(nodes)), *score_parts(scores.rows(nodes))]
