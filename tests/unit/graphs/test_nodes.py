from __future__ import annotations

import numpy as np
import pytest

from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes, GraphTargets


def nodes() -> GraphNodes:
    """Two layers, three tokens; three active features, two of which are nodes; one target."""
    return GraphNodes(
        token_ids=np.array([0, 7, 5]),
        n_layers=2,
        active=np.array([[0, 1, 4], [0, 2, 3], [1, 2, 9]]),
        kinds=np.full(3, GraphNodeKind.FEATURE.number),
        errors=tuple((GraphNodeKind.ERROR, layer) for layer in range(2)),
        activations=np.array([0.5, 1.5, 2.5], dtype=np.float32),
        selected=np.array([0, 2]),
        targets=GraphTargets(
            token_ids=np.array([6]),
            names=("",),
            weights=np.array([0.25], dtype=np.float32),
            vectors=np.zeros((1, 4), dtype=np.float32),
        ),
    )


def test_nodes_are_features_then_errors_then_embeddings_then_targets() -> None:
    one = nodes()
    kinds = [one.kind(node) for node in range(len(one))]
    assert kinds == (
        [GraphNodeKind.FEATURE] * 2 + [GraphNodeKind.ERROR] * 6 + [GraphNodeKind.EMBEDDING] * 3 + [GraphNodeKind.TARGET]
    )


def test_a_node_knows_what_it_is_of() -> None:
    one = nodes()
    assert [one.feature(0), one.feature(1)] == [(0, 1, 4), (1, 2, 9)]
    assert [one.error(node) for node in range(2, 8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [one.embedding(node) for node in range(8, 11)] == [0, 1, 2]
    assert one.target(11) == 0


def test_properties_of_all_nodes_are_those_of_each() -> None:
    one = nodes()
    assert one.layers.tolist() == [0, 1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 2]
    assert one.tokens.tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 2]
    assert one.weights.tolist() == [0.0] * 11 + [0.25]


def test_only_features_and_targets_are_acted_on() -> None:
    one = nodes()
    assert one.readers.tolist() == [0, 1, 11]
    matrix = np.zeros((12, 12), dtype=np.float32)
    matrix[[1, 11, 11], [0, 1, 9]] = 0.5, -2.0, 3.0
    graph = AttributionGraph.of_matrix(one, matrix)
    assert graph.effects.shape == (3, 12)
    assert (graph.adjacency == matrix).all()


@pytest.mark.parametrize("node", [-1, 12])
def test_there_is_no_other_node(node: int) -> None:
    with pytest.raises(IndexError, match="of 12"):
        nodes().kind(node)
