"""Nodes of attribution graphs: their order, and their names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, GraphNode, GraphNodeKind, GraphNodeTable
from dst_grpc.errors import InvalidRequest
from tests.random_graphs import random_graph

indices = st.integers(0, 10**9 - 1)
texts = st.text(min_size=1, max_size=5) | st.sampled_from(["logit:5", "target:x", "t3", "\n"])


@given(
    st.builds(GraphNode, st.sampled_from(UNIT_KINDS), indices, indices, indices)
    | st.builds(GraphNode, st.sampled_from(ERROR_KINDS), indices, indices)
    | st.builds(GraphNode, st.just(GraphNodeKind.EMBEDDING), token=indices)
    | st.builds(GraphNode, st.just(GraphNodeKind.TARGET), feature=indices)
    | st.builds(GraphNode, st.just(GraphNodeKind.TARGET), direction=texts)
)
def test_a_name_says_what_a_node_is(node: GraphNode) -> None:
    assert GraphNode.named(str(node)) == node


@pytest.mark.parametrize(
    "name",
    [
        "",
        "f3.120",
        "f3@5",
        "f-1.2@3",
        "f01.2@3",
        "e3",
        "t",
        "t5 ",
        "t\N{ARABIC-INDIC DIGIT FIVE}",
        "logit:",
        "logit:x",
        "target:",
        "0_3_5",
        "n3@5",
        "h3.2",
        "m3.17@5",
        "a3.error",
        "r3.lerror@5",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no node"):
        GraphNode.named(name)


def test_nodes_are_numbered_units_errors_embeddings_targets() -> None:
    table = GraphNodeTable.of(
        features=np.array([[0, 1, 9], [1, 0, 4]]),
        kinds=np.array([GraphNodeKind.FEATURE.number, GraphNodeKind.HEAD.number]),
        activations=np.array([0.5, 2.0]),
        errors=[(GraphNodeKind.ERROR, 0), (GraphNodeKind.RESIDUAL_ERROR, 1)],
        token_ids=[30, 31],
        target_ids=[7, -1],
        target_names=["", "up"],
    )
    expected = [
        *[("feature", 0, 1, 9, 0.5), ("head", 1, 0, 4, 2.0)],
        *[(kind, layer, token, -1, 0.0) for layer, kind in enumerate(("error", "residual_error")) for token in (0, 1)],
        *[("embedding", -1, 0, 30, 0.0), ("embedding", -1, 1, 31, 0.0)],
        *[("target", -1, 1, 7, 0.0), ("target", -1, 1, -1, 0.0)],
    ]
    kinds = [list(GraphNodeKind)[kind - 1].value for kind in table.kinds]
    columns = (table.layers, table.tokens, table.features, table.activations)
    assert list(zip(kinds, *(column.tolist() for column in columns), strict=True)) == expected
    assert table.nodes.tolist() == list(range(10))
    assert table.names == (
        *("f0.9@1", "h1.4@0", "e0@0", "e0@1", "r1.error@0", "r1.error@1"),
        *("t0", "t1", "logit:7", "target:up"),
    )
    assert table.depths.tolist() == [0, 1, *[-1] * 6, 10, 10]
    assert {column.dtype for column in columns} == {np.dtype(np.int32), np.dtype(np.float32)}


def test_every_node_of_a_graph_is_found_by_its_name_and_no_two_share_one() -> None:
    graph = random_graph(targets=(7, "logit:7", 3, "target:7"))
    names = graph.table.names
    assert len(set(names)) == len(graph)
    assert [graph.table.place(name) for name in names] == list(range(len(graph)))
    assert names[-4:] == ("logit:7", "target:logit:7", "logit:3", "target:target:7")
    some = graph.table.rows(np.array([5, 2]))
    assert (some.names, some.nodes.tolist(), some.place(names[2])) == ((names[5], names[2]), [5, 2], 1)


@pytest.mark.parametrize("name", ["f0.1@99", "e9@0", "t4", "logit:8", "target:another", "f9.1@0"])
def test_a_node_that_the_graph_does_not_have_is_not_found(name: str) -> None:
    with pytest.raises(KeyError):
        random_graph().table.place(name)


def test_a_restriction_leaves_nodes_of_its_layers_tokens_and_kinds() -> None:
    graph = random_graph()
    table = graph.table
    assert table.allowed((), (), ()).all()
    of_layer = table.allowed([1], (), ())
    assert set(table.layers[of_layer]) == {-1, 1}
    assert of_layer[table.has_kind(GraphNodeKind.EMBEDDING) | table.has_kind(GraphNodeKind.TARGET)].all()
    at_token = table.allowed((), [0, 2], ())
    assert set(table.tokens[at_token]) == {0, 2}
    kinds = [GraphNodeKind.ERROR, GraphNodeKind.TARGET]
    of_kind = table.allowed((), (), kinds)
    assert set(table.kinds[of_kind]) == {kind.number for kind in kinds}
    both = table.allowed([1], [0, 2], kinds)
    assert (both == (of_layer & at_token & of_kind)).all()


def test_the_nearest_nodes_share_most_with_what_is_missing() -> None:
    table = GraphNodeTable.of(
        features=np.array([(0, 1, 7), (0, 3, 9), (1, 1, 7), (1, 1, 20), (1, 2, 20), (1, 3, 20)]),
        kinds=np.full(6, GraphNodeKind.FEATURE.number),
        activations=np.ones(6),
        errors=[(GraphNodeKind.ERROR, 0), (GraphNodeKind.ERROR, 1)],
        token_ids=(5, 5, 5, 5),
        target_ids=(7, -1, 464),
        target_names=("", "upwards", ""),
    )
    assert table.nearest("f1.20@0") == ("f1.20@1", "f1.20@2", "f1.20@3")
    assert table.nearest("f1.9@1") == ("f1.7@1", "f1.20@1", "f1.20@2")
    assert table.nearest("e5@2", 2) == ("e1@2", "e0@2")
    assert table.nearest("t9") == ("t3", "t2", "t1")
    assert table.nearest("logit:465", 1) == ("logit:464",)
    assert table.nearest("target:up") == ("target:upwards",)
    assert table.missing("t9") == "there is no node t9; the nearest are t3, t2, t1"
    features = table.rows(table.has_kind(GraphNodeKind.FEATURE))
    assert features.missing("t9") == "there is no node t9, nor any other of kind embedding"
    assert features.missing("logit:7") == "there is no node logit:7, nor any other of kind target"
    with pytest.raises(ValueError, match="is no node"):
        table.nearest("Mary")


def test_columns_of_different_lengths_are_refused() -> None:
    table = random_graph().table
    columns = {name: getattr(table, name) for name in ("nodes", "kinds", "layers", "tokens", "features")}
    with pytest.raises(InvalidRequest) as caught:
        GraphNodeTable(**columns, activations=table.activations[1:], names=table.names[2:])
    assert [violation.field for violation in caught.value.violations] == ["activations", "names"]
