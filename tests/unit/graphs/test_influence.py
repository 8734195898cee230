"""Pruning and scores of the golden graphs, and of graphs small enough to follow by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.graphs.influence import Pruned, input_sums, node_influence, prune, scores
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes, GraphTargets
from dst_grpc.graphs.selection import partial_influence
from tests.graph_goldens import NAMES, THRESHOLDS, golden_graph

FEATURES, ERROR, EMBEDDING, TARGET = (0, 1), 2, 3, 4
"""The nodes of the small graphs."""


def small(edges: dict[tuple[int, int], float], weight: float = 1.0) -> AttributionGraph:
    """One layer, one token, two features, one target; *edges* by target and source."""
    targets = GraphTargets(
        token_ids=np.array([6]),
        names=("",),
        weights=np.array([weight], dtype=np.float32),
        vectors=np.zeros((1, 4), dtype=np.float32),
    )
    nodes = GraphNodes(
        token_ids=np.array([1]),
        n_layers=1,
        active=np.array([[0, 0, 4], [0, 0, 5]]),
        kinds=np.full(2, GraphNodeKind.FEATURE.number),
        errors=tuple((GraphNodeKind.ERROR, layer) for layer in range(1)),
        activations=np.ones(2, dtype=np.float32),
        selected=np.array([0, 1]),
        targets=targets,
    )
    adjacency = np.zeros((5, 5), dtype=np.float32)
    for ends, edge in edges.items():
        adjacency[ends] = edge
    return AttributionGraph.of_matrix(nodes, adjacency)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_pruning_is_that_of_circuit_tracer(name: str, thresholds: tuple[float, float]) -> None:
    case = golden_graph(name)
    found = prune(case.graph, *thresholds)
    np.testing.assert_allclose(found.cumulative_scores, case.pruned("cumulative_scores", thresholds), atol=1e-4)
    assert (found.node_mask == case.pruned("node_mask", thresholds)).all()
    assert (found.edge_mask == case.pruned("edge_mask", thresholds)[case.graph.nodes.readers]).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_circuit_tracer(name: str) -> None:
    case = golden_graph(name)
    found = scores(case.graph)
    assert found.replacement == pytest.approx(case.facts["replacement_score"], abs=1e-4)
    assert found.completeness == pytest.approx(case.facts["completeness_score"], abs=1e-4)


def edges_of(found: Pruned) -> list[tuple[int, int]]:
    """The edges that are left, by target and source."""
    readers = (*FEATURES, TARGET)
    return [(readers[row], int(source)) for row, source in np.argwhere(found.edge_mask)]


def path() -> AttributionGraph:
    """The embedding acts on the target through one feature, and through two; an error acts on it directly."""
    return small({(4, 1): 3.0, (4, ERROR): -1.0, (1, 0): 2.0, (1, EMBEDDING): 2.0, (0, EMBEDDING): -5.0}, weight=1.0)


def test_influence_is_the_sum_over_paths_of_products_of_shares() -> None:
    assert node_influence(path()).tolist() == [0.375, 0.75, 0.25, 0.75, 0.0]
    assert input_sums(path()).tolist() == [5.0, 4.0, 0.0, 0.0, 4.0]


def test_scores_are_shares_of_what_ends_in_errors() -> None:
    found = scores(path())
    assert found.replacement == pytest.approx(0.75 / (0.75 + 0.25))
    assert found.completeness == pytest.approx((0.375 + 0.75 + 0.25 + 0.75 + 0.75) / (0.375 + 0.75 + 0.25 + 0.75 + 1))


def test_nodes_of_large_influence_stay_and_cumulative_scores_say_when_a_node_goes() -> None:
    found = prune(path(), 0.5, 1.0)
    assert found.node_mask.tolist() == [False, True, False, True, True]
    assert edges_of(found) == [(1, EMBEDDING), (TARGET, 1)]
    total = 0.75 + 0.75 + 0.375 + 0.25
    assert found.cumulative_scores == pytest.approx([1.875 / total, 0.75 / total, 1.0, 1.5 / total, 1.0])


def test_nodes_that_no_path_leads_through_go_with_their_edges() -> None:
    # Without the small edge into the target, feature 1 leads nowhere; then neither does feature 0.
    graph = small({(TARGET, EMBEDDING): 99.9, (TARGET, 1): 0.1, (1, 0): 1.0, (0, EMBEDDING): 1.0})
    found = prune(graph, 1.0, 0.9)
    assert found.node_mask.tolist() == [False, False, False, True, True]
    assert edges_of(found) == [(TARGET, EMBEDDING)]


def test_features_that_no_edge_leads_to_go_with_their_edges() -> None:
    # Scores: 0.8 and 0.2 into the target, 0.1 and 0.1 into feature 0, which has no input without them.
    graph = small({(TARGET, EMBEDDING): 4.0, (TARGET, 0): 1.0, (0, EMBEDDING): 1.0, (0, ERROR): 1.0})
    found = prune(graph, 1.0, 0.8)
    assert found.node_mask.tolist() == [False, False, False, True, True]
    assert edges_of(found) == [(TARGET, EMBEDDING)]


def test_thresholds_of_one_keep_all_that_acts_on_the_target() -> None:
    found = prune(path(), 1.0, 1.0)
    assert found.node_mask.all()
    assert (found.edge_mask == (path().effects != 0)).all()


def test_a_graph_without_edges_has_no_scores_and_keeps_tokens_and_targets() -> None:
    graph = small({})
    assert (scores(graph).replacement, scores(graph).completeness) == (0.0, 1.0)
    found = prune(graph)
    assert found.node_mask.tolist() == [False, False, False, True, True]
    assert not found.edge_mask.any()
    assert not found.cumulative_scores.any()


@pytest.mark.parametrize("weight", [np.inf, np.nan])
def test_influence_ends_whatever_the_numbers_are(weight: float) -> None:
    assert len(node_influence(small({(TARGET, 0): 1.0, (0, EMBEDDING): 1.0}, weight))) == TARGET + 1
    rows, nodes = np.array([[0, 0, 1], [1, 0, 0]], dtype=np.float32), np.array([0, 1])
    found = partial_influence(rows, nodes, np.ones(2), np.array([0, weight, 0], dtype=np.float32))
    assert len(found) == 3
