"""Edges of attribution graphs as lists by target, against the matrix that they are of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.errors import InvalidRequest
from tests.random_graphs import random_graph

seeds = st.integers(0, 50)


def pairs(edges: GraphEdges, places: np.ndarray) -> list[tuple[int, int]]:
    return [(int(edges.ends[i]), int(edges.sources[i])) for i in places]


@given(seeds)
def test_edges_hold_the_matrix(seed: int) -> None:
    graph = random_graph(seed)
    edges = graph.edges
    assert (edges.matrix(len(graph)) == graph.matrix).all()
    assert len(edges) == np.count_nonzero(graph.matrix)
    assert edges.byte_count == 8 * len(edges) + 8 * np.count_nonzero(graph.matrix.any(axis=1))
    np.testing.assert_allclose(edges.sums(len(graph)), np.abs(graph.matrix).sum(axis=1), rtol=1e-6)


def test_rows_of_some_nodes_are_edges_too() -> None:
    graph = random_graph()
    rows = np.array([2, 5, len(graph) - 1])
    edges = GraphEdges.of_matrix(graph.matrix[rows], rows)
    expected = np.zeros_like(graph.matrix)
    expected[rows] = graph.matrix[rows]
    assert (edges.matrix(len(graph)) == expected).all()
    assert (edges.matrix(len(graph), rows) == graph.matrix[rows]).all()


@given(seeds, st.integers(1, 40))
def test_pieces_join_to_the_whole(seed: int, n_edges: int) -> None:
    graph = random_graph(seed)
    found = list(graph.edges.pieces(n_edges))
    assert all(0 < len(piece) <= n_edges for piece in found)
    joined = GraphEdges.joined(found)
    assert joined.targets.tolist() == graph.edges.targets.tolist()
    assert (joined.matrix(len(graph)) == graph.matrix).all()


def test_no_edges_are_edges() -> None:
    empty = GraphEdges.joined([])
    assert len(empty) == 0
    assert not empty.matrix(3).any()
    assert list(empty.pieces(10)) == []
    assert empty.inputs_of(1) == slice(0, 0)


@given(seeds, st.integers(1, 8), st.data())
def test_the_strongest_edges_of_a_node_are_those_of_the_matrix(seed: int, k: int, data: st.DataObject) -> None:
    graph = random_graph(seed)
    allowed = np.random.default_rng(seed).random(len(graph)) < 0.7
    node = data.draw(st.integers(0, len(graph) - 1))
    edges = graph.edges

    def strongest(weights: np.ndarray) -> list[int]:
        left = [i for i in np.argsort(-np.abs(weights), kind="stable") if weights[i] and allowed[i]]
        return left[:k]

    assert pairs(edges, edges.strongest_inputs(node, allowed, k)) == [(node, i) for i in strongest(graph.matrix[node])]
    outputs = strongest(graph.matrix[:, node])
    assert pairs(edges, edges.strongest_outputs(node, allowed, k)) == [(i, node) for i in outputs]


def test_of_equal_edges_the_first_come_first() -> None:
    matrix = np.zeros((6, 6), np.float32)
    matrix[5, :5] = [1, -2, 2, 1, -1]
    edges = GraphEdges.of_matrix(matrix)
    everything = np.ones(6, dtype=bool)
    for k, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (4, [1, 2, 0, 3]), (9, [1, 2, 0, 3, 4])):
        assert edges.sources[edges.strongest_inputs(5, everything, k)].tolist() == expected


@given(seeds, st.floats(0, 2))
def test_edges_above_a_weight_are_those_of_the_matrix(seed: int, least: float) -> None:
    graph = random_graph(seed)
    allowed = np.random.default_rng(seed).random(len(graph)) < 0.7
    found = graph.edges.at(graph.edges.above(least, allowed)).matrix(len(graph))
    keeps = (np.abs(graph.matrix) >= least) & allowed & allowed[:, None]
    assert (found == np.where(keeps, graph.matrix, 0)).all()


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    one, two = np.zeros(1, np.int32), np.zeros(2, np.int32)
    with pytest.raises(InvalidRequest) as caught:
        GraphEdges(targets=one, counts=two, sources=two, weights=np.zeros(3, np.float32))
    assert {violation.field for violation in caught.value.violations} == {"counts", "weights"}
    with pytest.raises(InvalidRequest):
        GraphEdges(targets=two, counts=np.array([3, -1], np.int32), sources=two, weights=np.zeros(2, np.float32))
