"""What a failed call raises: our errors as the server made them, or a helpful sentence about a bare code."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.client import AsyncClient, Client, set_value
from dst_grpc.domain.requests import DeriveRequest
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
from tests.fake_answers import frames_of
from tests.fake_service import FakeService, never_done

VIOLATIONS = [FieldViolation("config.layer_indices[0]", "must be below 4"), FieldViolation("prompt", "is required")]
ERRORS: list[DstError] = [
    InvalidRequest(VIOLATIONS, reason=Reason.IMPOSSIBLE_COMBINATION),
    NotFound.unknown("model", "tyni", ["tiny"], reason=Reason.MODEL_NOT_FOUND),
    PreconditionFailed(VIOLATIONS, reason=Reason.ORIGIN_REQUIRED),
    Exhausted("the queue is full", retry_after_seconds=1.5),
    DataLoss("a file is corrupt", metadata={"file": "x"}),
    Unauthenticated("no token"),
    NotAllowed("that path is outside", reason=Reason.PATH_NOT_ALLOWED),
    DeadlineExceeded("too late"),
    Cancelled("gone"),
    Internal("something broke", error_id="abc123"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_server_s_error_is_rebuilt(client: Client, service: FakeService, error: DstError) -> None:
    service.error = error
    with pytest.raises(type(error)) as raised:
        client.derive("a b", "logits")
    rebuilt = raised.value
    assert rebuilt.reason == error.reason
    assert isinstance(rebuilt.__cause__, grpc.RpcError)
    if not isinstance(error, Internal):
        assert rebuilt.message == error.message
    for name in ("violations", "nearest", "retry_after_seconds", "error_id"):
        assert getattr(rebuilt, name, None) == getattr(error, name, None)


def test_unary_calls_raise_them_too(client: Client, service: FakeService) -> None:
    service.error = ERRORS[1]
    with pytest.raises(NotFound) as raised:
        client.models()
    assert raised.value.nearest == ("tiny",)


def test_only_unavailable_is_tried_again(client: Client, service: FakeService) -> None:
    service.error, service.failures_left = Unavailable("draining"), 2
    assert client.derive("a b", "logits").tokens == ("a", " b")
    assert service.calls == 3

    service.error, service.failures_left, service.calls = Exhausted("full"), 1, 0
    with pytest.raises(Exhausted):
        client.derive("a b", "logits")
    assert service.calls == 1


def test_no_server_is_a_sentence_that_says_how_to_start_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there either
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(target) as client, pytest.raises(Unavailable) as raised:
            client.models()
    assert raised.value.message == f"no server answers at {target}; start one with `dst-grpc serve`"


def test_a_deadline_says_how_long_was_waited(client: Client, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.2 seconds"):
        client.derive("slow", "logits", timeout=0.2)


async def test_cancelling_the_task_cancels_the_call(async_client: AsyncClient, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    task = asyncio.create_task(async_client.derive("slow", "logits"))
    assert await asyncio.to_thread(service.started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(service.cancelled.wait, 10)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented, "has no such method"),
        (grpc.StatusCode.CANCELLED, Cancelled, "was cancelled"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, "did not answer in time"),
        (grpc.StatusCode.PERMISSION_DENIED, NotAllowed, "rbac"),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated, "rbac"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Exhausted, "rbac"),
        (grpc.StatusCode.UNKNOWN, DstError, "rbac"),
    ],
)
def test_a_bare_code_from_a_proxy_has_its_class(
    client: Client, service: FakeService, code: grpc.StatusCode, error: type[DstError], text: str
) -> None:
    service.bare = (code, "rbac")
    with pytest.raises(error, match=text):
        client.models()


def test_of_a_request_that_is_too_large_the_tensors_go_ahead(client: Client) -> None:
    large = set_value("logits", np.zeros((300, 4000)))
    with pytest.raises(Exhausted, match=r"the request is too large .* send large tensors ahead, with put_tensor"):
        client.derive("a b", interventions=[large])


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ("Socket closed", "broke: Socket closed"),
        ("DNS resolution failed for x", "cannot be resolved"),
        ("Ssl handshake failed", "no TLS connection"),
    ],
)
def test_being_unavailable_has_several_sentences(client: Client, service: FakeService, details: str, text: str) -> None:
    service.bare = (grpc.StatusCode.UNAVAILABLE, details)
    with pytest.raises(Unavailable, match=text):
        client.models()


def test_a_code_that_a_proxy_replaced_is_the_truth(client: Client, service: FakeService) -> None:
    async def script(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        yield next(frames_of(request))
        frame = inference_pb2.DeriveFrame()
        frame.error.code = 5
        frame.error.message = "no such thing"
        yield frame

    service.scripts["odd"] = script
    with pytest.raises(NotFound, match="no such thing"):
        client.derive("odd", "logits")


def test_a_closed_client_says_so(service: FakeService) -> None:
    client = Client(service.target)
    assert len(client.models()) == 3
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.models()


async def test_a_closed_async_client_says_so(service: FakeService) -> None:
    async with AsyncClient(service.target) as client:
        await client.models()
    await client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        await client.models()
