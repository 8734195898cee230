"""Questions about kept graphs, on golden ones, against their matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dst_grpc.client import GraphView
from dst_grpc.client._graphs import GraphViewCollector
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_answers import GraphPart, GraphPartKind
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.graph_queries import (
    GraphEdgeDirection,
    GraphEdgeQuery,
    GraphNeighbours,
    GraphNodeFilter,
    GraphPathQuery,
    GraphPruning,
    QueryGraphRequest,
)
from dst_grpc.domain.results import RunSummary
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.pipeline.graph_query import answer_query
from tests.graph_goldens import NAMES, THRESHOLDS, golden_graph
from tests.unit.pipeline.whole_graphs import whole_graph

SOME = NAMES[::7]
GRAPH = whole_graph()
MATRIX = golden_graph("gpt2_plt_relu_whole").graph.adjacency
LAST = len(GRAPH.nodes) - 1


def asked(query: Any, graph: Any = GRAPH, **restrictions: Any) -> GraphView:
    """The answer about *graph*, as a client reads it."""
    request = QueryGraphRequest(graph="g", query=query, filter=GraphNodeFilter(**restrictions))
    *parts, summary = answer_query(graph, request)
    assert isinstance(summary, RunSummary)
    assert summary.statistics.forward_passes == 0
    assert summary.provenance is graph.provenance
    collector = GraphViewCollector()
    for part in parts:
        assert isinstance(part, GraphPart)
        assert collector.take(part) is None
    trailer = RunsTrailer(frame_count=0, statistics=summary.statistics, provenance=summary.provenance)
    found = collector.take(GraphPart(kind=GraphPartKind.TRAILER, value=trailer))
    assert found is not None
    return found


def name(number: int) -> str:
    return GRAPH.table.names[number]


def allowed(**restrictions: Any) -> np.ndarray:
    asked_of = GraphNodeFilter(**restrictions)
    return GRAPH.table.allowed(asked_of.layers, asked_of.tokens, asked_of.kinds)


def matrix_of(edges: GraphEdges) -> np.ndarray:
    return edges.matrix(len(GRAPH.nodes))


@pytest.mark.parametrize("direction", GraphEdgeDirection)
def test_neighbours_are_the_largest_entries_of_row_and_column(direction: GraphEdgeDirection) -> None:
    node = int(np.argmax((MATRIX != 0).sum(axis=0) * (MATRIX != 0).any(axis=1)))
    found = asked(GraphNeighbours(node=name(node), direction=direction, top_k=3))
    expected = np.zeros_like(MATRIX)
    if direction is not GraphEdgeDirection.OUTPUTS:
        sources = np.argsort(-np.abs(MATRIX[node]))[:3]
        expected[node, sources] = MATRIX[node, sources]
    if direction is not GraphEdgeDirection.INPUTS:
        ends = np.argsort(-np.abs(MATRIX[:, node]))[:3]
        expected[ends, node] = MATRIX[ends, node]
    assert (matrix_of(found.edges) == expected).all()
    ends, sources = np.nonzero(expected)
    assert found.table.nodes.tolist() == sorted({node, *ends.tolist(), *sources.tolist()})
    assert found.names == tuple(name(number) for number in found.table.nodes)
    np.testing.assert_allclose(found.scores.input_sums, np.abs(MATRIX).sum(axis=1)[found.table.nodes], rtol=1e-6)


def test_a_node_without_edges_is_told_alone() -> None:
    found = asked(GraphNeighbours(node=name(LAST), direction=GraphEdgeDirection.OUTPUTS))
    assert (found.names, len(found.edges)) == ((name(LAST),), 0)


def test_neighbours_are_restricted() -> None:
    restriction = {"layers": (0, 1), "tokens": (1, 2, 3), "kinds": (GraphNodeKind.FEATURE, GraphNodeKind.ERROR)}
    found = asked(GraphNeighbours(node=name(LAST)), **restriction)
    left = np.flatnonzero(allowed(**restriction) & (MATRIX[LAST] != 0))
    strongest = left[np.argsort(-np.abs(MATRIX[LAST, left]))][:20]
    assert set(found.edges.sources.tolist()) == set(strongest.tolist())


def test_edges_above_a_weight_are_all_that_are() -> None:
    least = float(np.quantile(np.abs(MATRIX[MATRIX != 0]), 0.8))
    found = asked(GraphEdgeQuery(min_weight=least))
    assert (matrix_of(found.edges) == np.where(np.abs(MATRIX) >= least, MATRIX, 0)).all()
    left = allowed(tokens=(2, 3))
    some = asked(GraphEdgeQuery(min_weight=least), tokens=(2, 3))
    expected = np.where((np.abs(MATRIX) >= least) & left & left[:, None], MATRIX, 0)
    assert (matrix_of(some.edges) == expected).all()
    assert len(asked(GraphEdgeQuery(min_weight=1e9)).table) == 0


def test_paths_come_with_their_edges() -> None:
    source = int(GRAPH.table.place("t1"))
    found = asked(GraphPathQuery(source="t1", target=name(LAST), top_k=5))
    assert len(found.found) == 5
    shares = MATRIX / np.maximum(np.abs(MATRIX).sum(axis=1, keepdims=True), 1e-10)
    steps = set()
    for path in found.paths_found:
        assert (path.nodes[0], path.nodes[-1]) == (source, LAST)
        pairs = list(zip(path.nodes[1:], path.nodes, strict=False))
        steps |= set(pairs)
        assert path.strength == pytest.approx(np.prod([shares[pair] for pair in pairs]), rel=1e-4)
    assert set(zip(found.edges.ends.tolist(), found.edges.sources.tolist(), strict=True)) == steps
    # No step of a path is stronger than the path: the first is at least as strong as the direct edge.
    assert abs(found.paths_found[0].strength) >= abs(shares[LAST, source])
    features = asked(GraphPathQuery(source="t1", target=name(LAST)), kinds=(GraphNodeKind.TARGET,))
    assert [path.nodes for path in features.paths_found] == [(source, LAST)]


def test_there_may_be_no_path() -> None:
    found = asked(GraphPathQuery(source=name(LAST), target="t1"))
    assert (found.found, len(found.edges), len(found.table)) == ((), 0, 2)


@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_pruning_leaves_what_circuit_tracer_leaves(case: str, thresholds: tuple[float, float]) -> None:
    golden, graph = golden_graph(case), whole_graph(case)
    node_threshold, edge_threshold = thresholds
    query = GraphPruning(node_threshold=node_threshold, edge_threshold=edge_threshold)
    found = asked(query, graph)
    assert found.table.nodes.tolist() == np.flatnonzero(golden.pruned("node_mask", thresholds)).tolist()
    expected = np.where(golden.pruned("edge_mask", thresholds), golden.graph.adjacency, 0)
    assert (found.edges.matrix(len(graph.nodes)) == expected).all()
    assert found.summary is not None
    assert found.summary.kept_edge_count == np.count_nonzero(expected)
    assert found.summary.replacement_score == pytest.approx(golden.facts["replacement_score"], abs=1e-4)


def test_a_restriction_of_a_pruned_graph_leaves_its_nodes_out() -> None:
    kinds = (GraphNodeKind.FEATURE, GraphNodeKind.TARGET)
    whole, some = asked(GraphPruning()), asked(GraphPruning(), kinds=kinds)
    left = whole.table.nodes[whole.table.allowed((), (), kinds)]
    assert some.table.nodes.tolist() == left.tolist()
    assert 0 < len(some.edges) < len(whole.edges)
    assert some.summary == whole.summary


def test_nodes_that_the_graph_does_not_have_are_reported_together() -> None:
    request = QueryGraphRequest(graph="g", query=GraphPathQuery(source="f9.9@9", target="logit:99999"))
    known = Violations()
    known.add("filter.kinds[0]", "is unknown")
    with pytest.raises(InvalidRequest) as caught:
        answer_query(GRAPH, request, known)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["filter.kinds[0]", "paths.source", "paths.target"]
    assert caught.value.violations[1].description == GRAPH.table.missing("f9.9@9")


def test_a_stand_in_is_not_reported_twice() -> None:
    request = QueryGraphRequest(graph="g", query=GraphNeighbours(node="t999"))
    known = Violations()
    known.add("neighbours.node", "is required: the name of a node")
    with pytest.raises(InvalidRequest) as caught:
        answer_query(GRAPH, request, known)
    assert [violation.description for violation in caught.value.violations] == ["is required: the name of a node"]
