"""Many requests on a stream for each model: requests in flight, the item of each message, when to send the next.

Shared by DeriveStream and ResolveStream: a `Collector` assembles an answer from one request's messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio

from dst_grpc.client._channel import Connection
from dst_grpc.client._errors import our_errors
from dst_grpc.client._forks import check_same_process
from dst_grpc.client._given import seconds
from dst_grpc.client._routing import route_of
from dst_grpc.errors import DataLoss, DstError, InvalidRequest, Reason

ItemT = TypeVar("ItemT")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
MessageT_contra = TypeVar("MessageT_contra", contravariant=True)
AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)

DEFAULT_IN_FLIGHT = 16
"""Requests sent and not yet answered: enough to fill a batch, few enough to keep the answers' memory small."""


class Collector(Protocol[MessageT_contra, AnswerT_co]):
    """Assembles one request's answer from its messages."""

    def add(self, message: MessageT_contra, /) -> AnswerT_co | None:
        """Take the next message.

        Returns:
            The answer, if this message completes it.

        Raises:
            DstError: If the request failed, or the message contradicts earlier ones.
        """
        ...  # pragma: no cover


class ItemCancels:
    """Cancels items of a stream: create one, pass it to one call, and `cancel` ids from any thread."""

    def __init__(self) -> None:
        self._told: deque[str | None] = deque()
        self._bell: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self, request_id: str) -> None:
        """Cancel the item of that id: its answer is then the error Cancelled, unless it has ended before."""
        self._tell(request_id)

    def end(self) -> None:
        """Declare that nothing more will be cancelled."""
        self._tell(None)

    def _tell(self, what: str | None) -> None:
        self._told.append(what)
        if self._bell is not None:
            loop, event = self._bell
            loop.call_soon_threadsafe(event.set)

    async def ids(self) -> AsyncGenerator[str]:
        """The cancelled ids, as they are cancelled, until `end`."""
        event = asyncio.Event()
        self._bell = asyncio.get_running_loop(), event
        while True:
            while self._told:
                told = self._told.popleft()
                if told is None:
                    return
                yield told
            await event.wait()
            event.clear()


@dataclass(frozen=True, kw_only=True)
class Exchange(Generic[ItemT, RequestT, ResponseT, AnswerT]):
    """The RPC and conversions of one kind of stream."""

    method: grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT]
    """The RPC."""
    id_of_item: Callable[[ItemT], str]
    """The id that the caller gave; empty if none."""
    model_of_item: Callable[[ItemT], str | None]
    """The model that it names; None if none."""
    to_request: Callable[[ItemT, str], RequestT]
    """The message that sends an item under an id."""
    item_of_response: Callable[[ResponseT], int]
    """Number of the item that a message belongs to."""
    collector: Callable[[str], Collector[ResponseT, AnswerT]]
    """Makes the collector of the item of an id."""
    to_cancel: Callable[[str], RequestT] | None = None
    """The message that cancels the item of an id; None if there is none."""

    async def run(
        self,
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        connection: Connection,
        *,
        timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        cancels: ItemCancels | None = None,
    ) -> AsyncGenerator[tuple[str, AnswerT | DstError]]:
        """Yield each item's id and its answer or error, in order of arrival; each model has a stream of its own.

        An item without an id gets its position as id: "0", "1", ...

        Raises:
            DstError: If a stream itself fails.
            RuntimeError: In a child of the process that the connection was made in.
        """
        if max_in_flight < 1:
            raise InvalidRequest.of("max_in_flight", f"must be at least 1, not {max_in_flight}")
        check_same_process(connection.pid)
        conversation = _Conversation(self, connection, timeout, max_in_flight)
        async with aclosing(conversation.run(items, cancels)) as answers:
            async for request_id, answer in answers:
                yield request_id, answer
                conversation.slots.release()
        for request_id in conversation.unanswered():
            yield (
                request_id,
                DataLoss("the answer is truncated: the stream ended before it did", reason=Reason.ANSWER_TRUNCATED),
            )


_OVER = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""Errors of writing when the call is over; reading raises the reason."""


class _Stream(Generic[RequestT, ResponseT, AnswerT]):
    """One call, and its items that are not answered yet."""

    def __init__(self, call: grpc.aio.StreamStreamCall[RequestT, ResponseT]) -> None:
        self.call = call
        self.in_flight: dict[int, tuple[str, Collector[ResponseT, AnswerT]]] = {}
        """By number of the item: its id, and what collects its answer."""
        self.sent = 0
        """Items that were sent."""
        self.is_ended = False
        """Whether nothing more is sent."""
        self._lock = asyncio.Lock()

    async def send(self, message: RequestT) -> None:
        """Send a message, one after the other; nothing once the call is over."""
        with suppress(*_OVER):
            async with self._lock:
                await self.call.write(message)

    async def end(self) -> None:
        """End the sending side."""
        self.is_ended = True
        with suppress(*_OVER):
            await self.call.done_writing()


class _Conversation(Generic[ItemT, RequestT, ResponseT, AnswerT]):
    """Sends and reads at the same time, on a stream for each model, opened at its first item."""

    def __init__(
        self,
        exchange: Exchange[ItemT, RequestT, ResponseT, AnswerT],
        connection: Connection,
        timeout: float | None,
        max_in_flight: int,
    ) -> None:
        self._exchange, self._connection, self._timeout = exchange, connection, seconds(timeout)
        self._max_in_flight = max_in_flight
        self._started = asyncio.get_running_loop().time()
        self.slots = asyncio.Semaphore(max_in_flight)
        """One for each item that may be sent; whoever takes an answer gives it back."""
        self._streams: dict[str, _Stream[RequestT, ResponseT, AnswerT]] = {}
        """By the model's route."""
        self._tasks: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[tuple[str, AnswerT | DstError] | BaseException | None] = asyncio.Queue(1)
        """Answers; or what any task failed with; or None at the end."""
        self._is_closed = False

    async def run(
        self, items: Iterable[ItemT] | AsyncIterable[ItemT], cancels: ItemCancels | None
    ) -> AsyncGenerator[tuple[str, AnswerT | DstError]]:
        """Send *items* and yield ids with answers; raises what sending or reading raised."""
        self._start(partial(self._send_all, items, cancels))
        try:
            while (arrived := await self._arrived.get()) is not None:
                if isinstance(arrived, BaseException):
                    raise arrived
                yield arrived
        finally:
            self._is_closed = True
            for stream in self._streams.values():
                stream.call.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def unanswered(self) -> list[str]:
        """Ids of the items that were sent and not answered."""
        return [request_id for stream in self._streams.values() for request_id, _ in stream.in_flight.values()]

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(self._reporting(work)))

    async def _reporting(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do *work*; what it raises is raised to whoever reads, also if the channel was closed."""
        try:
            await work()
        except BaseException as error:
            if self._is_closed:
                raise
            await self._arrived.put(error)

    # Sending

    async def _send_all(self, items: Iterable[ItemT] | AsyncIterable[ItemT], cancels: ItemCancels | None) -> None:
        """Send the items, and cancellations until all items are answered; then end the sending sides."""
        if cancels is None:
            await self._send_items(items)
        else:
            cancelling = asyncio.create_task(self._send_cancels(cancels))
            try:
                await self._send_items(items)
                for _ in range(self._max_in_flight):
                    await self.slots.acquire()
            finally:
                # A task that is cancelled while it writes cancels the call.
                cancels.end()
                await cancelling
        for stream in self._streams.values():
            await stream.end()
        _, *reading = self._tasks
        await asyncio.gather(*reading)
        await self._arrived.put(None)

    async def _send_items(self, items: Iterable[ItemT] | AsyncIterable[ItemT]) -> None:
        exchange, position = self._exchange, 0
        async with aclosing(each(items)) as all_items:
            async for item in all_items:
                await self.slots.acquire()
                stream = self._stream_of(route_of(exchange.model_of_item(item)))
                request_id = exchange.id_of_item(item) or str(position)
                stream.in_flight[stream.sent] = request_id, exchange.collector(request_id)
                stream.sent += 1
                await stream.send(exchange.to_request(item, request_id))
                position += 1

    async def _send_cancels(self, cancels: ItemCancels) -> None:
        async with aclosing(cancels.ids()) as ids:
            async for request_id in ids:
                for stream in self._streams.values():
                    if self._exchange.to_cancel is not None and any(
                        request_id == other for other, _ in stream.in_flight.values()
                    ):
                        await stream.send(self._exchange.to_cancel(request_id))

    def _stream_of(self, route: str) -> _Stream[RequestT, ResponseT, AnswerT]:
        if route not in self._streams:
            timeout = self._timeout
            if timeout is not None:
                timeout = max(0.0, timeout - (asyncio.get_running_loop().time() - self._started))
            metadata = self._connection.call_metadata(route)
            stream = _Stream[RequestT, ResponseT, AnswerT](self._exchange.method(timeout=timeout, metadata=metadata))
            self._streams[route] = stream
            self._start(partial(self._read, stream))
        return self._streams[route]

    # Reading

    async def _read(self, stream: _Stream[RequestT, ResponseT, AnswerT]) -> None:
        with our_errors(self._connection.target, self._timeout):
            async for response in stream.call:
                await self._take(response, stream)
        if not stream.is_ended:
            # The server takes no more items, though there may be some.
            await self._arrived.put(None)

    async def _take(self, response: ResponseT, stream: _Stream[RequestT, ResponseT, AnswerT]) -> None:
        item = self._exchange.item_of_response(response)
        if item not in stream.in_flight:
            return  # its answer has failed before
        request_id, collector = stream.in_flight[item]
        try:
            answer: AnswerT | DstError | None = collector.add(response)
        except DstError as error:
            answer = error
        if answer is not None:
            del stream.in_flight[item]
            await self._arrived.put((request_id, answer))


async def each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[ItemT]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
