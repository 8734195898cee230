"""A stream ends with a status whatever the order in which requests, their failure, cancels, answers and reads come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import permutations

import pytest

from dst_grpc.errors import DstError, InvalidRequest, Reason, Violations
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Cancellation, Item, Multiplexer, StreamLimits
from dst_grpc.rpc.outbox import Unread

SECONDS = 10.0
TURNS = 12
"""Turns of the event loop after which nothing moves any more."""
STEPS = ("a", "bad", "-a", "answer", "take", "end")
"""Two items arrive, one is cancelled, it is answered, the client takes a message, and the requests end."""


class Items:
    """`a` is answered when its gate opens, `bad` fails at once, and `-a` cancels `a`."""

    method, id_path = "/test/Stream", "item.id"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0

    def read(self, message: str) -> Item | Cancellation:
        if message.startswith("-"):
            return Cancellation(message[1:])
        return Item(request_id=message, answers=lambda _: self.answers(message), problems=self.problems)

    async def problems(self) -> Violations:
        return Violations()

    async def answers(self, message: str) -> AsyncGenerator[bytes, None]:
        self.running += 1
        try:
            if message == "bad":
                raise InvalidRequest.of("request", "is bad")
            await self.gate.wait()
            yield b"a"
            yield b"a, again"
        finally:
            self.running -= 1

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        del item_index
        return f"{request_id}!{error.reason}".encode()


class Wire:
    """As gRPC: one write at a time, each taken when the client reads, and nothing once the status was sent."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.taken = asyncio.Semaphore(0)
        self.is_writing = False

    async def write(self, message: bytes) -> None:
        assert not self.is_writing
        self.is_writing = True
        await self.taken.acquire()
        self.written.append(message.decode())
        self.is_writing = False


class Stream:
    """A stream on which one thing happens after the other."""

    def __init__(self, failure: InvalidRequest | None) -> None:
        self.items, self.wire, self.unread = Items(), Wire(), Unread()
        self._failure = failure
        self._requests: asyncio.Queue[str] = asyncio.Queue()
        outbox = self.unread.outbox("caller", self.wire.write)
        stream = Multiplexer(self.items, StreamLimits(), DrainSignal(), outbox)
        self.running = asyncio.create_task(stream.run(self._given()))

    async def _given(self) -> AsyncGenerator[str, None]:
        while (request := await self._requests.get()) != "end":
            yield request
        if self._failure is not None:
            raise self._failure

    async def happens(self, step: str) -> None:
        if step == "answer":
            self.items.gate.set()
        elif step == "take":
            self.wire.taken.release()
        else:
            self._requests.put_nowait(step)
        for _ in range(TURNS):
            await asyncio.sleep(0)


@pytest.mark.parametrize("reader", ["half-closes", "fails"])
async def test_whatever_the_order_a_status_can_be_sent(reader: str) -> None:
    failure = InvalidRequest.of("", "no message", reason=Reason.MALFORMED_MESSAGE) if reader == "fails" else None
    for order in permutations(STEPS):
        stream = Stream(failure)
        for step in order:
            await stream.happens(step)
        for _ in STEPS:
            await stream.happens("take")  # the client reads on
        if failure is None:
            await asyncio.wait_for(stream.running, SECONDS)
            arrived = order[: order.index("end")]
            ends = [each for each in stream.wire.written if each != "a"]
            assert ends.count("bad!INVALID_FIELD") == arrived.count("bad"), order
            assert len(ends) == arrived.count("a") + arrived.count("bad"), order
        else:
            with pytest.raises(InvalidRequest) as caught:
                await asyncio.wait_for(stream.running, SECONDS)
            assert caught.value is failure, order
        assert (stream.wire.is_writing, stream.items.running, stream.unread.byte_count) == (False, 0, 0), order


async def test_a_cancelled_stream_is_over_at_once_whatever_came_before() -> None:
    for order in permutations(STEPS[:-1]):
        for n_steps in range(len(order)):
            stream = Stream(None)
            for step in order[:n_steps]:
                await stream.happens(step)
            stream.running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(stream.running, SECONDS)
            assert (stream.items.running, stream.unread.byte_count) == (0, 0), order
