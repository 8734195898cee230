"""Explain and TopK over sockets: parts as they come, errors with their details, what stops the work, both clients."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import torch

from dst_grpc._gen.dst.v1 import explain_pb2
from dst_grpc.client import (
    AsyncClient,
    AttentionTraceType,
    Client,
    ExplainPart,
    ExplanationPart,
    NodeType,
    PartKind,
    PreOrPostAct,
    RunHeader,
    TraceConfig,
    make_explain_request,
    make_explain_run,
)
from dst_grpc.domain.results import RunSummary
from dst_grpc.embedded import MODEL_FOLDER
from dst_grpc.errors import DataLoss, DeadlineExceeded, Exhausted, Internal, InvalidRequest, PreconditionFailed, Reason
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.codec import to_wire
from tests.checkpoints import write_autoencoder
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of
from tests.fake_parts import explained

PROMPT = "When Mary and John went to the store, John gave a drink to"
ASK: dict[str, Any] = {"target": " Mary", "distractor": " John"}
LATENTS: dict[str, Any] = {
    "mlp": "autoencoder_latent",
    "attention": "autoencoder_latent",
    "autoencoders": ["embedded/resid_delta_mlp", "embedded/resid_delta_attn"],
}
Parts = AsyncGenerator[list[ExplanationPart | RunSummary], None]


def script(
    *parts: ExplanationPart | RunSummary, error: Exception | None = None, then: asyncio.Event | None = None
) -> Any:
    """What the fake pipeline answers: *parts*, and then an end, an error, or a wait."""

    async def answer(_: object) -> Parts:
        for part in parts:
            yield [part]
        if error is not None:
            raise error
        if then is not None:
            await then.wait()

    return answer


async def test_parts_arrive_while_the_work_goes_on(rig: Rig) -> None:
    header, table, summary = explained()
    ready = asyncio.Event()

    async def answer(_: object) -> Parts:
        yield [header]
        await ready.wait()
        yield [table, summary]

    rig.parts.pipeline.explain_scripts["slow"] = answer
    async with AsyncClient(rig.server.address) as client:
        request = make_explain_request("x", request_id="slow")
        async with aclosing(client.explain_parts(request, timeout=CALL_SECONDS)) as parts:
            first = await anext(parts)
            assert first.kind is PartKind.HEADER
            assert isinstance(first.value, RunHeader)
            ready.set()
            assert [part.kind async for part in parts] == [PartKind.NODE_TABLE, PartKind.TRAILER]


async def test_leaving_early_stops_the_work(rig: Rig) -> None:
    rig.parts.pipeline.explain_scripts["left"] = script(explained()[0], then=asyncio.Event())
    async with AsyncClient(rig.server.address) as client:
        async with aclosing(client.explain_parts(make_explain_request("x", request_id="left"))) as parts:
            await anext(parts)
            assert rig.parts.pipeline.running == {"left"}
        assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "left"


async def test_a_deadline_stops_the_work(rig: Rig) -> None:
    rig.parts.pipeline.explain_scripts["late"] = script(explained()[0], then=asyncio.Event())
    async with AsyncClient(rig.server.address) as client:
        with pytest.raises(DeadlineExceeded):
            await client.explain("x", request_id="late", timeout=0.2)
    assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "late"


async def test_an_answer_that_breaks_off_is_an_error(rig: Rig) -> None:
    header, table, _ = explained()
    pipeline = rig.parts.pipeline
    pipeline.explain_scripts["cut"] = script(header, table)
    pipeline.explain_scripts["poisoned"] = script(header, error=InvalidRequest.of("runs", "are not finite"))
    pipeline.explain_scripts["broken"] = script(header, error=RuntimeError("secret"))
    pipeline.explain_scripts["full"] = script(error=Exhausted("full", reason=Reason.MEMORY_BUDGET_EXCEEDED))
    async with AsyncClient(rig.server.address) as client:
        with pytest.raises(DataLoss) as truncated:
            await client.explain("x", request_id="cut")
        assert truncated.value.reason is Reason.ANSWER_TRUNCATED
        with pytest.raises(DataLoss) as also:
            async with aclosing(client.explain_parts(make_explain_request("x", request_id="cut"))) as parts:
                assert len([part async for part in parts]) == 2
        assert also.value.reason is Reason.ANSWER_TRUNCATED
        with pytest.raises(InvalidRequest, match="not finite"):
            await client.explain("x", request_id="poisoned")
        with pytest.raises(Internal) as hidden:
            await client.explain("x", request_id="broken")
        assert "secret" not in str(hidden.value)
        with pytest.raises(Exhausted):
            await client.top_k("x", {"g": "mlp_post_act"}, request_id="full")
        answer = await client.explain("x", beside=[make_explain_run("y")], request_id="fine")
        assert [run.header.loss for run in answer.runs] == [1.5, 1.5]


async def test_bad_fields_are_listed_by_their_paths(rig: Rig) -> None:
    message = to_wire(make_explain_request("x"))
    message.k = 0
    message.parts.append(99)
    message.runs.add()
    message.groups.add(dsts=[1, 1])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.scalars.Explain(message).read()
    error = error_of(caught.value)
    assert isinstance(error, InvalidRequest)
    fields = {violation.field for violation in error.violations}
    assert {"parts[0]", "runs[1].prompt", "groups[0].group_id"} <= fields
    assert explain_pb2.ExplainRequest.FromString(message.SerializeToString()) == message


# On the embedded model


async def test_an_explanation_accounts_for_the_answer(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        answer = await client.explain(PROMPT, **ASK, timeout=CALL_SECONDS)
    (run,) = answer.runs
    assert run.header.loss is not None
    assert run.header.loss > 5
    assert run.node_table is not None
    group = run.node_table.group("direction_write")
    assert group.completeness is not None
    assert group.completeness.total == pytest.approx(group.completeness.target, rel=0.1)
    best = run.node_table.nodes[group.top[0]]
    assert best.node_type is NodeType.ATTENTION_HEAD
    assert run.header.token_strings[best.tensor_indices[1] or 0] == " Mary"
    upvoted = run.tokens_of(ExplainPart.UPVOTED_OUTPUT_TOKENS)
    assert upvoted is not None
    assert upvoted.nodes[group.top[0]].top[0].token == " Mary"
    assert run.top_logits is not None
    assert run.top_logits.vocab_tokens[0] == " Mary"
    assert answer.trailer.provenance.config_digest


async def test_a_node_of_an_answer_is_the_next_question(embedded_address: str) -> None:
    """The head that matters most is switched off, then traced: by the very index that it came with."""
    async with AsyncClient(embedded_address) as client:
        (run,) = (await client.explain(PROMPT, **ASK, parts=["node_table"])).runs
        assert run.node_table is not None
        node = run.node_table.nodes[run.node_table.group("direction_write").top[0]]
        trace = TraceConfig(
            node_index=node,
            pre_or_post_act=PreOrPostAct.PRE,
            detach_layer_norm_scale=True,
            attention_trace_type=AttentionTraceType.QK,
        )
        answer = await client.explain(
            PROMPT,
            **ASK,
            beside=[make_explain_run(PROMPT, **ASK, ablate=node), make_explain_run(PROMPT, trace=trace)],
            k=5,
        )
    plain, without, traced = answer.runs
    assert plain.header.loss == pytest.approx(run.header.loss, rel=1e-5)
    assert without.header.loss is not None
    assert plain.header.loss is not None
    assert without.header.loss < plain.header.loss - 2
    assert traced.header.activation_value is not None
    assert traced.node_table is not None
    later = [
        n for n in traced.node_table.nodes if n.layer_index is not None and n.layer_index >= (node.layer_index or 0)
    ]
    values = traced.node_table.group("direction_write").values
    assert later
    assert not any(values[traced.node_table.nodes.index(n)] for n in later)
    assert answer.trailer.statistics.backward_passes == 1


async def test_prompts_of_different_lengths_answer_each_for_itself(embedded_address: str) -> None:
    short = make_explain_run("Once upon a time", **ASK)
    async with AsyncClient(embedded_address) as client:
        answer = await client.explain(PROMPT, **ASK, beside=[short], parts=["node_table", "top_logits"])
        (alone,) = (await client.explain("Once upon a time", **ASK, parts=["node_table"])).runs
        with pytest.raises(InvalidRequest, match="must not be NODE_SCOPE_BATCH"):
            await client.explain(PROMPT, **ASK, beside=[short], node_scope="batch")
    long, found = answer.runs
    assert long.node_table is not None
    assert found.node_table is not None
    assert alone.node_table is not None
    assert long.node_table.nodes != found.node_table.nodes
    assert found.header.loss == pytest.approx(alone.header.loss, rel=1e-4)
    values = dict(zip(found.node_table.nodes, found.node_table.group("act_times_grad").values, strict=True))
    others = dict(zip(alone.node_table.nodes, alone.node_table.group("act_times_grad").values, strict=True))
    common = [node for node in others if node in values]
    assert len(common) > 0.9 * len(others)
    np.testing.assert_allclose([values[n] for n in common], [others[n] for n in common], rtol=1e-3, atol=1e-4)


def test_the_blocking_client_explains_too(embedded_address: str) -> None:
    with Client(embedded_address) as client:
        whole = client.explain(PROMPT, **ASK, **LATENTS, k=4)
        request = make_explain_request(PROMPT, **ASK, **LATENTS, k=4)
        kinds = [part.kind for part in client.explain_parts(request)]
        assert kinds[0] is PartKind.HEADER
        assert kinds[-1] is PartKind.TRAILER
        assert len(kinds) == whole.trailer.frame_count
        (run,) = whole.runs
        assert run.token_pairs is not None
        assert run.token_pairs.nodes
        assert {part.part for part in run.scored_tokens} == {
            ExplainPart.UPVOTED_OUTPUT_TOKENS,
            ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP,
        }
        chosen = client.top_k(PROMPT, {"heads": "attn_qk_probs"}, k=2, token_index=-1, with_sums=True)
        table = chosen.runs[0].node_table
        assert table is not None
        last = len(chosen.runs[0].header.token_ids) - 1
        assert {node.tensor_indices[0] for node in table.nodes} == {last}
        assert [found.dst.value for found in chosen.runs[0].sums] == ["attn_qk_probs"]
        with pytest.raises(PreconditionFailed) as caught:
            client.explain(PROMPT, **ASK, mlp="autoencoder_latent")
        assert caught.value.reason is Reason.AUTOENCODER_REQUIRED


@pytest.fixture
async def of_residuals(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server with the embedded model and an autoencoder of its residual, one latent a sign."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    channels = torch.eye(128)
    tensors = {
        "pre_bias": torch.full((128,), 0.5),
        "encoder.weight": torch.cat((channels, -channels)),
        "latent_bias": torch.zeros(256),
        "decoder.weight": torch.cat((channels, -channels), dim=1) * 0.75,
    }
    for layer in (1, 2):
        write_autoencoder(folder / "autoencoders" / "resid_post_mlp" / f"{layer}.safetensors", tensors)
    settings = Settings(port=0, models={"own": folder})
    async with running_server(settings, build_parts(settings)) as server:
        yield server.address


async def test_latents_of_the_residual_are_explained_over_the_wire(of_residuals: str) -> None:
    own: dict[str, Any] = {"model": "own", "autoencoders": ["own/resid_post_mlp"]}
    async with AsyncClient(of_residuals) as client:
        asked = {**ASK, **own, "residual": "autoencoder_latent", "parts": ["node_table"]}
        (run,) = (await client.explain(PROMPT, **asked)).runs
        (plain,) = (await client.explain(PROMPT, **ASK, model="own", parts=["node_table"])).runs
        assert run.node_table is not None
        assert plain.node_table is not None
        assert run.header.loss == pytest.approx(plain.header.loss, rel=1e-4)
        told = run.node_table.group("residual_direction_write").completeness
        assert told is not None
        answer = await client.derive(
            PROMPT,
            [
                "resid_post_mlp_proj_to_final_residual_grad",
                "online_residual_autoencoder_error_write_to_final_residual_grad",
            ],
            **ASK,
            **own,
        )
        whole, error = (dict(scalar.items()) for scalar in answer)
        assert [share.layer_index for share in told.residuals] == [1, 2]
        for share in told.residuals:
            # A quarter of the residual, less the bias, is not reconstructed.
            assert share.error == pytest.approx(share.latents / 3, rel=1e-3)
            assert share.error == pytest.approx(float(np.sum(error[share.layer_index])), rel=1e-3, abs=1e-4)
            assert share.total == pytest.approx(float(np.sum(whole[share.layer_index])), rel=1e-3, abs=1e-4)
        latent = next(node for node in run.node_table.nodes if node.node_type is NodeType.AUTOENCODER_LATENT)
        trace = TraceConfig(node_index=latent, pre_or_post_act=PreOrPostAct.PRE, detach_layer_norm_scale=True)
        (traced,) = (await client.explain(PROMPT, trace=trace, **own, parts=["node_table"])).runs
        assert traced.node_table is not None
        complete = traced.node_table.group("direction_write").completeness
        assert complete is not None
        assert complete.target == traced.header.activation_value
        (ablated,) = (await client.explain(PROMPT, **asked, ablate=latent)).runs
        assert ablated.header.loss != pytest.approx(run.header.loss, abs=1e-4)
