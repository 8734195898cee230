"""Explaining on the pipeline: order of parts, one batch, the store, memory, what fails, and what is let go."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.contexts import ContextCache
from dst_grpc.domain.components import AttentionTraceType, NodeType, PreOrPostAct
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, NodeScope, TopKGroup, TopKRequest
from dst_grpc.domain.explanations import ExplainPart as P
from dst_grpc.domain.explanations import ExplanationPart, NodeTable, PartKind, RunExplanation, ScoredTokens
from dst_grpc.domain.indices import ActivationIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.results import RunHeader, RunSummary
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import Exhausted, OutOfRange, Reason
from dst_grpc.pipeline.explain_planner import plan_explain
from dst_grpc.pipeline.limits import DeviceLimits, Limits
from dst_grpc.pipeline.service import Pipeline
from tests import explaining, models, traces
from tests.comparing import same
from tests.unit.pipeline.test_service import assert_idle, cache, folder, pipeline, registry

__all__ = ["cache", "folder", "pipeline", "registry"]

WORLD = models.world(T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
FIRST, SECOND, SHORT = models.TOKENS, (2, 7, 1, 8, 2, 8), (4, 4, 2)


def run(*tokens: int, **fields: Any) -> ExplainRun:
    fields = {"loss_fn_config": models.LOSS, **fields}
    return ExplainRun(prompt=Prompt(token_ids=tokens or FIRST), **fields)


def ask(*runs: ExplainRun, **fields: Any) -> ExplainRequest:
    return ExplainRequest(**{"model": "tiny", "runs": runs or (run(),), **fields})


async def everything(pipeline: Pipeline, request: ExplainRequest | TopKRequest) -> list[Any]:
    stream = pipeline.explain(request) if isinstance(request, ExplainRequest) else pipeline.top_k(request)
    async with aclosing(stream) as steps:
        return [part async for ready in steps for part in ready]


async def test_headers_come_first_then_tables_then_what_refers_to_them(pipeline: Pipeline, cache: ContextCache) -> None:
    *parts, summary = await everything(pipeline, ask(run(), run(*SECOND), request_id="mine"))
    kinds = [(part.kind, part.run_index) for part in parts]
    assert kinds[:6] == [
        (kind, i) for kind in (PartKind.HEADER, PartKind.NODE_TABLE, PartKind.COMPONENT_SUMS) for i in (0, 1)
    ]
    scored = [part.value.part for part in parts if part.kind is PartKind.SCORED_TOKENS and part.run_index == 1]
    assert scored == [
        P.UPVOTED_OUTPUT_TOKENS,
        P.INPUT_TOKENS_THAT_UPVOTE_MLP,
        P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
        P.INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
    ]
    assert [kind for kind, _ in kinds].count(PartKind.SCALAR_SUM) == 2 * 12
    header = parts[1].value
    assert isinstance(header, RunHeader)
    assert header.token_ids == SECOND
    assert header.loss is not None
    assert isinstance(summary, RunSummary)
    assert summary.provenance.batch_size == 2
    assert_idle(pipeline, cache)


async def test_all_runs_take_one_pass_each_way_and_the_next_question_none(pipeline: Pipeline) -> None:
    request = ask(run(), run(*SHORT), run(*SECOND))
    first = (await everything(pipeline, request))[-1].statistics
    assert (first.forward_passes, first.backward_passes) == (1, 1)
    assert first.derive_duration > 0
    again = (await everything(pipeline, ask(run(*SHORT), run(), k=3)))[-1].statistics
    assert (again.forward_passes, again.backward_passes) == (0, 0)


@pytest.mark.parametrize("scope", [None, NodeScope.PROMPT])
async def test_a_run_in_a_batch_has_the_numbers_it_has_alone(pipeline: Pipeline, scope: NodeScope | None) -> None:
    runs = (run(), run(*SHORT, node_ablations=(NodeAblation(node_index=traces.node(NodeType.MLP_NEURON, 1, 2, 3)),)))
    together = explaining.explain(WORLD, ask(*runs, node_scope=scope)).runs
    for one, found in zip(runs, together, strict=True):
        (alone,) = explaining.explain(WORLD, ask(one)).runs
        assert found.header.loss == pytest.approx(alone.header.loss, rel=1e-9)
        assert found.node_table is not None
        assert alone.node_table is not None
        assert found.node_table.nodes == alone.node_table.nodes
        for ours, theirs in zip(found.node_table.groups, alone.node_table.groups, strict=True):
            np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5, atol=1e-7)


def test_a_direct_effect_is_complete() -> None:
    """With the final norm's scale frozen, what all parts and biases write towards the answer sums up to the loss."""
    (found,) = explaining.explain(WORLD, ask()).runs
    assert found.node_table is not None
    completeness = found.node_table.group("direction_write").completeness
    assert completeness is not None
    assert completeness.target == found.header.loss
    decoder = WORLD.decoder
    assert decoder.final_norm.bias is not None
    centred = decoder.final_norm.bias @ decoder.unembedding
    constant = traces.loss(centred).item()
    result = WORLD.results(
        models.request(
            T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD,
            loss_fn_config=models.LOSS,
            detach_final_layer_norm_scale=True,
        )
    )[0]
    gradient = result.recording.taps.gradients[L.RESID_POST_MLP, 2]
    biases = 0.0
    for layer in decoder.layers:
        assert layer.attn_bias is not None
        assert layer.mlp_bias is not None
        biases += float((layer.attn_bias + layer.mlp_bias) @ gradient[-1])
    assert completeness.total + biases + constant == pytest.approx(found.header.loss, rel=1e-9)


def test_nothing_that_is_listed_can_be_seen_only_once() -> None:
    """A node of an answer is a node of a question: traced, or switched off, by the index that it came with."""
    (found,) = explaining.explain(WORLD, ask(run(), k=1)).runs
    assert found.node_table is not None
    for node in found.node_table.nodes:
        if node.node_type is NodeType.LAYER:
            continue
        is_head = node.node_type is NodeType.ATTENTION_HEAD
        trace = TraceConfig(
            node_index=node,
            pre_or_post_act=PreOrPostAct.POST,
            detach_layer_norm_scale=True,
            attention_trace_type=AttentionTraceType.QK if is_head else None,
        )
        traced = ExplainRun(prompt=Prompt(token_ids=FIRST), trace_config=trace)
        off = run(node_ablations=(NodeAblation(node_index=node),))
        # All nodes are listed, so that the one that was switched off is.
        parts = (P.NODE_TABLE, P.TOP_LOGITS)
        of_trace, without = explaining.explain(WORLD, ask(traced, off, parts=parts, k=10**4)).runs
        assert of_trace.header.activation_value == pytest.approx(value_of(found, node), rel=1e-5, abs=1e-7)
        assert value_of(without, node) == 0.0
        assert of_trace.top_logits is not None
        assert of_trace.top_logits.nodes[0].tensor_indices[0] == node.tensor_indices[0]


def value_of(found: RunExplanation, node: NodeIndex) -> float:
    """The activation of a node of the table."""
    assert found.node_table is not None
    return float(found.node_table.group("activation").values[found.node_table.nodes.index(node)])


def test_a_chain_of_traces_is_an_origin_like_any_other() -> None:
    chain = ExplainRun(prompt=Prompt(token_ids=FIRST), loss_fn_config=models.LOSS, trace_config=traces.V_CHAINS[0])
    (found,) = explaining.explain(WORLD, ask(chain)).runs
    assert found.header.activation_value
    assert found.header.loss is not None
    assert found.node_table is not None
    completeness = found.node_table.group("act_times_grad").completeness
    assert completeness is not None
    assert completeness.target == found.header.activation_value
    assert found.node_table.group("act_times_grad").values.any()


def test_without_an_origin_there_is_still_something_to_say() -> None:
    (found,) = explaining.explain(WORLD, ask(run(loss_fn_config=None))).runs
    assert found.node_table is not None
    assert [group.group_id for group in found.node_table.groups] == ["write_norm", "activation"]
    assert all(
        group.completeness is not None and group.completeness.target is None for group in found.node_table.groups
    )
    assert len(found.scored_tokens) == 4


def test_logits_are_those_of_the_model_changed_or_not() -> None:
    changed = AblationSpec(index=ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(5, 3)), value=9.0)
    plain, other = explaining.explain(
        WORLD, ask(run(), run(ablation_specs=(changed,)), parts=(P.TOP_LOGITS,), top_logit_count=3)
    ).runs
    logits = WORLD.one(T.LOGITS)[None][-1]
    assert plain.node_table is None
    for found, expected in ((plain, logits), (other, logits.clone().index_fill(0, torch.tensor([3]), 9.0))):
        assert found.top_logits is not None
        (group,) = found.top_logits.groups
        ids = [node.tensor_indices[1] for node in found.top_logits.nodes]
        assert group.values.tolist() == pytest.approx(expected[ids].tolist(), rel=1e-6)
        best = expected.sort(descending=True).values
        assert group.values[list(group.top)].tolist() == pytest.approx(best[:3].tolist(), rel=1e-6)
        assert group.values[list(group.bottom)].tolist() == pytest.approx(best[-3:].tolist(), rel=1e-6)
        assert found.top_logits.vocab_tokens == tuple(
            models.tokenizer().token_strings([i for i in ids if i is not None])
        )


def test_parts_that_need_several_messages_are_cut_and_joined() -> None:
    few = explaining.explain(WORLD, ask(scored_token_count=3)).runs[0]
    many = ask(scored_token_count=1000, k=200)
    asked = explaining.plan(WORLD, many)
    assert asked.scored_token_count == 1000
    whole = explaining.explain(WORLD, many).runs[0]
    assert whole.node_table is not None
    assert few.node_table is not None
    scored, small = (one.tokens_of(P.UPVOTED_OUTPUT_TOKENS) for one in (whole, few))
    assert isinstance(scored, ScoredTokens)
    assert isinstance(small, ScoredTokens)
    assert [tokens.node for tokens in scored.nodes] == list(range(len(whole.node_table.nodes)))
    assert len(scored.nodes) > 20
    by_node = {whole.node_table.nodes[tokens.node]: tokens for tokens in scored.nodes}
    for tokens in small.nodes:
        other = by_node[few.node_table.nodes[tokens.node]]
        assert [one.score for one in other.top[:3]] == pytest.approx([one.score for one in tokens.top], rel=1e-6)


async def test_the_first_run_that_fails_ends_the_answer_and_lets_go(pipeline: Pipeline, cache: ContextCache) -> None:
    index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, tensor_indices=(1, 2), layer_index=0)
    poisoned = run(ablation_specs=(AblationSpec(index=index, value=3e38),))
    with pytest.raises(OutOfRange):
        await everything(pipeline, ask(run(), poisoned))
    assert_idle(pipeline, cache)
    assert await everything(pipeline, ask(run()))


async def test_too_much_is_refused_before_any_work(cache: ContextCache) -> None:
    small, large = ask(run(*SHORT)), ask(run(*SHORT), run())
    limits = Limits()
    enough = plan_explain(small, cache.registry).peak_bytes
    tight = Pipeline(cache, replace(limits, of_device=DeviceLimits(max_run_bytes=enough)))
    assert await everything(tight, small)
    with pytest.raises(Exhausted) as caught:
        await everything(tight, large)
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    await tight.close()
    wasteful = DeviceLimits(max_run_bytes=enough, allocator_factor=1.25)
    tight = Pipeline(cache, replace(limits, of_device=wasteful))
    with pytest.raises(Exhausted) as caught:
        await everything(tight, small)
    assert caught.value.metadata["estimated_bytes"] == str(int(1.25 * enough))
    await tight.close()


async def test_an_answer_that_nobody_reads_on_stops(pipeline: Pipeline, cache: ContextCache) -> None:
    async with aclosing(pipeline.explain(ask(run(), run(*SECOND)))) as steps:
        first = await anext(steps)
        assert all(isinstance(part, ExplanationPart) and part.kind is PartKind.HEADER for part in first)
    assert_idle(pipeline, cache)
    reading = asyncio.create_task(everything(pipeline, ask(run(*SHORT))))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert_idle(pipeline, cache)


async def test_top_k_answers_with_a_table_and_with_sums_if_wanted(pipeline: Pipeline) -> None:
    group = TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT,), k=2)
    request = TopKRequest(runs=(models.request(),), groups=(group,))
    plain = await everything(pipeline, request)
    assert [part.kind for part in plain[:-1]] == [PartKind.HEADER, PartKind.NODE_TABLE]
    summed = await everything(pipeline, TopKRequest(runs=(models.request(),), groups=(group,), with_sums=True))
    assert [part.kind for part in summed[:-1]] == [PartKind.HEADER, PartKind.NODE_TABLE, PartKind.SCALAR_SUM]
    assert isinstance(plain[1].value, NodeTable)
    assert same(plain[1].value, summed[1].value)
