"""Requests that are sent again are read once, for each caller apart."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import Exhausted, InvalidRequest
from dst_grpc.failures import without_frames
from dst_grpc.rpc import reading
from dst_grpc.rpc.reading import Reading, Received, Refused, RequestStream

FIRST, SECOND = Caller(name="first"), Caller(name="second")


def data_of(text: str = "a", **fields: object) -> bytes:
    message = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text=text), **fields)  # type: ignore[arg-type]
    return message.SerializeToString()


async def test_a_request_that_is_sent_again_is_read_once_for_each_caller() -> None:
    reads = Reading()
    value, known = await reads.request(DeriveRequest, data_of(), FIRST)
    again, _ = await reads.request(DeriveRequest, data_of(), FIRST)
    of_other, _ = await reads.request(DeriveRequest, data_of(), SECOND)
    assert again is value
    assert of_other is not value
    assert of_other == value
    assert known is None


async def test_what_is_wrong_is_found_each_time() -> None:
    reads = Reading()
    for _ in range(2):
        _, known = await reads.request(DeriveRequest, data_of(element_type=77), FIRST)
        assert known is not None
        assert [violation.field for violation in known.listed] == ["element_type"]


async def test_only_so_many_small_requests_are_remembered() -> None:
    reads = Reading()
    first, _ = await reads.request(DeriveRequest, data_of("0"), FIRST)
    size, most = 0, reading._RECENT_BYTES
    for i in range(most // 1000):
        data = data_of(f"{i:01000d}")
        await reads.request(DeriveRequest, data, FIRST)
        size += len(data)
    assert size > most
    assert (await reads.request(DeriveRequest, data_of("0"), FIRST))[0] is not first
    large = data_of("x" * reading._SMALL_BYTES)
    assert (await reads.request(DeriveRequest, large, FIRST))[0] is not (
        await reads.request(DeriveRequest, large, FIRST)
    )[0]


# Messages that wait for a thread


class Waiting:
    """Notes what waits, and refuses more than one message at a time."""

    def __init__(self) -> None:
        self.now: list[tuple[str, int]] = []
        self.ever: list[tuple[str, int]] = []

    @contextmanager
    def __call__(self, caller: Caller, n_bytes: int) -> Iterator[None]:
        if self.now:
            raise Exhausted("too many wait")
        self.now.append((caller.name, n_bytes))
        self.ever.append((caller.name, n_bytes))
        yield
        self.now.pop()


LARGE = inference_pb2.DeriveRequest(
    request_id="large", prompt={"text": "a"}, derived_scalars=[{"dst": 1}] * 2000, model="tiny"
)


async def test_a_message_waits_for_its_caller_until_it_is_read() -> None:
    waiting, size = Waiting(), LARGE.ByteSize()
    reads = Reading(waiting)
    await reads.request(DeriveRequest, LARGE.SerializeToString(), SECOND)
    assert waiting.ever == [("second", size)] * 2  # to be parsed, and then to be read
    assert not waiting.now
    await reads.request(DeriveRequest, data_of(), FIRST)
    await reads.request(DeriveRequest, data_of("x" * 2000), FIRST)
    assert len(waiting.ever) == 2  # small ones are read at once


async def test_a_large_message_of_a_stream_is_counted_while_it_waits() -> None:
    waiting = Waiting()
    reads = Reading(waiting)
    with reads.held(reading._HELD_BYTES, FIRST):
        assert not waiting.now
    with reads.held(reading._HELD_BYTES + 1, FIRST):
        assert waiting.now == [("first", reading._HELD_BYTES + 1)]
        with pytest.raises(Exhausted), reads.held(reading._HELD_BYTES + 1, SECOND):
            pass
    assert not waiting.now


async def test_what_may_not_wait_is_refused_or_on_a_stream_fails_alone() -> None:
    waiting = Waiting()
    reads = Reading(waiting)

    async def messages() -> AsyncIterator[bytes]:
        yield LARGE.SerializeToString()
        yield data_of()

    async def parsed(data: bytes) -> inference_pb2.DeriveRequest:
        return await reads.parsed(inference_pb2.DeriveRequest, data, FIRST)

    with waiting(SECOND, 1):
        with pytest.raises(Exhausted):
            await reads.request(DeriveRequest, LARGE.SerializeToString(), FIRST)
        items = [item async for item in RequestStream(messages(), parsed).items()]
    assert [isinstance(item, Refused) for item in items] == [True, False]


async def test_a_stream_goes_on_once_the_error_of_a_refused_item_is_told() -> None:
    """Telling it clears the frames that it passed through: if the stream's own were one of them, it would be closed."""

    async def messages() -> AsyncIterator[bytes]:
        yield b"bad"
        yield b"good"

    async def parsed(data: bytes) -> bytes:
        if data == b"bad":
            raise InvalidRequest.of("", "is too large")
        return data

    each = RequestStream[Any](messages(), parsed).items()
    refused = await anext(each)
    assert isinstance(refused, Refused)
    without_frames(refused.error)
    for _ in range(5):  # steps of the event loop, in which it closes generators that are to be finalised
        await asyncio.sleep(0)
    received = await anext(each)
    assert isinstance(received, Received)
    assert received.message == b"good"


class Noted:
    """A message, of which bytes have no weak references to tell whether it is still there."""

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("kind", ["items", "refused items", "messages"])
async def test_a_stream_keeps_nothing_while_the_next_message_is_awaited(kind: str) -> None:
    """A caller may have hundreds of them open, each with as large a message as may be."""
    kept: list[weakref.ref[Noted]] = []

    def noted() -> Noted:
        made = Noted()
        kept.append(weakref.ref(made))
        return made

    async def messages() -> AsyncIterator[Any]:
        yield noted()
        await asyncio.Event().wait()

    async def parsed(_data: bytes) -> Noted:
        if kind == "refused items":
            raise InvalidRequest.of("", "is too large")
        return noted()

    stream = RequestStream[Any](messages(), parsed)
    each = aiter(stream if kind == "messages" else stream.items())
    await anext(each)
    waiting = asyncio.ensure_future(anext(each))
    await asyncio.sleep(0)
    assert len(kept) == (1 if kind == "refused items" else 2)
    assert not any(reference() for reference in kept)
    waiting.cancel()
