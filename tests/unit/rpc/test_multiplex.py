from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from dst_grpc.errors import DstError, Exhausted, InvalidRequest, Reason, Unavailable, Violations
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Cancellation, Item, Multiplexer, StreamLimits
from dst_grpc.rpc.outbox import Unread, UnreadLimits

SECONDS = 10.0


class Panic(BaseException):
    """As libraries in other languages raise it: no Exception."""


class Items:
    """Items that are their own ids; each yields its id with a number, as often as the test says."""

    method = "/test/Stream"
    id_path = "item.id"

    def __init__(self, frames: int = 3, frame_bytes: int = 1) -> None:
        self.frames = frames
        self.padding = b"." * (frame_bytes - 1)
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting: set[str] = set()
        """What waits for others of the stream to end."""
        self.running: set[str] = set()
        self.most_running = 0
        self.produced = 0
        self.closed: list[str] = []

    def read(self, message: str) -> Item | Cancellation:
        """`-a` cancels a, `a@0.5` may take half a second, all else is its own id."""
        if message.startswith("-"):
            return Cancellation(message[1:])
        request_id, _, timeout = message.partition("@")
        return Item(
            request_id=request_id,
            answers=lambda _item: self.run(request_id),
            problems=self.problems,
            timeout_seconds=float(timeout) if timeout else None,
            waiting=self.waits(request_id),
        )

    @contextmanager
    def waits(self, request_id: str) -> Iterator[None]:
        if request_id.startswith("large"):
            raise Exhausted("too much waits", reason=Reason.QUEUE_FULL)
        self.waiting.add(request_id)
        yield
        self.waiting.remove(request_id)

    async def problems(self) -> Violations:
        return Violations()

    async def run(self, request: str) -> AsyncGenerator[bytes, None]:
        self.running.add(request)
        self.most_running = max(self.most_running, len(self.running))
        try:
            if request in self.gates:
                await self.gates[request].wait()
            if request.startswith("bad"):
                raise InvalidRequest.of("request", "is bad")
            if request == "panic":
                raise Panic
            for i in range(self.frames):
                self.produced += 1
                yield f"{request}:{i}".encode() + self.padding
        finally:
            self.running.discard(request)
            self.closed.append(request)

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        return f"{item_index}:{request_id}!{error.reason}".encode()


async def given(*requests: str) -> AsyncGenerator[str, None]:
    for request in requests:
        yield request


def multiplexer(
    items: Items,
    write: Callable[[bytes], Awaitable[None]],
    limits: StreamLimits | None = None,
    drain: DrainSignal | None = None,
    unread: Unread | None = None,
) -> Multiplexer[str]:
    """One whose answers *write* sends."""
    outbox = (unread or Unread()).outbox("caller", write)
    return Multiplexer(items, limits or StreamLimits(), drain or DrainSignal(), outbox)


async def run(items: Items, requests: AsyncIterator[str], **limits: int) -> list[str]:
    """Everything that a client who reads at once gets."""
    written: list[str] = []

    async def write(frame: bytes) -> None:
        written.append(frame.decode())

    await asyncio.wait_for(multiplexer(items, write, StreamLimits(**limits)).run(requests), SECONDS)
    return written


async def test_frames_of_an_item_keep_their_order() -> None:
    written = await run(Items(), given("a", "b", "c"))
    assert sorted(written) == [f"{name}:{i}" for name in "abc" for i in range(3)]
    for name in "abc":
        assert [frame for frame in written if frame.startswith(name)] == [f"{name}:{i}" for i in range(3)]


async def test_reading_pauses_while_enough_items_run() -> None:
    items = Items()
    items.gates = {name: asyncio.Event() for name in "abcdef"}
    read: list[str] = []

    async def requests() -> AsyncGenerator[str, None]:
        for name in items.gates:
            read.append(name)
            yield name

    running = asyncio.create_task(run(items, requests(), max_items_in_flight=2))
    for _ in range(100):
        await asyncio.sleep(0)
    assert read == ["a", "b", "c"]  # the next one is in hand
    assert items.running == {"a", "b"}
    assert items.waiting == {"c"}
    items.gates["b"].set()
    for _ in range(100):
        await asyncio.sleep(0)
    assert read == ["a", "b", "c", "d"]
    assert items.running == {"a", "c"}
    for gate in items.gates.values():
        gate.set()
    assert len(await running) == 18
    assert items.most_running == 2


class Noted(str):
    """A message of which a weak reference tells whether it is still there."""

    __slots__ = ("__weakref__",)


async def test_nothing_is_kept_of_an_item_while_the_next_is_awaited() -> None:
    items, kept, gate = Items(), list[weakref.ref[Noted]](), asyncio.Event()

    async def requests() -> AsyncGenerator[str, None]:
        for name in ("a@9", "-a", "bad@9"):
            message = Noted(name)
            kept.append(weakref.ref(message))
            yield message
            del message
        await gate.wait()

    running = asyncio.create_task(run(items, requests()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert sorted(items.closed) == ["a", "bad"]
    assert not any(reference() for reference in kept)
    gate.set()
    await running


async def test_an_item_that_may_not_wait_fails_alone() -> None:
    written = await run(Items(frames=1), given("a", "large", "b"))
    assert sorted(written) == ["1:large!QUEUE_FULL", "a:0", "b:0"]


async def test_a_failed_item_ends_with_its_error_and_the_others_go_on() -> None:
    written = await run(Items(frames=1), given("a", "bad", "b"))
    assert sorted(written) == ["1:bad!INVALID_FIELD", "a:0", "b:0"]


async def test_a_panic_of_a_library_fails_its_item_alone() -> None:
    assert sorted(await run(Items(frames=1), given("a", "panic", "b"))) == ["1:panic!INTERNAL", "a:0", "b:0"]


async def test_an_id_is_refused_once_an_earlier_item_had_it() -> None:
    items = Items(frames=1)
    items.gates["a"] = asyncio.Event()
    answered = asyncio.Event()

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        yield "a"
        items.gates["a"].set()
        await answered.wait()
        yield "a"
        yield "bad"
        yield "bad"

    written: list[str] = []

    async def write(frame: bytes) -> None:
        written.append(frame.decode())
        if frame == b"a:0":
            answered.set()

    await asyncio.wait_for(multiplexer(items, write).run(requests()), SECONDS)
    refused = ["1:a!INVALID_FIELD", "2:a!INVALID_FIELD", "3:bad!INVALID_FIELD", "4:bad!INVALID_FIELD"]
    assert sorted(written) == [*refused, "a:0"]


async def test_items_without_an_id_are_refused_each_by_its_number() -> None:
    written = await run(Items(frames=1), given("", "a", ""))
    assert sorted(written) == ["0:!INVALID_FIELD", "2:!INVALID_FIELD", "a:0"]


async def test_an_item_too_many_fails_alone() -> None:
    written = await run(Items(frames=1), given("a", "b", "c", "a"), max_items=2)
    assert sorted(written) == ["2:c!QUOTA_EXCEEDED", "3:a!QUOTA_EXCEEDED", "a:0", "b:0"]


async def test_a_cancelled_item_ends_with_that_and_the_others_go_on() -> None:
    items = Items(frames=1)
    items.gates = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        yield "b"
        yield "-never"
        yield "-a"
        yield "-a"
        items.gates["b"].set()

    assert sorted(await run(items, requests())) == ["0:a!CANCELLED", "b:0"]
    assert not items.running


async def test_an_item_that_is_cancelled_right_after_it_came_is_answered() -> None:
    items = Items(frames=1)
    items.gates["a"] = asyncio.Event()
    assert await run(items, given("a", "-a", "b"), max_items_in_flight=1) == ["0:a!CANCELLED", "b:0"]


async def test_an_item_that_was_answered_is_not_cancelled() -> None:
    answered = asyncio.Event()

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        await answered.wait()
        yield "-a"
        yield "b"

    async def write(frame: bytes) -> None:
        written.append(frame.decode())
        answered.set()

    written: list[str] = []
    await asyncio.wait_for(multiplexer(Items(frames=1), write).run(requests()), SECONDS)
    assert written == ["a:0", "b:0"]


async def test_an_item_ends_when_its_time_is_over() -> None:
    items = Items(frames=1)
    items.gates["slow"] = asyncio.Event()
    written = await run(items, given("slow@0.01", "fast@10"))
    assert sorted(written) == ["0:slow!DEADLINE_EXCEEDED", "fast:0"]
    assert not items.running


async def test_the_time_of_an_item_begins_when_it_comes() -> None:
    items = Items(frames=1)
    items.gates["a"] = asyncio.Event()
    running = asyncio.create_task(run(items, given("a@0.02", "b@0.01", "c"), max_items_in_flight=1))
    assert await running == ["1:b!DEADLINE_EXCEEDED", "0:a!DEADLINE_EXCEEDED", "c:0"]
    assert items.closed == ["a", "c"]


async def test_a_time_out_of_an_items_own_is_a_fault_of_it() -> None:
    class Slow(Items):
        async def run(self, request: str) -> AsyncGenerator[bytes, None]:
            yield request.encode()
            raise TimeoutError

    assert await run(Slow(), given("a@10")) == ["a", "0:a!INTERNAL"]


async def test_what_is_being_written_is_written_before_an_error_of_the_requests_ends_the_stream() -> None:
    going_on, written = asyncio.Event(), []

    async def write(frame: bytes) -> None:
        await going_on.wait()
        written.append(frame)

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        asyncio.get_running_loop().call_later(0.01, going_on.set)
        raise InvalidRequest.of("", "no message", reason=Reason.MALFORMED_MESSAGE)

    with pytest.raises(InvalidRequest, match="no message"):
        await multiplexer(Items(frames=1), write).run(requests())
    assert written == [b"a:0"]


async def test_a_writer_that_waits_stops_production_at_the_bound() -> None:
    items = Items(frames=1000, frame_bytes=1000)
    writing = asyncio.Event()
    first = asyncio.Event()

    async def write(_frame: bytes) -> None:
        first.set()
        await writing.wait()

    limits, unread = StreamLimits(max_items_in_flight=4), Unread(UnreadLimits(max_caller_bytes=10_000))
    running = asyncio.create_task(multiplexer(items, write, limits, unread=unread).run(given(*"abcd")))
    await first.wait()
    before = -1
    while items.produced > before:
        before = items.produced
        for _ in range(100):
            await asyncio.sleep(0)
    assert items.produced <= 10 + 4 + 1  # in the outbox, in the hands of each item, in the writer's
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(items.closed) == list("abcd")


async def test_cancelling_closes_every_item_before_it_returns() -> None:
    items = Items()
    items.gates = {name: asyncio.Event() for name in "abc"}
    more = asyncio.Event()

    async def requests() -> AsyncGenerator[str, None]:
        for name in "abc":
            yield name
        more.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(run(items, requests()))
    await more.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not items.running


async def test_an_error_of_the_requests_ends_the_stream() -> None:
    items = Items()
    items.gates["a"] = asyncio.Event()

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        raise InvalidRequest.of("", "no message", reason=Reason.MALFORMED_MESSAGE)

    with pytest.raises(InvalidRequest, match="no message"):
        await run(items, requests())
    assert items.closed in ([], ["a"])  # the item may not even have begun
    assert not items.running


async def test_an_error_of_the_writer_ends_the_stream() -> None:
    items = Items()

    async def write(_frame: bytes) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await multiplexer(items, write).run(given("a"))
    assert not items.running


async def test_draining_finishes_what_is_in_flight_and_says_so() -> None:
    items, drain = Items(frames=1), DrainSignal()
    items.gates["a"] = asyncio.Event()
    written: list[bytes] = []

    async def write(frame: bytes) -> None:
        written.append(frame)

    async def requests() -> AsyncGenerator[str, None]:
        yield "a"
        drain.give()
        asyncio.get_running_loop().call_soon(items.gates["a"].set)
        await asyncio.Event().wait()

    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(multiplexer(items, write, drain=drain).run(requests()), SECONDS)
    assert caught.value.reason is Reason.DRAINING
    assert written == [b"a:0"]


async def test_a_stream_that_opens_while_draining_reads_nothing() -> None:
    items, drain = Items(), DrainSignal()
    drain.give()

    async def write(_frame: bytes) -> None:
        pytest.fail("there is nothing to write")

    with pytest.raises(Unavailable):
        await multiplexer(items, write, drain=drain).run(given("a"))
