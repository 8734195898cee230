"""Long calls over a real socket: many items on one stream, cancellation, deadlines, slow readers."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import inference_pb2, resolution_pb2
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import Exhausted, InvalidRequest, NotFound, Reason
from dst_grpc.rpc.ports import AnswerPart
from dst_grpc.wire.assembly import assemble
from dst_grpc.wire.errors import error_from_status
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged
from tests.e2e.scripts import until
from tests.fake_parts import Script, answer, failing, failing_after_header, tensor

MIB = 1 << 20


def item(request_id: str, text: str = "ab") -> inference_pb2.DeriveStreamRequest:
    prompt = inference_pb2.Prompt(text=text) if text else None
    return inference_pb2.DeriveStreamRequest(request=inference_pb2.DeriveRequest(request_id=request_id, prompt=prompt))


def resolve_item(request_id: str, text: str = "ab") -> resolution_pb2.ResolveStreamRequest:
    return resolution_pb2.ResolveStreamRequest(
        request=resolution_pb2.ResolveRequest(request=item(request_id, text).request)
    )


def endless(produced: Counter[str], mib: int = 1) -> Script:
    """A script that yields tensors without end, as far as they are taken."""

    async def script(request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        block = np.zeros(mib * MIB // 4, np.float32)
        parts = answer([tensor(i, block) for i in range(2000)])
        for part in parts:
            produced[request.request_id] += 1
            yield [part]

    return script


async def collected(call: Any) -> dict[str, list[inference_pb2.DeriveFrame]]:
    """The frames of a DeriveStream, by request."""
    frames: dict[str, list[inference_pb2.DeriveFrame]] = defaultdict(list)
    while (response := await call.read()) is not grpc.aio.EOF:
        frames[response.request_id] += response.frames
    return frames


def kinds(frames: Iterable[Any]) -> list[str]:
    """What frames hold."""
    return [frame.WhichOneof("frame") for frame in frames]


async def test_every_item_gets_its_whole_answer_in_order(rig: Rig) -> None:
    async def script(request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        for part in answer([tensor(i, np.full(300_000, float(request.request_id))) for i in range(3)]):
            yield [part]

    ids = [str(i) for i in range(40)]
    rig.parts.pipeline.scripts.update(dict.fromkeys(ids, script))
    frames = await collected(rig.scalars.DeriveStream(iter(map(item, ids)), timeout=CALL_SECONDS))
    assert sorted(frames) == sorted(ids)
    for request_id in ids:
        whole = assemble(frames[request_id])
        assert [float(t.values[0]) for t in whole.tensors] == [float(request_id)] * 3


async def test_at_most_so_many_items_run_at_once() -> None:
    async with rigged(max_items_in_flight_per_stream=3) as rig:
        gate = asyncio.Event()
        ids = [str(i) for i in range(10)]
        rig.parts.pipeline.scripts.update(dict.fromkeys(ids, until(gate)))
        call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
        for request_id in ids:
            await call.write(item(request_id))
        await call.done_writing()
        gate.set()
        frames = await collected(call)
        assert sorted(frames) == ids
        assert rig.parts.pipeline.most_running <= 3


async def test_answers_overtake_one_another(rig: Rig) -> None:
    gate = asyncio.Event()
    rig.parts.pipeline.scripts["slow"] = until(gate)
    call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
    await call.write(item("slow"))
    await call.write(item("fast"))
    first = await call.read()
    assert (first.request_id, first.item_index) == ("fast", 1)
    assert kinds(first.frames) == ["header", "chunk", "trailer"]
    gate.set()
    await call.done_writing()
    assert sorted(await collected(call)) == ["slow"]
    assert await call.code() is grpc.StatusCode.OK


async def test_an_items_error_is_its_own(rig: Rig) -> None:
    scripts = rig.parts.pipeline.scripts
    scripts["unknown"] = failing(NotFound.unknown("model", "x", ["tiny"], reason=Reason.MODEL_NOT_FOUND))
    scripts["late"] = failing_after_header(InvalidRequest.of("prompt", "is bad"))
    scripts["fault"] = failing(ValueError("secret"))
    scripts["inner"] = failing(asyncio.CancelledError())
    ids = ["unknown", "late", "fault", "inner", "fine"]
    requests = [*map(item, ids), item("empty", text=""), inference_pb2.DeriveStreamRequest()]
    frames = await collected(rig.scalars.DeriveStream(iter(requests), timeout=CALL_SECONDS))
    assert kinds(frames["late"]) == ["header", "error"]
    assert kinds(frames["fine"])[-1] == "trailer"
    codes = {request_id: items[-1].error.code for request_id, items in frames.items()}
    assert codes == {"unknown": 5, "late": 3, "fault": 13, "inner": 13, "fine": 0, "empty": 3, "": 3}
    assert "secret" not in str(frames["fault"])


async def test_an_id_may_not_be_used_again(rig: Rig) -> None:
    gate = asyncio.Event()
    rig.parts.pipeline.scripts["x"] = until(gate)
    call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
    await call.write(item("x"))
    await call.write(item("x"))
    refused = await call.read()
    assert (refused.request_id, refused.item_index) == ("x", 1)
    assert fields(refused) == ["request.request_id"]
    gate.set()
    answered = await call.read()
    assert (answered.request_id, answered.item_index, kinds(answered.frames)) == ("x", 0, ["header", "trailer"])
    await call.write(item("x"))
    assert fields(await call.read()) == ["request.request_id"]
    await call.done_writing()
    assert await collected(call) == {}


def fields(response: Any) -> list[str]:
    """The fields that the error in the only frame of *response* names."""
    (frame,) = response.frames
    error = error_from_status(frame.error)
    assert isinstance(error, InvalidRequest)
    return [violation.field for violation in error.violations]


async def test_items_without_an_id_are_refused_each_by_its_number_with_all_that_is_wrong(rig: Rig) -> None:
    nameless = item("")
    bad = item("")
    bad.request.max_chunk_bytes = 3
    call = rig.scalars.DeriveStream(iter([nameless, item("a"), bad]), timeout=CALL_SECONDS)
    found = {response.item_index: response async for response in call}
    assert fields(found[0]) == ["request.request_id"]
    assert kinds(found[1].frames) == ["header", "chunk", "trailer"]
    assert sorted(fields(found[2])) == ["request.max_chunk_bytes", "request.request_id"]


async def test_bad_fields_of_items_are_named_from_the_message_sent(rig: Rig) -> None:
    bad = item("a", text="")
    bad.request.prompt.token_ids.SetInParent()
    call = rig.scalars.DeriveStream(iter([bad]), timeout=CALL_SECONDS)
    assert [field.partition(".")[0] for field in fields(await call.read())] == ["request"]
    resolving = resolve_item("b")
    resolving.request.request.element_type = 77  # type: ignore[assignment]  # what a newer client may send
    call = rig.scalars.ResolveStream(iter([resolving]), timeout=CALL_SECONDS)
    assert fields(await call.read()) == ["request.request.element_type"]


async def test_an_item_too_many_fails_alone() -> None:
    async with rigged(max_items_per_stream=2) as rig:
        frames = await collected(rig.scalars.DeriveStream(iter(map(item, "abc")), timeout=CALL_SECONDS))
    assert kinds(frames["b"])[-1] == "trailer"
    error = error_from_status(frames["c"][0].error)
    assert isinstance(error, Exhausted)
    assert (error.reason, error.metadata) == (Reason.QUOTA_EXCEEDED, {"max_items_per_stream": "2"})


async def test_an_item_is_cancelled_alone_and_its_work_stops(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = until(asyncio.Event())
    call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
    await call.write(item("x"))
    await call.write(inference_pb2.DeriveStreamRequest(cancel=inference_pb2.CancelItem(request_id="x")))
    cancelled = await call.read()
    assert (cancelled.request_id, cancelled.item_index) == ("x", 0)
    assert error_from_status(cancelled.frames[0].error).reason is Reason.CANCELLED
    assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "x"
    await call.write(item("y"))
    answered = await call.read()  # a cancellation is no item
    assert (answered.request_id, answered.item_index) == ("y", 1)
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_an_items_own_time_limit_stops_its_work(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = until(asyncio.Event())
    slow, wrong = item("x"), item("y")
    slow.timeout.FromMilliseconds(20)
    wrong.timeout.FromSeconds(-1)
    call = rig.scalars.DeriveStream(iter([slow, wrong]), timeout=CALL_SECONDS)
    found = {response.request_id: response async for response in call}
    assert error_from_status(found["x"].frames[0].error).reason is Reason.DEADLINE_EXCEEDED
    assert fields(found["y"]) == ["timeout"]
    assert not rig.parts.pipeline.running


async def test_a_long_id_is_refused_and_comes_back_short(rig: Rig) -> None:
    call = rig.scalars.DeriveStream(iter([item("x" * 2_000_000)]), timeout=CALL_SECONDS)
    refused = await call.read()
    assert refused.request_id == "x" * 256
    assert fields(refused) == ["request.request_id"]


async def test_chunks_and_messages_are_as_small_as_an_item_wants_them(rig: Rig) -> None:
    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        yield answer([tensor(0, np.zeros(5000)), *(tensor(1 + i, [1.0]) for i in range(200))])

    rig.parts.pipeline.scripts["x"] = script
    small = item("x")
    small.request.max_chunk_bytes = 1024
    call = rig.scalars.DeriveStream(iter([small]), timeout=CALL_SECONDS)
    responses = [response async for response in call]
    assert max(response.ByteSize() for response in responses) <= 1024 + 2048
    frames = [frame for response in responses for frame in response.frames]
    assert max(len(frame.chunk.data) for frame in frames) == 1024
    assert len(assemble(frames).tensors) == 201


async def test_an_item_that_is_too_large_fails_alone(rig: Rig) -> None:
    large, nameless = item("large"), item("")
    for request in (large, nameless):
        request.request.autoencoders.extend(["x"] * 1000)
    call = rig.scalars.DeriveStream(iter([item("a"), large, nameless, item("b")]), timeout=CALL_SECONDS)
    found = {(response.request_id, response.item_index): response async for response in call}
    assert fields(found["large", 1]) == ["request.autoencoders"]
    assert sorted(fields(found["", 2])) == ["request.autoencoders", "request.request_id"]
    assert kinds(found["b", 3].frames) == kinds(found["a", 0].frames) == ["header", "chunk", "trailer"]
    resolving = resolve_item("c")
    resolving.request.request.prompt.text = "x" * 500_001
    call = rig.scalars.ResolveStream(iter([resolving]), timeout=CALL_SECONDS)
    assert fields(await call.read()) == ["request.request.prompt.text"]


async def test_a_message_that_may_not_even_be_an_item_ends_the_stream(rig: Rig) -> None:
    cancel = inference_pb2.DeriveStreamRequest(cancel=inference_pb2.CancelItem(request_id="x" * 5000))
    call = rig.scalars.DeriveStream(iter([item("a"), cancel]), timeout=CALL_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cancel.request_id" in (caught.value.details() or "")


@pytest.mark.parametrize("method", ["DeriveStream", "ResolveStream"])
@pytest.mark.parametrize("before", [[b""], [b"", b"", b""], [b"\x0a\x00"] * 3, []])
async def test_every_stream_with_a_malformed_message_gets_its_status(
    rig: Rig, method: str, before: list[bytes]
) -> None:
    stream: Any = rig.channel.stream_stream(f"/dst.v1.DerivedScalarService/{method}")

    async def ended() -> grpc.StatusCode:
        call = stream(iter([*before, b"\xff"]), timeout=CALL_SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in call]
        code: grpc.StatusCode = caught.value.code()
        return code

    codes = await asyncio.gather(*(ended() for _ in range(20)))
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("method", ["DeriveStream", "ResolveStream"])
async def test_a_stream_without_messages_ends_well(rig: Rig, method: str) -> None:
    stream: Any = rig.channel.stream_stream(f"/dst.v1.DerivedScalarService/{method}")
    assert [answer async for answer in stream(iter([]), timeout=CALL_SECONDS)] == []


async def test_resolve_stream_answers_by_id_and_keeps_errors_apart(rig: Rig) -> None:
    call = rig.scalars.ResolveStream(
        iter([resolve_item("a"), resolution_pb2.ResolveStreamRequest(), resolve_item("b")]), timeout=CALL_SECONDS
    )
    stages: dict[tuple[str, int], list[str]] = defaultdict(list)
    async for response in call:
        stages[response.request_id, response.item_index] += kinds(response.frames)
    resolved = ["validated", "resolved"]
    assert stages == {("a", 0): resolved, ("b", 2): resolved, ("", 1): ["error"]}


async def test_cancelling_stops_the_producer(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = endless(Counter())
    request = item("x").request
    call = rig.scalars.Derive(request, timeout=CALL_SECONDS)
    await call.read()
    call.cancel()
    assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "x"


async def test_a_client_that_vanishes_stops_every_item(rig: Rig) -> None:
    ids = [f"x{i}" for i in range(5)]
    rig.parts.pipeline.scripts.update(dict.fromkeys(ids, endless(Counter())))
    async with grpc.aio.insecure_channel(rig.server.address) as channel:
        call = rig._replace(channel=channel).scalars.DeriveStream(timeout=CALL_SECONDS)
        for request_id in ids:
            await call.write(item(request_id))
        while len(rig.parts.pipeline.started) < len(ids):
            await call.read()
    ended = {await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) for _ in ids}
    assert ended == set(ids)
    assert not rig.parts.pipeline.running


async def test_a_deadline_stops_the_producer(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = until(asyncio.Event())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.scalars.Derive(item("x").request, timeout=0.2).read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "x"


@pytest.mark.parametrize("shape", ["Derive", "DeriveStream"])
async def test_a_reader_that_stops_stops_production(shape: str) -> None:
    """What waits for it is bounded: gRPC's own windows, of a few MiB, and our outbox."""
    async with rigged(max_unread_bytes=4 * MIB) as rig:
        produced: Counter[str] = Counter()
        ids = ["x", "y", "z"] if shape == "DeriveStream" else ["x"]
        rig.parts.pipeline.scripts.update(dict.fromkeys(ids, endless(produced)))
        if shape == "Derive":
            call = rig.scalars.Derive(item("x").request, timeout=CALL_SECONDS)
        else:
            call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
            for request_id in ids:
                await call.write(item(request_id))
        await call.read()
        unary: Any = rig.channel.unary_unary("/dst.v1.CatalogService/ListModels")
        before = -1
        while produced.total() > before:  # until production stands still while the server has nothing else to do
            before = produced.total()
            for _ in range(20):
                await unary(b"", timeout=CALL_SECONDS)
        assert produced.total() <= 24
        call.cancel()
        for _ in ids:
            await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS)


async def served_once_there_is_a_place(rig: Rig) -> None:
    while True:
        try:
            await collected(rig.scalars.Derive(item("y").request, timeout=CALL_SECONDS))
        except grpc.aio.AioRpcError as full:
            if error_of(full).reason is not Reason.QUEUE_FULL:
                raise
        else:
            return


@pytest.mark.parametrize("shape", ["Derive", "DeriveStream"])
async def test_a_client_that_does_not_read_is_given_up_before_it_is_told(shape: str) -> None:
    """GRPC tells it only after what it has not read: its work and its place must not wait for that."""
    async with rigged(max_unread_bytes=MIB, slow_reader_seconds=0.2, max_concurrent_calls=1) as rig:
        rig.parts.pipeline.scripts["x"] = endless(Counter())
        if shape == "Derive":
            call = rig.scalars.Derive(item("x").request, timeout=CALL_SECONDS)
        else:
            call = rig.scalars.DeriveStream(iter([item("x")]), timeout=CALL_SECONDS)
        await call.read()
        assert await asyncio.wait_for(rig.parts.pipeline.ended.get(), CALL_SECONDS) == "x"
        async with grpc.aio.insecure_channel(rig.server.address) as other, asyncio.timeout(CALL_SECONDS):
            await served_once_there_is_a_place(rig._replace(channel=other))
        assert rig.server.unread_bytes <= MIB  # gRPC keeps one message until it is read
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collected(call)
    assert rig.server.unread_bytes == 0
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_of(caught.value).reason is Reason.SLOW_READER


async def test_closing_the_requests_ends_an_idle_stream_cleanly(rig: Rig) -> None:
    call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
    await call.done_writing()
    assert await collected(call) == {}
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_reads_on_after_a_pause(rig: Rig) -> None:
    call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
    for request_id in ("a", "b"):
        await call.write(item(request_id))
        frames = (await call.read()).frames
        assert kinds(frames) == ["header", "chunk", "trailer"]
    await call.done_writing()
    assert await collected(call) == {}


async def test_hundreds_of_idle_streams_hold_no_threads(rig: Rig) -> None:
    before = threading.active_count()
    calls = [rig.scalars.DeriveStream(timeout=CALL_SECONDS) for _ in range(250)]
    for i, call in enumerate(calls):
        await call.write(item(str(i)))
        assert (await call.read()).frames
    assert threading.active_count() <= before + 2
    for call in calls:
        await call.done_writing()
        assert await collected(call) == {}
        assert await call.code() is grpc.StatusCode.OK
