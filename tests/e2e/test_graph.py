"""Graph over a socket: the golden data of four families, kept graphs, what is refused, cancelling, eviction."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import graph_pb2
from dst_grpc._gen.dst.v1.graph_service_pb2_grpc import GraphServiceStub
from dst_grpc.client import (
    AsyncClient,
    Client,
    GraphAnswer,
    GraphNeighbours,
    GraphPartKind,
    QueryGraphRequest,
    Role,
    make_graph_request,
)
from dst_grpc.errors import DeadlineExceeded, Exhausted, InvalidRequest, NotFound, Reason
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.codec import to_wire
from tests import tokens
from tests.e2e.conftest import error_of
from tests.graph_goldens import NAMES, THRESHOLDS, GoldenGraph, golden_graph, model_folder


def question(case: GoldenGraph, **arguments: Any) -> Any:
    """The request of *case*."""
    given = dict(case.arguments)
    asked: dict[str, Any] = {"model": case.facts["model"], "targets": given.pop("attribution_targets", ())}
    name = f"{case.facts['model']}/{case.facts['transcoders']}"
    return make_graph_request(case.tensors["tokens"].tolist(), name, **asked | given | arguments)


def assert_close(found: Any, golden: Any) -> None:
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-6 + 1e-4 * np.abs(golden).max(initial=0))


def assert_is_golden(answer: GraphAnswer, case: GoldenGraph) -> None:
    """The nodes, targets and scores of *case*."""
    golden = case.graph.nodes
    features = golden.active[golden.selected]
    table, k = answer.table, len(features)
    columns = np.stack([table.layers, table.tokens, table.features], axis=1)
    assert columns[:k].tolist() == features.tolist()
    assert_close(table.activations[:k], golden.activations[golden.selected])
    assert len(table) == len(golden)
    assert answer.header.active_feature_count == case.facts["n_active_features"]
    assert list(answer.header.token_ids) == golden.token_ids.tolist()
    assert [one.token_id for one in answer.header.targets] == golden.targets.token_ids.tolist()
    assert_close([one.weight for one in answer.header.targets], golden.targets.weights)
    assert answer.replacement_score == pytest.approx(case.facts["replacement_score"], abs=1e-4)
    assert answer.completeness_score == pytest.approx(case.facts["completeness_score"], abs=1e-4)


def assert_is_pruned(answer: Any, case: GoldenGraph, thresholds: tuple[float, float]) -> None:
    """The masks of *case* at *thresholds*."""
    assert (answer.scores.kept == case.pruned("node_mask", thresholds)).all()
    mask = np.zeros_like(case.graph.adjacency, dtype=bool)
    mask[answer.edges.ends, answer.edges.sources] = True
    assert (mask == case.pruned("edge_mask", thresholds)).all()
    golden = case.pruned("cumulative_scores", thresholds)
    np.testing.assert_allclose(answer.scores.cumulative_scores, golden, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
async def test_graphs_are_those_of_circuit_tracer(graphs_address: str, name: str) -> None:
    case = golden_graph(name)
    async with AsyncClient(graphs_address) as client:
        whole = await client.graph_request(question(case, edges="whole"))
        assert_is_golden(whole, case)
        assert_close(whole.adjacency, case.graph.adjacency)
        assert whole.is_whole
        for thresholds in THRESHOLDS:
            assert_is_pruned(whole.prune(*thresholds), case, thresholds)
            node_threshold, edge_threshold = thresholds
            pruned = await client.graph_request(
                question(case, node_threshold=node_threshold, edge_threshold=edge_threshold)
            )
            assert_is_golden(pruned, case)
            assert_is_pruned(pruned, case, thresholds)
            left = await client.prune_graph(whole, *thresholds)
            assert left.table.nodes.tolist() == np.flatnonzero(pruned.scores.kept).tolist()
            assert left.edges.weights.tolist() == pruned.edges.weights.tolist()


# What is refused


CASE = golden_graph("gpt2_plt_relu_whole")
TOKENS = CASE.tensors["tokens"].tolist()
PLT = "gpt2/plt_relu"
GPT2 = {"gpt2": str(model_folder("gpt2"))}


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"targets": [" w5", 5]}, ["targets[1]"]),
        ({"targets": [" no token"]}, ["targets[0].token"]),
        ({"targets": [10**6]}, ["targets[0].token_id"]),
        ({"directions": {"up": np.ones(3)}}, ["targets[0].direction"]),
        ({"transcoders": "llama/plt_relu_skip"}, ["transcoders"]),
        ({"prompt": " w5" * 500}, ["prompt"]),
        ({"prompt": [0, 10**6], "targets": [10**6]}, ["targets[0].token_id", "prompt.token_ids.token_ids[1]"]),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_its_field(
    graphs_address: str, arguments: dict[str, Any], fields: list[str]
) -> None:
    asked = {"prompt": TOKENS, "transcoders": PLT, "model": "gpt2"} | arguments
    async with AsyncClient(graphs_address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.graph(**asked)
    assert [violation.field for violation in caught.value.violations] == fields


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ({}, {"prompt"}),
        ({"prompt": {"text": " w5"}, "model": "gpt2"}, {"transcoders"}),
        ({"prompt": {"text": "a"}, "transcoders": "no name", "model": "@"}, {"transcoders", "model"}),
        ({"prompt": {"text": " w5"}, "transcoders": PLT, "model": "gpt2", "targets": [{}]}, {"targets[0]"}),
        (
            {
                "prompt": {"text": "a"},
                "transcoders": PLT,
                "model": "gpt2",
                "batch_size": 0,
                "node_threshold": 2.0,
                "edges": 77,
                "begin_token": 9,
                "max_feature_nodes": 0,
                "targets": [{"token": "a", "name": "b"}, {"token_id": 5, "weight": -1.0}, {"direction": {}}],
            },
            {
                *("batch_size", "node_threshold", "edges", "begin_token", "max_feature_nodes"),
                *("targets[0].name", "targets[1].weight", "targets[2].direction", "targets[2].name"),
            },
        ),
    ],
)
async def test_a_message_reports_every_bad_field(
    graphs_address: str, message: dict[str, Any], fields: set[str]
) -> None:
    async with grpc.aio.insecure_channel(graphs_address) as channel:
        call = GraphServiceStub(channel).Graph(graph_pb2.GraphRequest(**message))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in call]
    error = error_of(caught.value)
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == fields


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, ""),
        ({"neighbours": {}}, "neighbours.node"),
        ({"neighbours": {"node": "0_3_5"}}, "neighbours.node"),
        ({"neighbours": {"node": "f9.9@9"}}, "neighbours.node"),
        ({"neighbours": {"node": "t1", "top_k": 0}}, "neighbours.top_k"),
        ({"paths": {"source": "t1", "target": "t1"}}, "paths.target"),
        ({"paths": {"source": "t1", "target": "logit:99999"}}, "paths.target"),
        ({"edges": {"min_weight": -1.0}}, "edges.min_weight"),
        ({"pruning": {"node_threshold": 1.5}}, "pruning.node_threshold"),
        ({"edges": {}, "filter": {"kinds": [99]}}, "filter.kinds[0]"),
    ],
)
async def test_a_question_reports_its_bad_field(graphs_address: str, query: dict[str, Any], field: str) -> None:
    async with AsyncClient(graphs_address) as client, grpc.aio.insecure_channel(graphs_address) as channel:
        handle = (await client.graph(TOKENS, PLT, model="gpt2")).handle
        call = GraphServiceStub(channel).QueryGraph(graph_pb2.QueryGraphRequest(graph=handle, **query))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in call]
    error = error_of(caught.value)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]


async def test_unknown_names_and_handles_are_not_found(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        for arguments in ({"model": "gpt3"}, {"model": "gpt2", "transcoders": "gpt2/plt_rel"}):
            with pytest.raises(NotFound) as caught:
                await client.graph(**{"prompt": TOKENS, "transcoders": PLT, **arguments})
            assert caught.value.nearest
        for attempt in (client.graph_neighbours("graph-x", "t1"), client.drop_graph("graph-x")):
            with pytest.raises(NotFound) as caught:
                await attempt
            assert caught.value.reason is Reason.GRAPH_NOT_FOUND


async def test_a_graph_that_needs_too_much_is_refused_with_the_numbers(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        with pytest.raises(Exhausted) as caught:
            await client.graph(TOKENS, PLT, model="gpt2", max_bytes=10_000)
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert int(caught.value.metadata["needed_bytes"]) > 10_000


async def test_a_deadline_ends_a_graph_and_the_server_goes_on(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        with pytest.raises((DeadlineExceeded, Exhausted)):  # when it has passed, or cannot be met
            await client.graph(TOKENS * 3, PLT, model="gpt2", timeout=0.001)
        assert (await client.graph(TOKENS, PLT, model="gpt2")).is_whole is False


async def test_leaving_ends_a_graph(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        parts = client.graph_parts(make_graph_request(TOKENS, PLT, model="gpt2", edges="whole"))
        first = await anext(parts)
        assert first.kind is GraphPartKind.HEADER
        await parts.aclose()
        assert (await client.graph(TOKENS, PLT, model="gpt2")).is_whole is False


# The prompt, targets, kept graphs


def test_a_blocking_client_asks_the_same(graphs_address: str) -> None:
    phases = []
    with Client(graphs_address) as client:
        found = client.graph(
            " w5 w6 w7", PLT, model="gpt2", targets=" w9", on_progress=lambda progress: phases.append(progress.phase)
        )
        assert found.header.token_strings == ("<|endoftext|>", " w5", " w6", " w7")
        assert found.header.is_begin_token_added
        assert found.names[-1] == "logit:9"
        assert list(dict.fromkeys(phases)) == ["recording", "targets", "features", "pruning"]
        local, asked = found.neighbours("logit:9", 3), client.graph_neighbours(found, "logit:9", 3)
        assert len(asked.edges) == 3
        # Those that pruning leaves are among all.
        assert {edge.source for edge in local} <= {edge.source for edge in client.graph_edges(found).above()}
        as_given = client.graph(" w5 w6 w7", PLT, model="gpt2", begin_token="as_given")
        assert as_given.header.token_ids == (5, 6, 7)
        client.drop_graph(found)


async def test_a_stored_direction_is_a_target(graphs_address: str) -> None:
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    async with AsyncClient(graphs_address) as client:
        width = (await client.model("gpt2")).dimensions.d_model
        vector = np.resize(vector, width)
        stored = await client.put_tensor(vector)
        found, inline = [
            await client.graph(TOKENS, PLT, model="gpt2", directions={"up": each}, edges="whole")
            for each in (stored, vector)
        ]
    assert found.names[-1] == "target:up"
    assert found.header.targets[0].token_id is None
    assert (found.adjacency == inline.adjacency).all()
    doubled = 2 * found.edges.sums(len(found.table))[-1]
    async with AsyncClient(graphs_address) as client:
        twice = await client.graph(TOKENS, PLT, model="gpt2", directions={"up": 2 * vector}, edges="whole")
    assert twice.edges.sums(len(twice.table))[-1] == pytest.approx(doubled, rel=1e-5)


async def test_kept_graphs_are_their_callers_and_the_least_recently_used_go(tmp_path: Path) -> None:
    file = tokens.write(tmp_path / "tokens", alice=Role.ASK, bob=Role.ASK)
    settings = Settings(port=0, models={"gpt2": model_folder("gpt2")}, allow_failed_checks=True, auth_token_file=file)
    async with running_server(settings) as server, AsyncClient(server.address, token="alice-token") as alice:
        size = (await alice.graph(TOKENS, PLT, model="gpt2")).kept
        assert size is not None
    settings = settings.model_copy(update={"kept_graph_bytes": 2 * size.byte_count + 100})
    async with (
        running_server(settings) as server,
        AsyncClient(server.address, token="alice-token") as alice,
        AsyncClient(server.address, token="bob-token") as bob,
    ):
        first, second = [await alice.graph(TOKENS, PLT, model="gpt2") for _ in range(2)]
        assert [graph.handle for graph in await alice.graphs()] == sorted([str(first.handle), str(second.handle)])
        assert await bob.graphs() == []
        for attempt in (bob.graph_edges(first), bob.drop_graph(first)):
            with pytest.raises(NotFound):
                await attempt
        assert len((await alice.graph_neighbours(first, "t1")).table) > 1
        await bob.graph(TOKENS, PLT, model="gpt2")
        assert [graph.handle for graph in await alice.graphs()] == [first.handle]
        with pytest.raises(NotFound):
            await alice.prune_graph(second, 0.5, 0.9)
        await alice.drop_graph(first)
        assert await alice.graphs() == []


async def test_several_graphs_at_once_are_the_same_as_alone(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        requests = [question(golden_graph(name), edges="whole") for name in NAMES[:6]]
        alone = [await client.graph_request(request) for request in requests]
        at_once = await asyncio.gather(*map(client.graph_request, requests))
    for one, other in zip(alone, at_once, strict=True):
        assert (one.adjacency == other.adjacency).all()


# Bytes


async def bytes_of(call: Any) -> int:
    return sum([len(response.SerializeToString()) async for response in call])


async def test_an_answer_takes_eight_bytes_an_edge_and_little_else(graphs_address: str) -> None:
    """Beside edges: of each node its columns and its name, and what an answer of any size has."""
    per_node, fixed = 6 * 4 + 13 + 20, 3000
    request = question(CASE, edges="whole")
    async with AsyncClient(graphs_address) as client, grpc.aio.insecure_channel(graphs_address) as channel:
        answer = await client.graph_request(request)
        stub = GraphServiceStub(channel)
        n_nodes, n_rows = len(answer.table), len(answer.edges.targets)
        whole = await bytes_of(stub.Graph(to_wire(request)))
        assert whole <= 8 * len(answer.edges) + 8 * n_rows + per_node * n_nodes + fixed
        pruned = await bytes_of(stub.Graph(to_wire(question(CASE))))
        kept = answer.summary.kept_edge_count
        assert pruned <= 8 * kept + 8 * n_rows + per_node * n_nodes + fixed
        node = GraphNeighbours(node=answer.names[-1], top_k=20)
        query = QueryGraphRequest(graph=answer.handle or "", query=node)
        assert await bytes_of(stub.QueryGraph(to_wire(query))) <= 20 * 8 + 21 * per_node + fixed < 20_000
