"""Memory that runs out, wherever it does: the call is refused for it, and the server goes on.

Nothing but the failures is patched in: no test could take all memory at just one line.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from dst_grpc._gen.dst.v1 import component_pb2, config_pb2, derived_scalar_type_pb2, explain_pb2, inference_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.errors import Reason
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.errors import error_from_status
from tests.e2e.conftest import CALL_SECONDS, error_of

PROMPT = inference_pb2.Prompt(text="When Mary and John went to the store, John gave a drink to")
LOSS = config_pb2.LossFnConfig(name=component_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" Mary"])

PYTHON = MemoryError()
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to")
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
IN_DERIVE = {
    "parsing": ("dst_grpc.rpc.reading.parse", PYTHON),
    "reading": ("dst_grpc.rpc.reading.read_request", PYTHON),
    "tokenising": ("dst_grpc.engine.tokenizer.Tokenizer.encode_at_most", PYTHON),
    "loading": ("dst_grpc.contexts.loading.FileLoader.load_model", CPU),
    "leasing": ("dst_grpc.contexts.cache.ContextCache.lease", PYTHON),
    "padding": ("dst_grpc.pipeline.rows.Entering.of", CPU),
    "forward": ("dst_grpc.engine.decoder.Decoder.forward", GPU),
    "attention": ("dst_grpc.engine.layer.Layer.attn_project", CPU),
    "backward": ("dst_grpc.engine.taps.Taps.gradients", GPU),
    "keeping": ("dst_grpc.pipeline.store.RecordingStore.keep", CPU),
    "looking for what was kept": ("dst_grpc.pipeline.store.RecordingStore.find", PYTHON),
    "deriving": ("dst_grpc.scalars.derive.Derivation.at", CPU),
    "serialising": ("dst_grpc.wire.frames.frames_of", PYTHON),
    "packing": ("dst_grpc.wire.envelope._field", PYTHON),
    "waiting to be read": ("dst_grpc.rpc.outbox.Unread.hold", PYTHON),
    "planning": ("dst_grpc.pipeline.planner.plan_run", PYTHON),
    "copying to the host": ("dst_grpc.pipeline.tensor_answer.to_numpy", CPU),
    "chunking": ("dst_grpc.wire.frames.tensor_buffers", PYTHON),
    "summing up": ("dst_grpc.pipeline.tensor_answer.provenance_of", PYTHON),
}
IN_EXPLAIN = {
    "planning": ("dst_grpc.pipeline.explain_planner.plan_run", PYTHON),
    "choosing": ("dst_grpc.scalars.topk.extremes", CPU),
    "scoring": ("dst_grpc.pipeline.scored_tokens.extreme_tokens", GPU),
    "cutting": ("dst_grpc.wire.frames.PartCutter.cut", PYTHON),
    "summing up": ("dst_grpc.pipeline.explanation_answer.provenance_of", PYTHON),
}
IN_A_STREAM = {name: IN_DERIVE[name] for name in ("parsing", "reading", "forward", "chunking", "waiting to be read")}


@pytest.fixture
async def scalars() -> AsyncIterator[Any]:
    """A server with the embedded model in this process, so that failures can be put into it."""
    settings = Settings(port=0)
    async with (
        running_server(settings, build_parts(settings)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield DerivedScalarServiceStub(channel)


def derive() -> inference_pb2.DeriveRequest:
    scalar = inference_pb2.DerivedScalarSpec(dst=derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD)
    return inference_pb2.DeriveRequest(request_id="a", prompt=PROMPT, loss_fn_config=LOSS, derived_scalars=[scalar])


def explain() -> explain_pb2.ExplainRequest:
    return explain_pb2.ExplainRequest(runs=[explain_pb2.ExplainRun(prompt=PROMPT, loss_fn_config=LOSS)], k=3)


def failing(monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, fail)


@pytest.mark.parametrize(("where", "error"), IN_DERIVE.values(), ids=IN_DERIVE)
async def test_derive_is_refused_and_the_next_is_served(
    scalars: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, where, error)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [_ async for _ in scalars.Derive(derive(), timeout=CALL_SECONDS)]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_of(caught.value).reason is Reason.OUT_OF_MEMORY
    assert [_ async for _ in scalars.Derive(derive(), timeout=CALL_SECONDS)]


@pytest.mark.parametrize(("where", "error"), IN_EXPLAIN.values(), ids=IN_EXPLAIN)
async def test_explain_is_refused_and_the_next_is_served(
    scalars: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, where, error)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [_ async for _ in scalars.Explain(explain(), timeout=CALL_SECONDS)]
    assert error_of(caught.value).reason is Reason.OUT_OF_MEMORY
    assert [_ async for _ in scalars.Explain(explain(), timeout=CALL_SECONDS)]


@pytest.mark.parametrize(("where", "error"), IN_A_STREAM.values(), ids=IN_A_STREAM)
async def test_an_item_of_a_stream_is_refused_and_so_is_the_stream_where_it_cannot_be_told(
    scalars: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    item = inference_pb2.DeriveStreamRequest(request=derive())
    reasons = []
    with monkeypatch.context() as patch:
        failing(patch, where, error)
        call = scalars.DeriveStream(iter([item]), timeout=CALL_SECONDS)
        try:
            async for response in call:
                reasons += [
                    error_from_status(frame.error).reason for frame in response.frames if frame.HasField("error")
                ]
        except grpc.aio.AioRpcError as ended:
            reasons.append(error_of(ended).reason)
    assert reasons == [Reason.OUT_OF_MEMORY]
    assert [_ async for _ in scalars.DeriveStream(iter([item]), timeout=CALL_SECONDS)]
