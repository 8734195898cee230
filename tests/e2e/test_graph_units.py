"""Graphs of neurons, heads and latents of the model of the package, over a socket: what they are made of, hold, and
answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from dst_grpc.client import Client, GraphAnswer, make_graph_intervention, viewer_json
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.errors import Exhausted, InvalidRequest
from tests.graph_goldens import FOLDER

PROMPT = "When Mary and John went to the store, John gave a drink to"
SCHEMA = json.loads((FOLDER / "graph-schema.json").read_text())
CHOICES: dict[str, dict[str, Any]] = {
    "neurons": {"sources": "neurons"},
    "heads": {"sources": "heads"},
    "features and heads": {"sources": ("features", "heads")},
    "latents of neurons": {"autoencoders": "embedded/mlp_post_act"},
    "neurons and latents of attention": {
        "sources": ("neurons", "latents"),
        "autoencoders": "embedded/resid_delta_attn",
        "max_feature_nodes": 60,
    },
}


@pytest.fixture(scope="module", name="client")
def _client(embedded_address: str) -> Iterator[Client]:
    with Client(embedded_address) as client:
        yield client


@pytest.mark.parametrize("name", CHOICES)
def test_a_graph_is_made_of_what_is_asked_for(client: Client, name: str) -> None:
    graph = client.graph(PROMPT, **CHOICES[name])
    kinds = {kind.value for kind in GraphNodeKind if graph.table.has_kind(kind).any()}
    expected = {
        "neurons": {"neuron"},
        "heads": {"head", "error"},
        "features and heads": {"feature", "head", "error"},
        "latents of neurons": {"mlp_latent", "error"},
        "neurons and latents of attention": {"neuron", "attention_latent", "attention_error"},
    }
    assert kinds == {"embedding", "target", *expected[name]}
    assert len(set(graph.names)) == len(graph.table)
    assert graph.header.sources == tuple(graph.kept.sources if graph.kept else ())
    assert bool(graph.header.transcoders) is ("features" in name)
    if name == "neurons":
        assert graph.replacement_score == graph.completeness_score == 1.0
        assert graph.header.feature_count == 500
    _check_file(graph)
    _check_questions(client, graph)
    client.drop_graph(graph)


def _check_file(graph: GraphAnswer) -> None:
    """The viewers' file fits their schema, and its links their nodes."""
    file = viewer_json(graph)
    jsonschema.validate(file, SCHEMA)
    ids = {node["node_id"] for node in file["nodes"]}
    assert {end for link in file["links"] for end in (link["source"], link["target"])} <= ids


def _check_questions(client: Client, graph: GraphAnswer) -> None:
    """Edges are what a run in which a unit is set does, and the kept graph knows it by name."""
    target = graph.names[-len(graph.header.targets)]
    (edge,) = client.graph_neighbours(graph, target, 1, direction="inputs", kinds=[graph.top(1)[0].kind]).above()
    assert edge in graph.neighbours(target, 1000, direction="inputs")
    (run,) = client.intervene_on_graph(graph, make_graph_intervention(off=[edge.source]))
    (change,) = (one for one in run.changes if one.node == target)
    assert change.measured == pytest.approx(-edge.weight, rel=5e-4)
    assert change.predicted == pytest.approx(-edge.weight, rel=1e-5)
    for verified in client.verify_graph(graph, 2):
        assert verified.held_deviation <= 5e-4 * verified.size
    pairs = client.attention_pairs(graph, layer=3, head=2, query=14, key=2, k=5)
    total = sum(pair.contribution for pair in pairs.pairs) + pairs.remainder
    assert total == pytest.approx(pairs.score, rel=1e-4)


def test_tokens_are_told_of_what_writes_the_same_whatever_the_prompt(client: Client) -> None:
    graph = client.graph(PROMPT, sources="neurons", max_feature_nodes=3)
    (scored,) = client.feature_tokens(graph, graph.top(1)[0].name, k=2)
    assert len(scored.promoted) == len(scored.read) == 2
    latents = client.graph(PROMPT, autoencoders="embedded/resid_delta_mlp", max_feature_nodes=3)
    (scored,) = client.feature_tokens(latents, latents.top(1)[0].name, k=2)
    assert (len(scored.promoted), len(scored.read)) == (2, 0)
    heads = client.graph(PROMPT, sources="heads")
    with pytest.raises(InvalidRequest, match="is of kind head"):
        client.feature_tokens(heads, heads.top(1)[0].name)


def test_edges_of_a_graph_of_heads_pass_through_no_others(client: Client) -> None:
    graph = client.graph(PROMPT, sources="heads")
    target = graph.names[-1]
    with pytest.raises(InvalidRequest, match="stand for heads"):
        client.edge_heads(graph, graph.top(1)[0].name, target)
    neurons = client.graph(PROMPT, sources="neurons", edges="whole")
    edge = neurons.neighbours(neurons.names[-1], 1, direction="inputs", kinds=["neuron"])[0]
    found = client.edge_heads(neurons, edge.source, edge.target)
    assert found.weight == pytest.approx(edge.weight, rel=1e-4)


def test_a_graph_that_can_never_fit_is_refused_before_it_runs(client: Client) -> None:
    with pytest.raises(Exhausted, match="active units needs about"):
        client.graph(PROMPT, sources="neurons", max_feature_nodes=10_000, max_bytes=100 << 20)


def test_pruning_here_is_that_of_the_server(client: Client) -> None:
    graph = client.graph(PROMPT, sources=("features", "heads"), edges="whole", max_feature_nodes=50)
    view = client.prune_graph(graph, 0.5, 0.9)
    own = graph.prune(0.5, 0.9)
    assert own.summary.kept_edge_count == len(view.edges)
    np.testing.assert_array_equal(np.sort(own.edges.weights), np.sort(view.edges.weights))
