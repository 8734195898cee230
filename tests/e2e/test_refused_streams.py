"""Streams that are refused while their clients are still sending: each call gets its status, whoever calls."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dst_grpc._gen.dst.v1 import inference_pb2, tensor_pb2, tensor_service_pb2
from dst_grpc.client import AsyncClient, make_request
from dst_grpc.domain.callers import Role
from dst_grpc.errors import Reason, Unavailable
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged

SCALARS, TENSORS = "/dst.v1.DerivedScalarService", "/dst.v1.TensorService"
_CALLS = 8
"""Of calls that are not heard out, more than half fail."""
_STOPS = 20
_MESSAGES = 200
_DESCRIPTION = tensor_service_pb2.PutTensorRequest(
    description=tensor_service_pb2.TensorDescription(
        element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32, sizes=[1_000_000]
    )
).SerializeToString()
LARGE = inference_pb2.DeriveStreamRequest(
    request=inference_pb2.DeriveRequest(request_id="a", prompt=inference_pb2.Prompt(text="a" * 10_000))
).SerializeToString()
_REQUEST = inference_pb2.DeriveRequest(request_id="a", prompt=inference_pb2.Prompt(text="a"))
DERIVE = _REQUEST.SerializeToString()
ITEM = inference_pb2.DeriveStreamRequest(request=_REQUEST).SerializeToString()
REFUSED = {
    "malformed at first": (f"{SCALARS}/DeriveStream", [b"\xff"], "INVALID_ARGUMENT"),
    "malformed later": (f"{SCALARS}/ResolveStream", [b"", b"", b"\xff"], "INVALID_ARGUMENT"),
    "no description": (f"{TENSORS}/PutTensor", [b""], "INVALID_ARGUMENT"),
    "described twice": (f"{TENSORS}/PutTensor", [_DESCRIPTION, _DESCRIPTION], "INVALID_ARGUMENT"),
    "unknown": ("/dst.v1.OtherService/Stream", [], "UNIMPLEMENTED"),
}


async def codes(rig: Rig, method: str, messages: Iterable[bytes]) -> Counter[str]:
    """The statuses of calls that send all of *messages*, one after the other."""
    stream: Any = rig.channel.stream_stream(method)
    sent, found = list(messages), Counter[str]()
    for _ in range(_CALLS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in stream(iter(sent), timeout=CALL_SECONDS)]
        found[caught.value.code().name] += 1
    return found


@pytest.mark.parametrize("more", [LARGE, b"\x0a\x00"], ids=["large", "small"])
@pytest.mark.parametrize(("method", "first", "code"), REFUSED.values(), ids=REFUSED)
async def test_a_client_that_is_still_sending_is_told(
    rig: Rig, method: str, first: list[bytes], code: str, more: bytes
) -> None:
    assert await codes(rig, method, [*first, *[more] * _MESSAGES]) == {code: _CALLS}


async def test_a_stranger_who_is_still_sending_is_told(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(tokens.line("a", "first"), encoding="utf-8")
    async with rigged(auth_token_file=file) as rig:
        assert await codes(rig, f"{SCALARS}/DeriveStream", [LARGE] * _MESSAGES) == {"UNAUTHENTICATED": _CALLS}


async def test_a_stranger_with_a_large_message_is_told(tmp_path: Path) -> None:
    """Before it is read; each waits for its turn to be heard out."""
    file = tmp_path / "tokens"
    file.write_text(tokens.line("a", "first"), encoding="utf-8")
    large = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text="a" * 3_000_000)).SerializeToString()
    async with rigged(auth_token_file=file) as rig:
        derive: Any = rig.channel.unary_stream(f"{SCALARS}/Derive")

        async def code() -> str:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await derive(large, timeout=CALL_SECONDS).read()
            return caught.value.code().name

        assert {*await asyncio.gather(*(code() for _ in range(3 * _CALLS)))} == {"UNAUTHENTICATED"}


async def test_a_stream_too_many_is_refused_until_another_ends() -> None:
    async with rigged(max_streams_per_caller=1) as rig:
        stream: Any = rig.channel.stream_stream(f"{SCALARS}/DeriveStream")
        first = stream(timeout=CALL_SECONDS)
        await first.write(ITEM)
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(iter([ITEM]), timeout=CALL_SECONDS).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_of(caught.value).metadata == {"max_streams_per_caller": "1"}
        await first.done_writing()
        while await first.read() is not grpc.aio.EOF:
            pass
        assert await stream(iter([ITEM]), timeout=CALL_SECONDS).read()


async def test_calls_that_send_nothing_end_and_hold_up_nobody_else(tmp_path: Path) -> None:
    names = tokens.write(tmp_path / "tokens", silent=Role.ASK, other=Role.ASK)
    async with rigged(auth_token_file=names, slow_sender_seconds=0.2) as rig:
        derive: Any = rig.channel.stream_stream(f"{SCALARS}/Derive")
        silent = [derive(metadata=tokens.bearer("silent-token")) for _ in range(2 * _CALLS)]
        other = derive(iter([DERIVE]), metadata=tokens.bearer("other-token"), timeout=CALL_SECONDS)
        assert await other.read()
        ended = await asyncio.wait_for(asyncio.gather(*(call.code() for call in silent)), CALL_SECONDS)
        assert {*ended} == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_a_client_whose_answers_make_it_send_more_is_told_that_the_server_stops() -> None:
    async def answers(rig: Rig, client: AsyncClient) -> None:
        """Begin to drain the server at the first of endless answers."""
        requests = (make_request("ab", "logits") for _ in itertools.count())
        draining = None
        async for _ in client.derive_stream(requests):
            draining = draining or asyncio.create_task(rig.server.drain())

    reasons = Counter[Reason]()
    for _ in range(_STOPS):
        async with rigged() as rig, AsyncClient(rig.server.address) as client:
            with pytest.raises(Unavailable) as caught:
                await answers(rig, client)
            reasons[caught.value.reason] += 1
    assert reasons == {Reason.DRAINING: _STOPS}


async def test_a_client_that_waits_for_an_answer_is_told(rig: Rig) -> None:
    """Its stream stays open, and nothing more comes."""
    call: Any = rig.channel.stream_stream(f"{SCALARS}/DeriveStream")(timeout=CALL_SECONDS)
    await call.write(b"\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_never_stops_is_cut_off(rig: Rig) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"\xff"
        while True:
            yield LARGE

    stream: Any = rig.channel.stream_stream(f"{SCALARS}/DeriveStream")
    call = stream(endless())  # without a deadline
    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(call.read(), CALL_SECONDS)
