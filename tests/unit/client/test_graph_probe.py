"""Questions to the model about kept graphs, as the client asks them and reads their answers."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc._gen.dst.v1.graph_probe_pb2 import GraphProbeFrame, ProbeGraphResponse
from dst_grpc.client import (
    Client,
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureSetting,
    GraphFeatureTokens,
    GraphIntervention,
    GraphInterventions,
    GraphVerification,
    make_graph_intervention,
)
from dst_grpc.client._graph_probe import _Collector
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_probe_answers import GraphChanges
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from dst_grpc.wire.codec import to_wire
from tests.fake_answers import SUMMARY
from tests.fake_graphs import probe_parts
from tests.fake_service import FakeService

PARTS = probe_parts()


def probe(service: FakeService) -> Any:
    """What was asked last."""
    assert service.graph_probe is not None
    return service.graph_probe.probe


def test_each_question_is_asked_and_its_part_returned(client: Client, service: FakeService) -> None:
    runs = make_graph_intervention({"f1.3@2": 2.0}, factors={"f1.4@2": 0.5}, off=["f0.1@1"], first_free_layer=0)
    assert client.intervene_on_graph("graph-one", runs) == tuple(part.value for part in PARTS[:2])
    settings = (
        GraphFeatureSetting(nodes=("f1.3@2",), activation=2.0),
        GraphFeatureSetting(nodes=("f1.4@2",), factor=0.5),
        GraphFeatureSetting(nodes=("f0.1@1",), factor=0.0),
    )
    expected = GraphIntervention(settings=settings, first_free_layer=0)
    assert probe(service) == GraphInterventions(interventions=(expected,))
    assert service.graph_probe is not None
    assert service.graph_probe.graph == "graph-one"
    assert client.verify_graph("graph-one", 3, seed=4) == (PARTS[2].value,)
    assert probe(service) == GraphVerification(count=3, seed=4)
    assert client.edge_heads("graph-one", "t1", "logit:7") == PARTS[3].value
    assert probe(service) == GraphEdgeHeads(source="t1", target="logit:7")
    assert client.attention_pairs("graph-one", 1, 2, 5, 3, k=7) == PARTS[4].value
    assert probe(service) == GraphAttention(layer=1, head=2, query=5, key=3, top_k=7)
    assert client.feature_tokens("graph-one", "f1.3@2", k=3) == (PARTS[5].value,)
    assert probe(service) == GraphFeatureTokens(nodes=("f1.3@2",), top_k=3)


def test_one_feature_may_be_named_alone() -> None:
    found = make_graph_intervention(off="f0.1@1")
    assert found.settings == (GraphFeatureSetting(nodes=("f0.1@1",), factor=0.0),)


def test_features_that_cannot_be_set_are_told_by_the_argument_that_names_them() -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_graph_intervention({"f0.1@1": 1.0, "Mary": 1.0}, factors={"f0.1@1": 2.0}, off=["t1", "f0.1@1"])
    assert [one.field for one in caught.value.violations] == [
        "activations['Mary']",
        "factors['f0.1@1']",
        "off[0]",
        "off[1]",
    ]
    assert caught.value.violations[1].description == "is set by activations['f0.1@1'] too"
    with pytest.raises(InvalidRequest, match=r"^factors\['f0.1@1'\]\.factor: must be finite, not inf"):
        make_graph_intervention(factors={"f0.1@1": float("inf")})


def test_what_cannot_be_asked_is_told_by_the_path_of_the_message(client: Client) -> None:
    def fields(question: Any, *arguments: Any, **others: Any) -> list[str]:
        with pytest.raises(InvalidRequest) as caught:
            question("graph-one", *arguments, **others)
        return [one.field for one in caught.value.violations]

    assert fields(client.feature_tokens, "t1", k=0) == ["feature_tokens.nodes[0]", "feature_tokens.top_k"]
    assert fields(client.attention_pairs, 0, 0, 1, 2) == ["attention.key"]
    assert fields(client.edge_heads, "logit:7", "t1") == ["edge_heads.source", "edge_heads.target"]
    assert fields(client.verify_graph, 0, seed=-1) == ["verification.count", "verification.seed"]
    assert fields(client.intervene_on_graph, []) == ["interventions.interventions"]


def trailer(frame_count: int) -> Any:
    """The frame that ends an answer of so many."""
    end = RunsTrailer(statistics=SUMMARY.statistics, provenance=SUMMARY.provenance, frame_count=frame_count)
    return GraphProbeFrame(trailer=to_wire(end))


def test_a_damaged_answer_is_refused() -> None:
    with pytest.raises(DataLoss) as caught:
        _Collector().add(ProbeGraphResponse(frames=[trailer(3)]))
    assert caught.value.reason is Reason.ANSWER_TRUNCATED
    swapped = GraphProbeFrame(changes=to_wire(GraphChanges(index=1)))
    with pytest.raises(DataLoss, match="not in order"):
        _Collector().add(ProbeGraphResponse(frames=[swapped, trailer(2)]))
