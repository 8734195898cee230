"""The strongest paths of attribution graphs, against all paths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_paths import PathSearch
from tests.random_graphs import RandomGraph, random_graph


def search_of(graph: RandomGraph) -> PathSearch:
    edges = graph.edges
    return PathSearch(edges=edges, input_sums=edges.sums(len(graph)), depths=graph.table.depths)


def all_paths(
    graph: RandomGraph, source: int, target: int, allowed: np.ndarray
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every path, with its strength."""
    shares = graph.matrix / np.maximum(np.abs(graph.matrix).sum(axis=1, keepdims=True, dtype=np.float64), 1e-10)

    def walk(path: tuple[int, ...], strength: float) -> Iterator[tuple[float, tuple[int, ...]]]:
        if path[0] == source:
            yield strength, path
            return
        for each in np.flatnonzero(graph.matrix[path[0]]):
            if allowed[each] or each == source:
                yield from walk((int(each), *path), strength * float(shares[path[0], each]))

    yield from walk((target,), 1.0)


@given(st.integers(0, 30), st.integers(1, 12), st.data())
def test_the_strongest_paths_are_the_strongest_of_all(seed: int, k: int, data: st.DataObject) -> None:
    graph = random_graph(seed, n_layers=4, n_features=14, density=0.8)
    allowed = np.random.default_rng(seed).random(len(graph)) < data.draw(st.sampled_from([0.5, 1.0]))
    source = data.draw(st.integers(0, len(graph) - 1))
    target = data.draw(st.integers(0, len(graph) - 1).filter(lambda node: node != source))
    found = search_of(graph).strongest(source, target, k, allowed)
    expected = {path: strength for strength, path in all_paths(graph, source, target, allowed)}
    magnitudes = sorted(map(abs, expected.values()), reverse=True)
    assert len(found) == min(k, len(expected))
    np.testing.assert_allclose([abs(path.strength) for path in found], magnitudes[:k], rtol=1e-5)
    for path in found:
        assert path.strength == pytest.approx(expected[path.nodes], rel=1e-5)
    assert len({path.nodes for path in found}) == len(found)


def test_a_share_is_of_all_edges_into_a_node_and_a_sign_is_the_product_of_signs() -> None:
    """Worked out by hand: 0 -> 1 -> 3 and 0 -> 2 -> 3, and 4 which only adds to what 3 reads."""
    matrix = np.zeros((5, 5), np.float32)
    matrix[1, 0], matrix[2, 0] = 5, -2
    matrix[3, 1], matrix[3, 2], matrix[3, 4] = -3, -1, 4
    edges = GraphEdges.of_matrix(matrix)
    search = PathSearch(edges=edges, input_sums=edges.sums(5), depths=np.array([0, 1, 1, 2, 1]))
    first, second = search.strongest(0, 3, 5, np.ones(5, dtype=bool))
    assert (first.nodes, first.strength) == ((0, 1, 3), -3 / 8)
    assert (second.nodes, second.strength) == ((0, 2, 3), 1 / 8)


def test_there_may_be_no_path() -> None:
    graph = random_graph()
    last = len(graph) - 1
    assert search_of(graph).strongest(last, 0, 3, np.ones(len(graph), dtype=bool)) == ()
