"""Graphs from the pipeline, on golden models: which parts come when, what is held meanwhile, kept and refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import peak_bytes
from dst_grpc.client import GraphAnswer, make_graph_request
from dst_grpc.client._graphs import GraphCollector
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_answers import GraphPart, GraphPartKind, GraphPhase, GraphProgress
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_probes import GraphFeatureTokens, ProbeGraphRequest
from dst_grpc.domain.graph_queries import GraphNeighbours, QueryGraphRequest
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.domain.results import RunSummary
from dst_grpc.domain.sender import Sender
from dst_grpc.domain.timeline import Timeline
from dst_grpc.errors import Exhausted, NotFound, Reason
from dst_grpc.graphs.influence import scores
from dst_grpc.pipeline.limits import DeviceLimits, Limits
from dst_grpc.pipeline.service import Pipeline
from dst_grpc.pipeline.whole_graph import finishing_bytes, pruned
from tests.graph_goldens import golden_graph, model_folder

_P = GraphPartKind
CASE = golden_graph("llama_clt_jumprelu_whole")
TOKENS = tuple(CASE.tensors["tokens"].tolist())
CLT = "llama/clt_jumprelu"
ALICE, BOB = (Sender(caller=Caller(name=name)) for name in ("alice", "bob"))


@pytest.fixture(name="cache")
async def _cache() -> AsyncIterator[ContextCache]:
    registry = Registry.build(models={"llama": model_folder("llama")}, device="cpu", include_embedded=False)
    cache = ContextCache(registry, loader=FileLoader(allow_failed_checks=True))
    yield cache
    await cache.close()


@pytest.fixture(name="pipeline")
async def _pipeline(cache: ContextCache) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(cache)
    yield pipeline
    await pipeline.close()


def held_bytes(pipeline: Pipeline) -> int:
    """Memory that running requests take."""
    return sum(batcher.scheduler.memory.used_bytes for batcher in pipeline._executor._devices.values())


async def steps_of(pipeline: Pipeline, sender: Sender = ALICE, **arguments: Any) -> list[list[Any]]:
    """What each step of an answer yields."""
    request = make_graph_request(TOKENS, CLT, **CASE.arguments | arguments)
    async with aclosing(pipeline.graph(request, sender=sender)) as steps:
        return [list(step) async for step in steps]


def answer_of(steps: list[list[Any]]) -> GraphAnswer:
    """The answer in *steps*, as a client reads it."""
    *parts, summary = [item for step in steps for item in step]
    assert isinstance(summary, RunSummary)
    collector = GraphCollector("")
    for part in parts:
        assert collector.take(part) is None
    trailer = RunsTrailer(frame_count=0, statistics=summary.statistics, provenance=summary.provenance)
    found = collector.take(GraphPart(kind=_P.TRAILER, value=trailer))
    assert found is not None
    return found


async def answer(pipeline: Pipeline, sender: Sender = ALICE, **arguments: Any) -> GraphAnswer:
    return answer_of(await steps_of(pipeline, sender, **arguments))


async def test_rows_come_as_they_are_known(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_PLACES", 16)
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_TARGETS", 8)
    steps = await steps_of(pipeline, edges="whole")
    kinds = [[part.kind for part in step if isinstance(part, GraphPart)] for step in steps]
    assert kinds[0] == [_P.HEADER, _P.PROGRESS, _P.NODES]
    with_rows = [step for step in kinds if _P.EDGES in step]
    assert len(with_rows) > 5
    assert all(step == [_P.EDGES, _P.PROGRESS] for step in with_rows)
    assert kinds[-3:] == [[_P.PROGRESS, _P.SCORES], [_P.SUMMARY, _P.KEPT], []]
    found = answer_of(steps)
    np.testing.assert_allclose(found.adjacency, CASE.graph.adjacency, atol=1e-4 * np.abs(CASE.graph.adjacency).max())
    progress = [part.value for step in steps for part in step if getattr(part, "kind", None) is _P.PROGRESS]
    assert all(isinstance(one, GraphProgress) and one.done <= one.total for one in progress)
    phases = list(dict.fromkeys(one.phase for one in progress))
    assert phases == [GraphPhase.RECORDING, GraphPhase.TARGETS, GraphPhase.FEATURES, GraphPhase.PRUNING]
    for phase in phases:
        done = [one.done for one in progress if one.phase is phase]
        assert done == sorted(done)
        assert done[-1] == next(one.total for one in progress if one.phase is phase)
    statistics = found.trailer.statistics
    assert (statistics.forward_passes, statistics.backward_passes) == (2, len(with_rows))


async def test_of_a_limited_graph_rows_come_once_nodes_have_numbers(pipeline: Pipeline) -> None:
    steps = await steps_of(pipeline, edges="whole", max_feature_nodes=10, batch_size=2, update_interval=2)
    kinds = [part.kind for step in steps for part in step if isinstance(part, GraphPart)]
    assert kinds.count(_P.NODES) == 1
    assert kinds.index(_P.NODES) < kinds.index(_P.EDGES)
    found = answer_of(steps)
    assert found.header.feature_count == 10 < found.header.active_feature_count
    assert len(found.table) == found.header.node_count
    assert found.is_whole


async def test_edges_may_be_left_out(pipeline: Pipeline) -> None:
    found = await answer(pipeline, edges="none")
    assert len(found.edges) == 0
    assert found.summary.kept_edge_count > 0
    assert found.scores.kept.sum() == found.summary.kept_node_count


async def test_a_direction_is_what_a_logit_is(pipeline: Pipeline) -> None:
    """The centred unembedding of a token, as a direction of the token's weight, has the edges of its logit."""
    token = int(CASE.tensors["logit_token_ids"][0])
    (weight,) = [one.weight for one in (await answer(pipeline, targets=[token])).header.targets]
    async with pipeline._cache.lease(pipeline._cache.registry.model_entry("llama"), ()) as lease:
        unembedding = lease.model.decoder.unembedding
        vector = (unembedding[:, token] - unembedding.mean(dim=1)).numpy()
    request = make_graph_request(TOKENS, CLT, targets=[token], directions={"it": vector}, edges="whole")
    async with aclosing(pipeline.graph(request)) as steps:
        found = answer_of([list(step) async for step in steps])
    assert found.names[-2:] == (f"logit:{token}", "target:it")
    np.testing.assert_allclose(found.adjacency[-1], found.adjacency[-2], atol=1e-6)
    assert [one.weight for one in found.header.targets] == pytest.approx([weight, 1.0])
    assert found.header.targets[1].token_id is None


async def test_nothing_is_held_after_an_answer_and_less_once_it_is_known_how_much(
    pipeline: Pipeline, cache: ContextCache
) -> None:
    request = make_graph_request(TOKENS, CLT)
    async with aclosing(pipeline.graph(request)) as steps:
        held = [held_bytes(pipeline) async for _ in steps]
    limit = pipeline._executor.memory_of(ALICE.caller)
    least = finishing_bytes(len(CASE.graph.effects), len(CASE.graph.nodes))
    assert all(least <= one < limit // 10 for one in held[:-1])
    assert held_bytes(pipeline) == 0
    assert all(status.pins == 0 for status in cache.statuses())


async def test_others_have_their_turns_in_between(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_PLACES", 8)
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_TARGETS", 1)
    derived = 0
    async with aclosing(pipeline.graph(make_graph_request(TOKENS, CLT), sender=ALICE)) as steps:
        async for _ in steps:
            other: AsyncGenerator[Any, None] = pipeline.derive(
                DeriveRequest(prompt=Prompt(token_ids=(0, 5))), sender=BOB
            )
            async with aclosing(other):
                derived += len([part async for part in other]) > 0
    assert derived > 20


@pytest.mark.parametrize("n_steps", [1, 2, 4, 7])
async def test_a_cancelled_graph_lets_go_of_everything(
    pipeline: Pipeline, cache: ContextCache, monkeypatch: pytest.MonkeyPatch, n_steps: int
) -> None:
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_PLACES", 8)
    monkeypatch.setattr("dst_grpc.graphs.memory._BLOCK_TARGETS", 1)
    steps = pipeline.graph(make_graph_request(TOKENS, CLT), sender=ALICE)
    for _ in range(n_steps):
        await anext(steps)
    await steps.aclose()
    assert held_bytes(pipeline) == 0
    assert all(status.pins == 0 for status in cache.statuses())
    assert pipeline.graph_handles(ALICE.caller) == []
    assert (await answer(pipeline)).handle is not None


# Kept graphs


def asked(handle: str) -> QueryGraphRequest:
    return QueryGraphRequest(graph=handle, query=GraphNeighbours(node="t1"))


async def test_a_kept_graph_answers_its_caller_alone(pipeline: Pipeline) -> None:
    found = await answer(pipeline)
    assert found.kept is not None
    assert found.kept.model.startswith("llama@")
    assert found.kept.transcoders.startswith(f"{CLT}@")
    assert pipeline.memory().used_bytes == found.kept.byte_count <= found.header.byte_count
    (parts,) = [step async for step in pipeline.query_graph(asked(found.kept.handle), sender=ALICE)]
    *_, summary = parts
    assert isinstance(summary, RunSummary)
    assert summary.provenance == found.trailer.provenance
    with pytest.raises(NotFound):
        await anext(pipeline.query_graph(asked(found.kept.handle), sender=BOB))
    assert pipeline.graph_handles(ALICE.caller) == [found.handle]
    assert pipeline.graph_handles(BOB.caller) == []
    pipeline.drop_graph(found.kept.handle, sender=ALICE)
    with pytest.raises(NotFound):
        await anext(pipeline.query_graph(asked(found.kept.handle), sender=ALICE))


async def test_what_is_asked_about_a_kept_graph_is_about_its_model(pipeline: Pipeline) -> None:
    """Such requests name no model themselves."""
    found = await answer(pipeline)
    assert found.handle is not None
    timelines = [Timeline(), Timeline(), Timeline(), Timeline()]
    queried, probed, dropped, refused = (replace(ALICE, timeline=timeline) for timeline in timelines)
    async for _ in pipeline.query_graph(asked(found.handle), sender=queried):
        pass
    probe = ProbeGraphRequest(graph=found.handle, probe=GraphFeatureTokens(nodes=(found.top(1)[0].name,)))
    async for _ in pipeline.probe_graph(probe, sender=probed):
        pass
    pipeline.drop_graph(found.handle, sender=dropped)
    with pytest.raises(NotFound):
        pipeline.drop_graph(found.handle, sender=refused)
    assert [timeline.model for timeline in timelines] == ["llama", "llama", "llama", ""]


async def test_a_graph_is_kept_unless_it_is_not_to_be(pipeline: Pipeline) -> None:
    assert (await answer(pipeline, keep=False)).kept is None
    assert pipeline.memory().used_bytes == 0
    assert (await answer(pipeline, keep=True)).kept is not None


async def test_what_cannot_be_kept_is_refused_before_edges_are_computed_if_it_must_be(cache: ContextCache) -> None:
    pipeline = Pipeline(cache, Limits(kept_graph_bytes=1000))
    assert (await answer(pipeline)).kept is None
    with pytest.raises(Exhausted) as caught:
        await anext(pipeline.graph(make_graph_request(TOKENS, CLT, keep=True)))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.metadata["kept_graph_bytes"] == "1000"
    await pipeline.close()


async def test_what_needs_too_much_memory_is_refused_with_the_numbers(pipeline: Pipeline) -> None:
    for max_bytes in (1000, finishing_bytes(len(CASE.graph.effects), len(CASE.graph.nodes)) - 1):
        with pytest.raises(Exhausted) as caught:
            await answer(pipeline, max_bytes=max_bytes)
        assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
        assert int(caught.value.metadata["needed_bytes"]) > max_bytes
        assert caught.value.metadata["limit_bytes"] == str(max_bytes)
        assert held_bytes(pipeline) == 0


async def test_what_the_device_does_not_have_is_refused_before_anything_runs(cache: ContextCache) -> None:
    pipeline = Pipeline(cache, Limits(of_device=DeviceLimits(max_run_bytes=100 << 20)))
    with pytest.raises(Exhausted) as caught:
        await anext(pipeline.graph(make_graph_request(TOKENS, CLT, max_bytes=200 << 20)))
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert (await answer(pipeline)).header.node_count == len(CASE.graph.nodes)
    await pipeline.close()


def test_finishing_a_graph_takes_no_more_than_is_estimated() -> None:
    graph = CASE.graph

    def finish() -> GraphEdges:
        edges = GraphEdges.of_matrix(graph.effects, graph.nodes.readers)
        pruned(graph, scores(graph), len(edges), 0.8, 0.98)
        return edges

    assert graph.effects.nbytes + peak_bytes(finish) <= finishing_bytes(*graph.effects.shape)
