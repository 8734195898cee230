"""Graphs as answers of the client: assembled, named, asked about; requests as they are sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import graph_pb2 as pb
from dst_grpc.client import (
    BeginToken,
    Client,
    GraphAnswer,
    GraphEdgeDirection,
    GraphEdgeQuery,
    GraphEdges,
    GraphEdgeSelection,
    GraphNeighbours,
    GraphNodeKind,
    GraphPart,
    GraphPartKind,
    GraphPathQuery,
    GraphPhase,
    GraphPruning,
    GraphTarget,
    Prompt,
    PutTensor,
    RequestTensor,
    make_graph_request,
)
from dst_grpc.client._graphs import GraphCollector, GraphViewCollector
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.errors import DataLoss, InvalidRequest, NotFound, Reason
from dst_grpc.graphs.influence import prune
from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.wire.codec import read
from tests.fake_graphs import GRAPH, KEPT, graph_parts, query_parts
from tests.fake_runs import SUMMARY
from tests.fake_service import N_KEPT_GRAPHS, FakeService

TRAILER = GraphPart(
    kind=GraphPartKind.TRAILER,
    value=RunsTrailer(frame_count=0, statistics=SUMMARY.statistics, provenance=SUMMARY.provenance),
)


def collected(parts: list[GraphPart]) -> GraphAnswer:
    """The answer in *parts*."""
    collector = GraphCollector("")
    found = [collector.take(part) for part in [*parts, TRAILER]]
    assert found[:-1] == [None] * len(parts)
    assert found[-1] is not None
    return found[-1]


@pytest.fixture(name="answer", scope="module")
def _answer() -> GraphAnswer:
    return collected(graph_parts())


# Requests


def test_arguments_become_a_request() -> None:
    vector = np.array([1.0, 0.0], np.float32)
    whole = GraphTarget(token=" x", weight=0.5)
    request = make_graph_request(
        [1, 2],
        "plt",
        targets=[" a", 7, whole],
        directions={"up": vector, "stored": RequestTensor(handle="t1")},
        edges="whole",
        begin_token="as_given",
        max_feature_nodes=10,
        keep=True,
    )
    assert request.prompt == Prompt(token_ids=(1, 2))
    assert request.targets == (
        GraphTarget(token=" a"),
        GraphTarget(token_id=7),
        whole,
        GraphTarget(direction=RequestTensor(tensor=vector), name="up"),
        GraphTarget(direction=RequestTensor(handle="t1"), name="stored"),
    )
    assert (request.edges, request.begin_token) == (GraphEdgeSelection.WHOLE, BeginToken.AS_GIVEN)
    assert (request.max_feature_nodes, request.keep, request.max_bytes) == (10, True, None)
    assert make_graph_request("a", "plt", targets=7).targets == (GraphTarget(token_id=7),)
    assert make_graph_request("a", "plt", targets=" a").targets == (GraphTarget(token=" a"),)


def test_a_stored_tensor_is_named_by_its_handle() -> None:
    stored = PutTensor(handle="t1", byte_count=8, expire_time=KEPT.expire_time)
    request = make_graph_request("a", "plt", directions={"up": stored})
    assert request.targets[0].direction == RequestTensor(handle="t1")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"edges": "prund"}, "edges"),
        ({"targets": [""]}, "targets[0].token"),
        ({"targets": ["a", -1]}, "targets[1].token_id"),
        ({"targets": [5, 5]}, "targets[1].token_id"),
        ({"directions": {"up": np.zeros(3)}}, "targets[0].direction"),
        ({"directions": {"": np.ones(3)}}, "targets[0].name"),
        ({"targets": "a", "directions": {"up": np.ones((2, 2))}}, "targets[1].direction"),
        ({"directions": {"up": np.ones(3), "down": np.array([np.inf])}}, "targets[1].direction.tensor"),
        ({"max_n_logits": 0}, "max_n_logits"),
        ({"desired_logit_prob": 0.0}, "desired_logit_prob"),
        ({"max_feature_nodes": 0}, "max_feature_nodes"),
        ({"node_threshold": 1.5}, "node_threshold"),
        ({"edge_threshold": float("nan")}, "edge_threshold"),
        ({"update_interval": 0}, "update_interval"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_graph_request("a", "plt", **arguments)
    assert field in [violation.field for violation in caught.value.violations]


# Answers


def test_pieces_join_to_the_graph(answer: GraphAnswer) -> None:
    assert (answer.adjacency == GRAPH.matrix).all()
    assert answer.names == GRAPH.table.names
    assert answer.is_whole
    sources, targets, weights = answer.coo
    assert (GRAPH.matrix[targets, sources] == weights).all()
    assert (answer.handle, answer.replacement_score, answer.completeness_score) == ("graph-one", 0.5, 0.75)
    assert repr(answer).startswith(f"<GraphAnswer {len(GRAPH) // 2 + 1} of {len(GRAPH)} nodes")


def test_nodes_say_what_they_are(answer: GraphAnswer) -> None:
    first, last = answer.nodes[0], answer.node("target:up")
    assert first == answer.node(first.name)
    assert first.name == f"f{first.layer}.{first.feature}@{first.token}"
    assert (first.kind, first.kept) == (GraphNodeKind.FEATURE, True)
    assert (last.kind, last.layer, last.feature, last.token) == (GraphNodeKind.TARGET, None, None, 3)
    assert answer.node("logit:7").feature == 7
    assert [node.cumulative_score for node in answer.top(3)] == sorted(
        node.cumulative_score for node in answer.nodes if node.kind is GraphNodeKind.FEATURE
    )[:3]
    assert {node.kind for node in answer.top(50, ["error", "embedding"])} == {"error", "embedding"}
    with pytest.raises(NotFound) as caught:
        answer.node("target:ip")
    assert "target:up" in caught.value.nearest
    with pytest.raises(InvalidRequest, match="name: 'Mary' is no node: a feature is"):
        answer.node("Mary")


def test_neighbours_are_the_strongest_edges(answer: GraphAnswer) -> None:
    node = GRAPH.table.place("logit:7")
    weights = GRAPH.matrix[node]
    found = answer.neighbours("logit:7", 5)
    expected = np.argsort(-np.abs(weights), kind="stable")[:5]
    assert [edge.source for edge in found] == [GRAPH.table.names[i] for i in expected]
    assert [edge.weight for edge in found] == weights[expected].tolist()
    np.testing.assert_allclose([edge.share for edge in found], np.abs(weights[expected]) / np.abs(weights).sum(), 1e-6)
    assert answer.neighbours("logit:7", direction="outputs") == ()
    both = answer.neighbours(GRAPH.table.names[5], 100, kinds=["target", "embedding"])
    assert {answer.node(edge.target).kind for edge in both if edge.source == GRAPH.table.names[5]} <= {"target"}
    assert {answer.node(edge.source).kind for edge in both if edge.target == GRAPH.table.names[5]} <= {"embedding"}
    assert str(found[0]) == f"{found[0].source} -> logit:7: {found[0].weight:+.4g}"


def test_edges_above_a_weight_are_restricted(answer: GraphAnswer) -> None:
    assert len(answer.above()) == len(GRAPH.edges)
    found = answer.above(1.0, tokens=[3], kinds=("feature", "target"))
    ends = GRAPH.table.allowed((), [3], [GraphNodeKind.FEATURE, GraphNodeKind.TARGET])
    assert len(found) == np.count_nonzero((np.abs(GRAPH.matrix) >= 1) & ends & ends[:, None])
    magnitudes = [abs(edge.weight) for edge in found]
    assert magnitudes == sorted(magnitudes, reverse=True)


def test_paths_lead_along_edges(answer: GraphAnswer) -> None:
    found = answer.paths("t0", "logit:7", 4)
    assert found
    for path in found:
        assert (path.nodes[0], path.nodes[-1]) == ("t0", "logit:7")
        strength = 1.0
        for source, target in zip(path.nodes, path.nodes[1:], strict=False):
            (edge,) = [one for one in answer.neighbours(target, 100, direction="inputs") if one.source == source]
            strength *= edge.share * np.sign(edge.weight)
        assert path.strength == pytest.approx(strength, rel=1e-5)
    with pytest.raises(InvalidRequest, match="target: must be another node than the source"):
        answer.paths("t0", "t0")


NAN = float("nan")
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("neighbours", ("t0", 0), {"node": "t0", "top_k": 0}),
    ("neighbours", ("t0", 100_001), {"node": "t0", "top_k": 100_001}),
    ("neighbours", ("Mary", 0), {"node": "Mary", "top_k": 0}),
    ("paths", ("t0", "logit:7", 0), {"source": "t0", "target": "logit:7", "top_k": 0}),
    ("paths", ("t0", "logit:7", 1001), {"source": "t0", "target": "logit:7", "top_k": 1001}),
    ("paths", ("t0", "t0"), {"source": "t0", "target": "t0"}),
    ("paths", ("", "Mary"), {"target": "Mary"}),
    ("edges", (NAN,), {"min_weight": NAN}),
    ("edges", (-1,), {"min_weight": -1.0}),
    ("pruning", (2, 1), {"node_threshold": 2.0, "edge_threshold": 1.0}),
    ("pruning", (0.5, NAN), {"node_threshold": 0.5, "edge_threshold": NAN}),
]


@pytest.mark.parametrize(("question", "arguments", "message"), REFUSED)
def test_what_cannot_be_asked_is_refused_in_the_words_of_the_server(
    answer: GraphAnswer,
    client: Client,
    question: str,
    arguments: tuple[Any, ...],
    message: dict[str, Any],
) -> None:
    request = pb.QueryGraphRequest(graph="g")
    for name, value in message.items():
        setattr(getattr(request, question), name, value)
    with pytest.raises(InvalidRequest) as expected:
        read(QueryGraphRequest, request)
    own = getattr(answer, {"edges": "above", "pruning": "prune"}.get(question, question))
    asked = getattr(client, {"pruning": "prune_graph"}.get(question, f"graph_{question}"))
    for call in (own, partial(asked, "g")):
        with pytest.raises(InvalidRequest) as caught:
            call(*arguments)
        assert caught.value.violations == expected.value.violations


def test_no_negative_number_is_asked_for(answer: GraphAnswer, client: Client) -> None:
    assert answer.top(0) == ()
    for question in (answer.neighbours, partial(client.graph_neighbours, "g")):
        with pytest.raises(InvalidRequest, match=r"filter\.layers\[0\]: must be 0 or more, not -1"):
            question("t0", layers=[-1])
        with pytest.raises(InvalidRequest, match=r"neighbours\.top_k: must be between 1 and 100000, not -1"):
            question("t0", -1)
    with pytest.raises(InvalidRequest, match="n: must be 0 or more, not -1"):
        answer.top(-1)


def test_an_argument_of_a_wrong_type_is_named(answer: GraphAnswer, client: Client) -> None:
    def refusal(question: Any, *arguments: Any, **others: Any) -> str:
        with pytest.raises(TypeError) as caught:
            question(*arguments, **others)
        return str(caught.value)

    no_graph = "graph must be a handle, a KeptGraph or a GraphAnswer, not 5"
    assert refusal(client.drop_graph, 5) == no_graph
    assert refusal(client.graph_neighbours, 5, "t0") == no_graph
    assert refusal(client.attention_pairs, "g", "0", 0, 0, 0) == "attention.layer must be an integer, not '0'"
    assert refusal(client.verify_graph, "g", 1.5) == "verification.count must be an integer, not 1.5"
    assert refusal(client.feature_tokens, "g", 3) == "feature_tokens.nodes must be an iterable, not 3"
    assert refusal(client.intervene_on_graph, "g", "f0.1@1").startswith(
        "interventions.interventions[0] must be a Graph"
    )
    for question in (answer.neighbours, partial(client.graph_neighbours, "g")):
        assert refusal(question, 5) == "neighbours.node must be a text, not 5"
        assert refusal(question, "t0", "5") == "neighbours.top_k must be an integer, not '5'"
        assert refusal(question, "t0", layers=3) == "filter.layers must be an iterable, not 3"
        assert refusal(question, "t0", tokens=["a"]) == "filter.tokens[0] must be an integer, not 'a'"
        assert refusal(question, "t0", kinds=[3]).startswith("filter.kinds[0] must be a text or a member of GraphNodeK")
    for call in (client.graph_request, client.query_graph, client.probe_graph):
        assert refusal(call, 5) == "a value of class int has no message: it is no request"
    assert refusal(client.graph, "a", timeout="1") == "timeout must be a number or None, not '1'"
    with pytest.raises(InvalidRequest, match="timeout: must be a number of seconds, not nan"):
        client.graphs(timeout=NAN)
    assert refusal(answer.node, 5) == "name must be a text, not 5"
    assert refusal(answer.top, "5") == "n must be an integer, not '5'"
    assert refusal(answer.prune, "0.5", 1) == "pruning.node_threshold must be a number, not '0.5'"


def test_pruning_needs_all_edges(answer: GraphAnswer) -> None:
    pruned = answer.prune(0.5, 0.9)
    assert pruned.summary.node_threshold == 0.5
    assert len(pruned.edges) == pruned.summary.kept_edge_count < len(answer.edges)
    assert not pruned.is_whole
    with pytest.raises(InvalidRequest, match="prune_graph"):
        pruned.prune(0.5, 0.9)
    expected = prune(AttributionGraph.of_matrix(answer._graph_nodes, GRAPH.matrix), 0.5, 0.9)
    assert (pruned.scores.kept == expected.node_mask).all()
    assert ((pruned.adjacency[answer._graph_nodes.readers] != 0) == expected.edge_mask).all()


def damaged(parts: list[GraphPart], kind: GraphPartKind, **changes: Any) -> list[GraphPart]:
    """*parts*, the first of *kind* with other fields."""
    place = next(i for i, part in enumerate(parts) if part.kind is kind)
    value: Any = dataclasses.replace(parts[place].value, **changes)
    return [*parts[:place], GraphPart(kind=kind, value=value), *parts[place + 1 :]]


def without(parts: list[GraphPart], kind: GraphPartKind) -> list[GraphPart]:
    return [part for part in parts if part.kind is not kind]


_P = GraphPartKind
CORRUPT: dict[str, Callable[[Any], list[GraphPart]]] = {
    "two headers": lambda parts: [parts[0], *parts],
    "no header": lambda parts: parts[1:],
    "no nodes": lambda parts: without(parts, _P.NODES),
    "no scores": lambda parts: without(parts, _P.SCORES),
    "no summary": lambda parts: without(parts, _P.SUMMARY),
    "too few nodes": lambda parts: damaged(parts, _P.HEADER, node_count=len(GRAPH) + 1),
    "another order": lambda parts: damaged(parts, _P.NODES, nodes=np.zeros(len(GRAPH) // 2, np.int32)),
    "another kind": lambda parts: damaged(parts, _P.NODES, kinds=np.full(len(GRAPH) // 2, 99, np.int32)),
    "other scores": lambda parts: damaged(parts, _P.SCORES, nodes=GRAPH.table.nodes + 1),
    "edges of others": lambda parts: damaged(parts, _P.EDGES, targets=parts[6].value.targets + 1000),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_an_answer_that_contradicts_itself_is_refused(name: str) -> None:
    with pytest.raises(DataLoss) as caught:
        collected(CORRUPT[name](graph_parts()))
    assert caught.value.reason is Reason.ANSWER_CORRUPT


def test_a_view_holds_what_a_question_found() -> None:
    collector = GraphViewCollector()
    found = [collector.take(part) for part in [*query_parts(), TRAILER]][-1]
    assert found is not None
    assert len(found.table) == 2
    (edge,) = found.above()
    (path,) = found.found
    assert path.nodes == (edge.source, edge.target)
    assert str(path) == f"{edge.source} -> {edge.target}: +0.25"
    assert found.neighbours(edge.target, direction="inputs") == (edge,)


# Calls


def test_a_graph_is_asked_for(service: FakeService, client: Client) -> None:
    seen: list[Any] = []
    answer = client.graph([1, 2], "plt", targets=7, request_id="mine", on_progress=seen.append)
    assert service.graph_asked is not None
    assert service.graph_asked.targets == (GraphTarget(token_id=7),)
    assert (answer.request_id, answer.handle) == ("mine", "graph-one")
    assert (answer.adjacency == GRAPH.matrix).all()
    assert [one.phase for one in seen] == [GraphPhase.TARGETS, GraphPhase.FEATURES]
    assert client.graph("a", "plt", keep=False).handle is None


def test_parts_come_one_by_one(client: Client) -> None:
    kinds = [part.kind for part in client.graph_parts(make_graph_request("a", "plt"))]
    assert kinds == [*(part.kind for part in graph_parts()), GraphPartKind.TRAILER]


def test_questions_are_sent(service: FakeService, client: Client) -> None:
    def asked() -> Any:
        assert service.graph_query is not None
        assert service.graph_query.graph == "graph-one"
        return service.graph_query.query

    answer = client.graph("a", "plt")
    client.graph_neighbours(answer, "t0", 3, direction="inputs")
    assert asked() == GraphNeighbours(node="t0", top_k=3, direction=GraphEdgeDirection.INPUTS)
    client.graph_paths("graph-one", "t0", "logit:7", 5, layers=[1], tokens=[0], kinds="feature")
    assert asked() == GraphPathQuery(source="t0", target="logit:7", top_k=5)
    assert service.graph_query is not None
    assert service.graph_query.filter.kinds == (GraphNodeKind.FEATURE,)
    client.graph_edges(KEPT, 0.5)
    assert asked() == GraphEdgeQuery(min_weight=0.5)
    found = client.prune_graph(answer, 0.5, 0.9)
    assert asked() == GraphPruning(node_threshold=0.5, edge_threshold=0.9)
    assert isinstance(found.edges, GraphEdges)


def test_kept_graphs_are_listed_and_dropped(client: Client) -> None:
    assert client.graphs() == [KEPT] * N_KEPT_GRAPHS
    client.drop_graph(KEPT)
    with pytest.raises(NotFound):
        client.drop_graph("another")
    with pytest.raises(InvalidRequest, match="not kept"):
        client.drop_graph(client.graph("a", "plt", keep=False))


def test_a_truncated_answer_is_refused(service: FakeService, client: Client) -> None:
    service.scripts["truncated"] = lambda _: (_ for _ in ())  # type: ignore[assignment,return-value]  # only its key
    with pytest.raises(DataLoss, match="truncated"):
        client.graph("a", "plt")
