"""Calls over a real socket, against fakes: shapes, errors, malformed bytes, limits."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import (
    catalog_service_pb2,
    component_pb2,
    context_service_pb2,
    explain_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_pb2,
    tensor_service_pb2,
    trace_pb2,
)
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.sender import HERE
from dst_grpc.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    DstError,
    Exhausted,
    FieldViolation,
    Internal,
    InvalidRequest,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    Reason,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from dst_grpc.observability.calls import CallInfo
from dst_grpc.rpc.ports import AnswerPart
from dst_grpc.wire.assembly import assemble
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged, status_of
from tests.fake_parts import Script, answer, context_status, failing, failing_after_header, tensor


def derive_request(request_id: str = "") -> inference_pb2.DeriveRequest:
    return inference_pb2.DeriveRequest(request_id=request_id, prompt=inference_pb2.Prompt(text="ab"))


async def test_derive_streams_the_frames_of_an_answer(rig: Rig) -> None:
    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        for part in answer([tensor(0, np.arange(700_000)), tensor(1, [])]):
            yield [part]

    rig.parts.pipeline.scripts["big"] = script
    call = rig.scalars.Derive(derive_request("big"), timeout=CALL_SECONDS)
    responses = [response async for response in call]
    assert {response.request_id for response in responses} == {"big"}
    assert max(response.ByteSize() for response in responses) <= 1 << 20
    whole = assemble(frame for response in responses for frame in response.frames)
    np.testing.assert_array_equal(whole.tensors[0].values, np.arange(700_000, dtype=np.float32))


async def test_resolve_answers_in_stages(rig: Rig) -> None:
    request = resolution_pb2.ResolveRequest(request=derive_request("r"))
    responses = [response async for response in rig.scalars.Resolve(request, timeout=CALL_SECONDS)]
    assert {response.request_id for response in responses} == {"r"}
    frames = [frame for response in responses for frame in response.frames]
    assert [frame.WhichOneof("frame") for frame in frames] == ["validated", "resolved"]
    assert frames[1].resolved.model.name == "tiny"


ERRORS: list[tuple[DstError, grpc.StatusCode]] = [
    (InvalidRequest.of("config.layer_indices[2]", "must be below 2"), grpc.StatusCode.INVALID_ARGUMENT),
    (
        NotFound.unknown("model", "tini", ["tiny"], reason=Reason.MODEL_NOT_FOUND),
        grpc.StatusCode.NOT_FOUND,
    ),
    (
        PreconditionFailed([FieldViolation("loss_fn_config", "is needed")], reason=Reason.ORIGIN_REQUIRED),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    (Exhausted("the queue is full", retry_after_seconds=0.25), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (
        Exhausted("too big", reason=Reason.MEMORY_BUDGET_EXCEEDED, metadata={"bytes": "9"}),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    (
        Unavailable("not now", reason=Reason.LOAD_FAILED, retry_after_seconds=2.0),
        grpc.StatusCode.UNAVAILABLE,
    ),
    (DataLoss("corrupt", metadata={"file": "model"}), grpc.StatusCode.DATA_LOSS),
    (Unauthenticated("who?"), grpc.StatusCode.UNAUTHENTICATED),
    (NotAllowed("outside", reason=Reason.PATH_NOT_ALLOWED), grpc.StatusCode.PERMISSION_DENIED),
    (DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (Cancelled("gone"), grpc.StatusCode.CANCELLED),
    (Unimplemented("not here"), grpc.StatusCode.UNIMPLEMENTED),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: getattr(value, "message", None))
@pytest.mark.parametrize("script", [failing, failing_after_header])
async def test_an_error_travels_whole(
    rig: Rig, error: DstError, code: grpc.StatusCode, script: Callable[[DstError], Script]
) -> None:
    rig.parts.pipeline.scripts["x"] = script(error)
    call = rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in call]
    assert caught.value.code() is code
    rebuilt = error_of(caught.value)
    assert type(rebuilt) is type(error)
    assert (rebuilt.message, rebuilt.reason, rebuilt.metadata) == (error.message, error.reason, error.metadata)


@pytest.mark.parametrize(
    ("error", "pushback"),
    [
        (Exhausted("full", retry_after_seconds=0.25), "250"),
        (Exhausted("too big"), "-1"),
        (Unavailable("stopping", retry_after_seconds=1.0), "1000"),
        (DataLoss("corrupt"), None),
    ],
)
async def test_retryable_errors_tell_grpcs_own_retries_when(rig: Rig, error: DstError, pushback: str | None) -> None:
    rig.parts.pipeline.scripts["x"] = failing(error)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)]
    trailing = dict(caught.value.trailing_metadata() or ())
    assert trailing.get("grpc-retry-pushback-ms") == pushback


async def test_a_fault_of_ours_is_internal_and_its_text_stays_here(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = failing(ValueError("secret path"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)]
    error = error_of(caught.value)
    assert isinstance(error, Internal)
    assert error.error_id
    assert "secret" not in str(status_of(caught.value))


@pytest.mark.parametrize("is_given_up", [False, True])
async def test_a_call_without_an_answer_is_gone_with_its_end_and_not_left_to_be_collected(
    rig: Rig, is_given_up: bool
) -> None:
    def n_calls() -> int:
        return sum(isinstance(one, CallInfo) for one in gc.get_objects())

    async def script(request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        begun.set()
        await asyncio.sleep(CALL_SECONDS if is_given_up else 0)
        async for part in failing(Exhausted("the queue is full"))(request):
            yield part

    begun, pipeline = asyncio.Event(), rig.parts.pipeline
    pipeline.scripts["x"] = script
    before = n_calls()
    gc.disable()
    try:
        call = rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)
        await begun.wait()
        if is_given_up:
            call.cancel()
        else:
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        pipeline.sender = HERE
        async with asyncio.timeout(CALL_SECONDS):
            while n_calls() > before:  # noqa: ASYNC110  nothing tells when gRPC lets a call go
                await asyncio.sleep(0)
    finally:
        gc.enable()


async def test_a_cancellation_from_within_does_not_leave_the_client_waiting(rig: Rig) -> None:
    rig.parts.pipeline.scripts["x"] = failing(asyncio.CancelledError("a task of ours died"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)]
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_no_header_is_sent_before_the_first_part_so_that_clients_may_retry() -> None:
    policy = (
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",'
        ' "maxBackoff": "0.01s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
    )
    async with rigged() as rig:
        attempts = 0

        async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise Unavailable("not yet", retry_after_seconds=0.01)
            yield answer()

        rig.parts.pipeline.scripts["x"] = script
        options = (("grpc.service_config", policy),)
        async with grpc.aio.insecure_channel(rig.server.address, options=options) as channel:
            retrying = rig._replace(channel=channel).scalars
            frames = [r async for r in retrying.Derive(derive_request("x"), timeout=CALL_SECONDS)]
        assert attempts == 3
        assert frames


async def test_the_worst_details_still_fit_the_metadata(rig: Rig) -> None:
    text = "ä" * 200
    violations = [FieldViolation(f"config.{text}[{i}]", text) for i in range(500)]
    rig.parts.pipeline.scripts["x"] = failing(InvalidRequest(violations))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in rig.scalars.Derive(derive_request("x"), timeout=CALL_SECONDS)]
    error = error_of(caught.value)
    assert isinstance(error, InvalidRequest)
    assert "more" in error.violations[-1].description


def _raw(channel: grpc.aio.Channel, method: str, kind: str) -> Any:
    """A method that sends and receives bytes."""
    return getattr(channel, kind)(method, request_serializer=None, response_deserializer=None)


MALFORMED = [b"\xff\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"]


@pytest.mark.parametrize("data", MALFORMED, ids=["tag", "truncated", "utf8"])
async def test_malformed_bytes_are_the_callers_fault(rig: Rig, data: bytes) -> None:
    call = _raw(rig.channel, "/dst.v1.DerivedScalarService/Derive", "unary_stream")(data, timeout=CALL_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(caught.value).reason is Reason.MALFORMED_MESSAGE
    unary = _raw(rig.channel, "/dst.v1.CatalogService/GetModel", "unary_unary")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(data, timeout=CALL_SECONDS)
    assert error_of(caught.value).reason is Reason.MALFORMED_MESSAGE
    put = _raw(rig.channel, "/dst.v1.TensorService/PutTensor", "stream_unary")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(iter([data]), timeout=CALL_SECONDS)
    assert error_of(caught.value).reason is Reason.MALFORMED_MESSAGE


@pytest.mark.parametrize("method", ["DeriveStream", "ResolveStream"])
@pytest.mark.parametrize(
    "messages", [[b"\xff\xff"], [b"", b"\xff"], [b"", b"", b"", b"\xff"], [b"\x0a\x00"] * 3 + [b"\xff"]]
)
async def test_malformed_bytes_on_a_stream_end_it(rig: Rig, method: str, messages: list[bytes]) -> None:
    """Whatever is being written meanwhile: the status comes after it."""
    stream = _raw(rig.channel, f"/dst.v1.DerivedScalarService/{method}", "stream_stream")
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in stream(iter(messages), timeout=CALL_SECONDS)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_of(caught.value).reason is Reason.MALFORMED_MESSAGE


def nested_trace(depth: int) -> bytes:
    """A DeriveRequest whose trace is nested *depth* levels deep, written by hand because no library would."""
    number = inference_pb2.DeriveRequest.TRACE_CONFIG_FIELD_NUMBER
    inner = trace_pb2.TraceConfig.DOWNSTREAM_TRACE_CONFIG_FIELD_NUMBER
    data = b""
    for field in [*([inner] * depth), number]:
        length, prefix = len(data), bytearray([field << 3 | 2])
        while length > 0x7F:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        data = bytes(prefix) + data
    return data


@pytest.mark.parametrize(
    "method", ["DerivedScalarService/Derive", "CatalogService/GetServerInfo", "ContextService/WatchContexts"]
)
async def test_a_call_that_ends_without_a_request_is_answered(rig: Rig, method: str) -> None:
    call: Any = rig.channel.stream_stream(f"/dst.v1.{method}")(timeout=CALL_SECONDS)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError, match="the call ended without a request") as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_call_that_is_given_up_before_its_request_came_is_told_as_such(
    rig: Rig, caplog: pytest.LogCaptureFixture, is_late: bool
) -> None:
    """Of a call that ends, gRPC ends the messages first, as if the client had sent none."""
    caplog.set_level(logging.INFO, "dst_grpc.observability.logs")
    call: Any = rig.channel.stream_stream("/dst.v1.DerivedScalarService/Derive")(timeout=0.2 if is_late else None)
    if not is_late:
        # Of another call on the connection, so that the server has the first by now.
        await rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
        call.cancel()
    with pytest.raises(grpc.aio.AioRpcError if is_late else asyncio.CancelledError):
        await call.read()

    def codes() -> list[str]:
        return [line.__dict__["code"] for line in caplog.records if "Derive" in line.__dict__.get("method", "")]

    while not codes():
        await rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
    assert codes() == ["DEADLINE_EXCEEDED" if is_late else "CANCELLED"]


async def test_a_message_nested_too_deeply_is_malformed(rig: Rig) -> None:
    call = _raw(rig.channel, "/dst.v1.DerivedScalarService/Derive", "unary_stream")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [r async for r in call(nested_trace(150), timeout=CALL_SECONDS)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(caught.value).reason is Reason.MALFORMED_MESSAGE


async def test_statuses_that_grpc_sets_carry_no_details(rig: Rig) -> None:
    """Those that error.proto lists: the others are the server's own."""

    async def never(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        await asyncio.Event().wait()
        yield answer()

    rig.parts.pipeline.scripts["x"] = never
    large = derive_request()
    large.prompt.text = "a" * 5_000_000
    calls = {
        "RESOURCE_EXHAUSTED": rig.scalars.Derive(large, timeout=CALL_SECONDS),
        "DEADLINE_EXCEEDED": rig.scalars.Derive(derive_request("x"), timeout=0.1),
    }
    for code, call in calls.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code().name == code
        assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata() or ())
    assert rig.parts.pipeline.started == ["x"]


async def test_an_empty_model_is_the_default_one_everywhere(rig: Rig) -> None:
    request = derive_request()
    request.model = ""
    request.config.model_context = ""
    assert (await rig.scalars.Derive(request, timeout=CALL_SECONDS).read()).frames
    assert (
        await rig.catalog.GetModel(catalog_service_pb2.GetModelRequest(), timeout=CALL_SECONDS)
    ).model.name == "tiny"
    tokenize = catalog_service_pb2.TokenizeRequest(text="a", model="")
    assert (await rig.catalog.Tokenize(tokenize, timeout=CALL_SECONDS).read()).token_ids


async def test_every_bad_field_is_listed_with_enums_as_json_spells_them(rig: Rig) -> None:
    request = explain_pb2.TopKRequest(k=0, runs=[inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text=""))])
    request.groups.add(group_id="g", dsts=[1, 1])
    request.runs[0].loss_fn_config.name = component_pb2.LOSS_FN_NAME_PROBS
    request.runs[0].element_type = 77  # type: ignore[assignment]  # what a newer client may send
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.scalars.TopK(request, timeout=CALL_SECONDS).read()
    error = error_of(caught.value)
    assert isinstance(error, InvalidRequest)
    found = {violation.field: violation.description for violation in error.violations}
    assert set(found) == {
        "runs[0].prompt.text",
        "runs[0].loss_fn_config.target_tokens",
        "runs[0].element_type",
        "groups[0].dsts[1]",
        "k",
    }
    assert "TENSOR_ELEMENT_TYPE_BOOL" in found["runs[0].element_type"]


async def test_a_larger_message_passes_where_the_operator_allows_it() -> None:
    async with rigged(max_message_bytes=8 << 20) as rig:
        put: Any = rig.channel.stream_unary(
            "/dst.v1.TensorService/PutTensor",
            request_serializer=tensor_service_pb2.PutTensorRequest.SerializeToString,
            response_deserializer=tensor_service_pb2.PutTensorResponse.FromString,
        )
        description = tensor_service_pb2.TensorDescription(
            element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32, sizes=[1_250_000]
        )
        requests = [
            tensor_service_pb2.PutTensorRequest(description=description),
            tensor_service_pb2.PutTensorRequest(data=bytes(5_000_000)),
        ]
        assert (await put(iter(requests), timeout=CALL_SECONDS)).byte_count == 5_000_000


@pytest.mark.parametrize("method", ["/dst.v1.DerivedScalarService/Explode", "/dst.v1.OtherService/Derive", "/x"])
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_an_unknown_method_is_unimplemented(rig: Rig, method: str, kind: str) -> None:
    message: Any = b"" if kind.startswith("unary") else iter([])
    call = _raw(rig.channel, method, kind)(message, timeout=CALL_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = await call if kind.endswith("unary") else [r async for r in call]
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    error = error_of(caught.value)
    assert (error.reason, error.metadata) == (Reason.METHOD_NOT_FOUND, {"method": method})


async def test_more_calls_than_allowed_are_refused_with_details() -> None:
    async with rigged(max_concurrent_calls=1) as rig:
        watch = rig.contexts.WatchContexts(context_service_pb2.WatchContextsRequest(), timeout=CALL_SECONDS)
        rig.parts.cache.tell(context_status())
        await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
        error = error_of(caught.value)
        assert isinstance(error, Exhausted)
        assert error.reason is Reason.QUEUE_FULL
        assert error.retry_after_seconds
        watch.cancel()
