"""Many requests on one stream: order, ids, errors of items, back-pressure, and what ends a stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.client import Answer, AsyncClient, Client, ItemCancels, Resolution, ResolveRequest, make_request
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import Cancelled, DataLoss, DeadlineExceeded, InvalidRequest, NotFound, Reason, Unavailable
from dst_grpc.wire.errors import error_to_status
from tests.fake_answers import frames_of
from tests.fake_service import FakeService, never_done, once_set


def requests(*ids: str, prompt: str = "a b") -> list[DeriveRequest]:
    return [make_request(prompt, ["mlp_post_act"], request_id=request_id) for request_id in ids]


async def _failing(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
    yield next(frames_of(request))
    frame = inference_pb2.DeriveFrame()
    error = NotFound.unknown("model", "tinny", ["tiny"], reason=Reason.MODEL_NOT_FOUND)
    frame.error.CopyFrom(error_to_status(error))
    yield frame


def test_every_request_is_answered_under_its_id(client: Client) -> None:
    answers = dict(client.derive_stream(requests("x", "y", "z")))
    assert set(answers) == {"x", "y", "z"}
    for request_id, answer in answers.items():
        assert isinstance(answer, Answer)
        assert answer.request_id == request_id
        assert answer["mlp_post_act"][0].shape == (2, 5)


def test_a_request_without_an_id_is_known_by_its_position(client: Client) -> None:
    assert set(dict(client.derive_stream(requests("", "b", "")))) == {"0", "b", "2"}


def test_no_requests_are_no_answers(client: Client) -> None:
    assert list(client.derive_stream([])) == []


def test_answers_come_as_they_are_ready(client: Client, service: FakeService) -> None:
    """The first request waits for the second one's answer to have arrived."""
    arrived = threading.Event()
    service.scripts["wait"] = once_set(arrived)
    order = []
    for request_id, _ in client.derive_stream([*requests("slow", prompt="wait"), *requests("quick")]):
        order.append(request_id)
        arrived.set()
    assert order == ["quick", "slow"]


def test_an_item_that_fails_does_not_end_the_stream(client: Client, service: FakeService) -> None:
    service.scripts["bad"] = _failing
    answers = dict(client.derive_stream([*requests("1"), *requests("2", prompt="bad"), *requests("3")]))
    assert isinstance(answers["1"], Answer)
    assert isinstance(answers["3"], Answer)
    error = answers["2"]
    assert isinstance(error, NotFound)
    assert error.nearest == ("tiny",)


def test_a_damaged_item_does_not_end_the_stream(client: Client, service: FakeService) -> None:
    async def damaged(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        for frame in frames_of(request):
            if frame.WhichOneof("frame") == "chunk":
                frame.chunk.offset += 1
            yield frame

    service.scripts["bad"] = damaged
    answers = dict(client.derive_stream([*requests("1", prompt="bad"), *requests("2")]))
    error = answers["1"]
    assert isinstance(error, DataLoss)
    assert error.reason is Reason.ANSWER_CORRUPT
    assert isinstance(answers["2"], Answer)


def test_what_the_server_leaves_unfinished_is_truncated(client: Client, service: FakeService) -> None:
    async def short(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        yield next(frames_of(request))

    service.scripts["short"] = short
    ((request_id, error),) = client.derive_stream(requests("1", prompt="short"))
    assert request_id == "1"
    assert isinstance(error, DataLoss)
    assert error.reason is Reason.ANSWER_TRUNCATED


def test_no_more_are_in_flight_than_allowed(client: Client, service: FakeService) -> None:
    taken = 0

    def many() -> Iterator[DeriveRequest]:
        nonlocal taken
        for request in requests(*(str(i) for i in range(40))):
            taken += 1
            yield request

    answers = 0
    for _ in client.derive_stream(many(), max_in_flight=3):
        answers += 1
        # One more may be taken from the iterable, to wait for its turn.
        assert taken <= answers - 1 + 3 + 1
    assert answers == 40
    assert 1 <= service.most_in_flight <= 3


def test_a_limit_below_one_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="max_in_flight"):
        next(client.derive_stream(requests("1"), max_in_flight=0))


def test_items_of_one_id_are_told_apart(client: Client, service: FakeService) -> None:
    """What to say of the second is the server's business; here it answers both."""
    service.scripts["bad"] = _failing
    answers = list(client.derive_stream([*requests("1", prompt="bad"), *requests("1")]))
    assert {request_id for request_id, _ in answers} == {"1"}
    assert sorted(type(answer).__name__ for _, answer in answers) == ["Answer", "NotFound"]


def test_an_item_may_have_a_time_limit_of_its_own(client: Client, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    answers = dict(client.derive_stream([*requests("slow", prompt="slow"), *requests("quick")], item_timeout=0.2))
    assert isinstance(answers["slow"], DeadlineExceeded)
    assert isinstance(answers["quick"], Answer)


def test_an_item_may_be_cancelled_while_the_others_go_on(client: Client, service: FakeService) -> None:
    """Also after the last request was sent."""
    service.scripts["slow"] = never_done
    cancels = ItemCancels()
    items = [*requests("a", "b", prompt="slow"), *requests("quick")]
    found = {}
    for request_id, answer in client.derive_stream(items, cancels=cancels):
        found[request_id] = answer
        cancels.cancel("a" if request_id == "quick" else "b")
    assert isinstance(found["quick"], Answer)
    assert isinstance(found["a"], Cancelled)
    assert isinstance(found["b"], Cancelled)


async def test_an_item_may_be_cancelled_before_all_were_sent(async_client: AsyncClient, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    cancels = ItemCancels()

    async def some() -> AsyncIterator[DeriveRequest]:
        for request in requests("slow", prompt="slow"):
            yield request
        cancels.cancel("slow")
        for request in requests("quick"):
            yield request

    found = {request_id: answer async for request_id, answer in async_client.derive_stream(some(), cancels=cancels)}
    assert isinstance(found["slow"], Cancelled)
    assert isinstance(found["quick"], Answer)


def test_an_error_of_the_iterable_is_raised(client: Client) -> None:
    def broken() -> Iterator[DeriveRequest]:
        yield from requests("1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.derive_stream(broken()))


def test_an_error_of_the_stream_is_raised(client: Client, service: FakeService) -> None:
    service.error = Unavailable("draining")
    with pytest.raises(Unavailable, match="draining"):
        list(client.derive_stream(requests("1")))


def test_leaving_the_loop_cancels_the_stream(client: Client, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    answers = client.derive_stream([*requests("1"), *requests("2", prompt="slow")])
    assert next(answers)[0] == "1"
    answers.close()
    assert service.cancelled.wait(10)
    assert list(answers) == []


def test_requests_may_wait_for_answers(client: Client) -> None:
    """The iterable runs on a thread of its own, so it may block on what the loop does."""
    seen = threading.Event()

    def dialogue() -> Iterator[DeriveRequest]:
        yield from requests("first")
        assert seen.wait(10)
        yield from requests("second")

    order = []
    for request_id, _ in client.derive_stream(dialogue()):
        order.append(request_id)
        seen.set()
    assert order == ["first", "second"]


async def test_an_async_iterable_is_taken_too(async_client: AsyncClient) -> None:
    async def some() -> AsyncIterator[DeriveRequest]:
        for request in requests("1", "2"):
            yield request

    assert {request_id async for request_id, _ in async_client.derive_stream(some())} == {"1", "2"}


async def test_cancelling_the_task_is_not_mistaken_for_an_error(
    async_client: AsyncClient, service: FakeService
) -> None:
    service.scripts["slow"] = never_done

    async def consume() -> None:
        async with aclosing(async_client.derive_stream(requests("1", prompt="slow"))) as answers:
            async for _ in answers:
                pass

    task = asyncio.create_task(consume())
    assert await asyncio.to_thread(service.started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(service.cancelled.wait, 10)


def test_resolving_many(client: Client) -> None:
    items = [
        ResolveRequest(request=make_request("a b", ["logits"], request_id="good")),
        ResolveRequest(request=make_request("a b", ["logits"], request_id="bad", model="missing")),
    ]
    answers = dict(client.resolve_stream(items))
    assert isinstance(answers["good"], Resolution)
    assert isinstance(answers["bad"], NotFound)
