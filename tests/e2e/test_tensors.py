"""Tensors that callers put, over a real socket: how they arrive, whose they are, and runs that they change."""

from __future__ import annotations

import asyncio
import urllib.request
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import tensor_service_pb2 as pb
from dst_grpc._gen.dst.v1.catalog_service_pb2 import GetServerInfoRequest
from dst_grpc._gen.dst.v1.tensor_pb2 import (
    TENSOR_ELEMENT_TYPE_BFLOAT16,
    TENSOR_ELEMENT_TYPE_FLOAT16,
    TENSOR_ELEMENT_TYPE_FLOAT32,
    TENSOR_ELEMENT_TYPE_INT32,
)
from dst_grpc._gen.dst.v1.tensor_service_pb2_grpc import TensorServiceStub
from dst_grpc.client import AsyncClient, make_explain_request, make_explain_run, make_request, steer
from dst_grpc.domain.callers import Role
from dst_grpc.errors import DataLoss, Exhausted, InvalidRequest, NotFound, Reason
from dst_grpc.wire.codec import to_wire
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged

KIB = 1024
PROMPT = "When Mary and John went to the store, John gave a drink to"


def messages(values: Any, pieces: int = 1, **fields: Any) -> list[pb.PutTensorRequest]:
    """What puts an array, its bytes in *pieces*."""
    array = np.asarray(values, np.float32)
    data = array.tobytes()
    given: dict[str, Any] = {"element_type": TENSOR_ELEMENT_TYPE_FLOAT32, "sizes": array.shape} | fields
    step = -(-len(data) // pieces)
    parts = [pb.PutTensorRequest(data=data[i : i + step]) for i in range(0, len(data), step)]
    return [pb.PutTensorRequest(description=pb.TensorDescription(**given)), *parts]


async def put(rig: Rig, sent: Iterable[Message], **options: Any) -> pb.PutTensorResponse:
    stub: Any = TensorServiceStub(rig.channel)
    response: pb.PutTensorResponse = await stub.PutTensor(iter(sent), timeout=CALL_SECONDS, **options)
    return response


async def refused(rig: Rig, sent: Iterable[Message]) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(rig, sent)
    return error_of(caught.value)


@pytest.mark.parametrize(
    ("element_type", "dtype"), [(TENSOR_ELEMENT_TYPE_FLOAT16, "<f2"), (TENSOR_ELEMENT_TYPE_FLOAT32, "<f4")]
)
async def test_a_tensor_arrives_in_pieces_and_is_kept_as_float32(rig: Rig, element_type: Any, dtype: str) -> None:
    values = np.arange(600).reshape(20, 30)
    data = values.astype(dtype).tobytes()
    description = pb.TensorDescription(element_type=element_type, sizes=[20, 30], checksum=zlib.crc32(data))
    pieces = [pb.PutTensorRequest(data=data[i : i + 7]) for i in range(0, len(data), 7)]
    kept = await put(rig, [pb.PutTensorRequest(description=description), *pieces])
    assert kept.byte_count == 2400
    await rig.scalars.Derive(make_derive(), timeout=CALL_SECONDS).read()
    tensors: Any = rig.parts.pipeline.sender.tensors  # what a request of the same caller finds
    np.testing.assert_array_equal(tensors.get(kept.handle).tensor, values)
    with pytest.raises(NotFound):
        tensors.get("tensor-other")


def make_derive() -> Any:
    return to_wire(make_request("ab", "logits"))


async def test_bfloat16_and_a_single_number_are_tensors_too(rig: Rig) -> None:
    bits = (np.array([1.0, -2.0], np.float32).view(np.uint32) >> 16).astype("<u2")
    description = pb.TensorDescription(element_type=TENSOR_ELEMENT_TYPE_BFLOAT16, sizes=[2])
    two = await put(rig, [pb.PutTensorRequest(description=description), pb.PutTensorRequest(data=bits.tobytes())])
    one = await put(rig, messages(3.5))
    await rig.scalars.Derive(make_derive(), timeout=CALL_SECONDS).read()
    tensors: Any = rig.parts.pipeline.sender.tensors
    assert tensors.get(two.handle).tensor.tolist() == [1.0, -2.0]
    assert tensors.get(one.handle).tensor.tolist() == 3.5


async def seen(rig: Rig, byte_count: int) -> None:
    """Ask the server for something else until it keeps so many bytes."""
    while rig.server.put_tensor_bytes != byte_count:
        await rig.catalog.GetServerInfo(GetServerInfoRequest(), timeout=CALL_SECONDS)


MANY = np.ones(300)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ([], "description"),
        ([pb.PutTensorRequest()], "description"),
        (messages(MANY)[1:], "description"),
        ([messages(MANY)[0], *messages(MANY)], "description"),
        (messages(MANY)[:1], "data"),
        (messages(MANY, 4)[:-1], "data"),
        ([*messages(MANY), pb.PutTensorRequest(data=b"x")], "data"),
        (messages([1.0, np.nan]), "data"),
        (messages(MANY, element_type=TENSOR_ELEMENT_TYPE_INT32), "description.element_type"),
        (messages(MANY, sizes=[300, 0]), "description.sizes[1]"),
        (messages(MANY, sizes=[2**40, 2**40]), "description.sizes"),
        (messages(MANY, ttl={"seconds": -1}), "description.ttl"),
        (messages(MANY, ttl={"seconds": 2**62}), "description.ttl"),
        (messages(MANY, ttl={"seconds": 1, "nanos": -5}), "description.ttl"),
    ],
)
async def test_what_is_no_tensor_is_refused_and_nothing_is_kept(rig: Rig, sent: list[Message], field: str) -> None:
    error = await refused(rig, sent)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]
    assert rig.server.put_tensor_bytes == 0


async def test_another_checksum_is_a_loss_of_data(rig: Rig) -> None:
    error = await refused(rig, messages([1.0], checksum=7))
    assert isinstance(error, DataLoss)
    assert error.reason is Reason.TENSOR_CORRUPT
    assert error.metadata["expected_checksum"] == "7"


async def test_a_caller_has_a_quota_and_gets_it_back() -> None:
    async with rigged(max_put_tensor_bytes=4 * KIB) as rig:
        kept = await put(rig, messages(np.zeros(KIB)))
        error = await refused(rig, messages(0.0))
        assert isinstance(error, Exhausted)
        assert (error.reason, error.metadata) == (Reason.QUOTA_EXCEEDED, {"max_put_tensor_bytes": "4096"})
        assert error.retry_after_seconds is None
        stub: Any = TensorServiceStub(rig.channel)
        await stub.DeleteTensor(pb.DeleteTensorRequest(handle=kept.handle), timeout=CALL_SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeleteTensor(pb.DeleteTensorRequest(handle=kept.handle), timeout=CALL_SECONDS)
        assert error_of(caught.value).reason is Reason.TENSOR_NOT_FOUND
        await put(rig, messages(np.zeros(KIB)))


async def test_nothing_may_be_put_where_the_operator_allows_none() -> None:
    async with rigged(max_put_tensor_bytes=0) as rig:
        assert (await refused(rig, messages(0.0))).reason is Reason.QUOTA_EXCEEDED


async def test_a_caller_who_leaves_half_way_leaves_nothing(rig: Rig) -> None:
    stub: Any = TensorServiceStub(rig.channel)
    call = stub.PutTensor(timeout=CALL_SECONDS)
    await call.write(messages(np.zeros(KIB))[0])
    await seen(rig, 4 * KIB)
    call.cancel()
    await seen(rig, 0)


async def test_a_tensor_is_kept_as_long_as_is_wanted_or_as_any_is() -> None:
    async with rigged(put_tensor_ttl_seconds=60) as rig:
        for wanted, kept_for in ((5, 5), (9000, 60), (None, 60)):
            before = datetime.now(UTC)
            ttl: dict[str, Any] = {} if wanted is None else {"ttl": {"seconds": wanted}}
            kept = await put(rig, messages(0.0, **ttl))
            expected = before + timedelta(seconds=kept_for)
            found = kept.expire_time.ToDatetime(UTC)
            assert expected <= found <= datetime.now(UTC) + timedelta(seconds=kept_for)


async def test_callers_are_told_apart_by_their_tokens(tmp_path: Path) -> None:
    file = tokens.write(tmp_path / "tokens", first=Role.ASK, second=Role.OPERATE)
    async with rigged(auth_token_file=file) as rig:
        stub: Any = TensorServiceStub(rig.channel)
        kept = await put(rig, messages(1.0), metadata=tokens.bearer("first-token"))
        request = pb.DeleteTensorRequest(handle=kept.handle)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeleteTensor(request, metadata=tokens.bearer("second-token"), timeout=CALL_SECONDS)
        assert error_of(caught.value).reason is Reason.TENSOR_NOT_FOUND
        await stub.DeleteTensor(request, metadata=(("authorization", "bearer first-token"),), timeout=CALL_SECONDS)


async def test_metrics_tell_how_much_is_kept() -> None:
    async with rigged(metrics_port=0) as rig:
        await put(rig, messages(np.zeros(KIB)))
        url = f"http://127.0.0.1:{rig.server.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=CALL_SECONDS).read().decode())
        assert '\ndst_memory_bytes{device="cpu",kind="put_tensors"} 4096.0\n' in text
        assert '\ndst_event_loop_lag_seconds_bucket{le="0.05"} ' in text


# On the embedded model


async def test_a_run_is_steered_by_a_tensor_that_was_put(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        model = await client.model()
        vector = np.sin(np.arange(model.dimensions.d_model, dtype=np.float32))
        kept = await client.put_tensor(vector)
        plain = await client.derive(PROMPT, "logits")
        inline = await client.derive(
            PROMPT, "logits", interventions=[steer("resid.post_mlp", vector, factor=3.0, layer=1)]
        )
        by_handle = await client.derive(
            PROMPT, "logits", interventions=[steer("resid.post_mlp", kept, factor=3.0, layer=1)]
        )
        for one, other in zip(inline, by_handle, strict=True):
            np.testing.assert_array_equal(np.asarray(one[None]), np.asarray(other[None]))
        assert np.abs(np.asarray(plain["logits"][None]) - np.asarray(by_handle["logits"][None])).max() > 0.1
        await client.delete_tensor(kept)
        with pytest.raises(InvalidRequest, match="handle: is required"):
            await client.delete_tensor("")
        with pytest.raises(NotFound) as caught:
            await client.derive(PROMPT, "logits", interventions=[steer("resid.post_mlp", kept, layer=1)])
        assert caught.value.reason is Reason.TENSOR_NOT_FOUND


async def test_a_tensor_that_does_not_fit_is_named_from_the_message_sent(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        kept = await client.put_tensor(np.zeros(3))
        change = steer("resid.post_mlp", kept, layer=1)
        with pytest.raises(InvalidRequest) as derived:
            await client.derive(PROMPT, "logits", interventions=[change])
        assert fields(derived.value) == ["interventions[0].add.vector.handle"]
        item = make_request(PROMPT, "logits", interventions=[change], request_id="a")
        ((_, streamed),) = [answer async for answer in client.derive_stream([item])]
        assert fields(streamed) == ["request.interventions[0].add.vector.handle"]
        run = make_explain_run(PROMPT, interventions=[change])
        with pytest.raises(InvalidRequest) as explained:
            await client.explain_request(make_explain_request(PROMPT, beside=[run, run]))
        path = "interventions[0].add.vector.handle"
        assert fields(explained.value) == [f"runs[1].{path}", f"runs[2].{path}"]
        await client.delete_tensor(kept)


def fields(error: Any) -> list[str]:
    return [violation.field for violation in error.violations]
