"""Many requests on one stream: requests in flight, the item of each message, when to send the next.

Shared by DeriveStream and ResolveStream: a `Collector` assembles an answer from one request's messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio

from dst_grpc.client._channel import Connection
from dst_grpc.client._errors import our_errors
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
        """Yield each item's id and its answer or error, in order of arrival.

        An item without an id gets its position as id: "0", "1", ...

        Raises:
            DstError: If the stream itself fails.
        """
        if max_in_flight < 1:
            raise InvalidRequest.of("max_in_flight", f"must be at least 1, not {max_in_flight}")
        in_flight: dict[int, tuple[str, Collector[ResponseT, AnswerT]]] = {}
        slots = asyncio.Semaphore(max_in_flight)

        async def answered() -> None:
            for _ in range(max_in_flight):
                await slots.acquire()

        call = self.method(timeout=timeout, metadata=connection.call_metadata)
        sending = self._send_all(call, self._outgoing(items, in_flight, slots), cancels, answered)
        async with aclosing(_converse(call, sending, connection, timeout)) as responses:
            async for response in responses:
                item = self.item_of_response(response)
                if item not in in_flight:
                    continue  # its answer has failed before
                request_id, collector = in_flight[item]
                try:
                    answer: AnswerT | DstError | None = collector.add(response)
                except DstError as error:
                    answer = error
                if answer is not None:
                    del in_flight[item]
                    yield request_id, answer
                    slots.release()
        for request_id, _ in in_flight.values():
            yield (
                request_id,
                DataLoss("the answer is truncated: the stream ended before it did", reason=Reason.ANSWER_TRUNCATED),
            )

    async def _outgoing(
        self,
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        in_flight: dict[int, tuple[str, Collector[ResponseT, AnswerT]]],
        slots: asyncio.Semaphore,
    ) -> AsyncGenerator[RequestT]:
        position = 0
        async for item in each(items):
            await slots.acquire()
            request_id = self.id_of_item(item) or str(position)
            in_flight[position] = request_id, self.collector(request_id)
            yield self.to_request(item, request_id)
            position += 1

    async def _send_all(
        self,
        call: grpc.aio.StreamStreamCall[RequestT, ResponseT],
        outgoing: AsyncGenerator[RequestT],
        cancels: ItemCancels | None,
        answered: Callable[[], Awaitable[None]],
    ) -> None:
        """Send the items, and cancellations until all items are answered; then end the sending side."""
        lock = asyncio.Lock()
        if cancels is None:
            await _send(call, outgoing, lock)
        else:
            cancelling = asyncio.create_task(_send(call, self._cancellations(cancels), lock))
            try:
                await _send(call, outgoing, lock)
                await answered()
            finally:
                # A task that is cancelled while it writes cancels the call.
                cancels.end()
                await cancelling
        with suppress(*_OVER):
            await call.done_writing()

    async def _cancellations(self, cancels: ItemCancels) -> AsyncGenerator[RequestT]:
        async with aclosing(cancels.ids()) as ids:
            async for request_id in ids:
                if self.to_cancel is not None:
                    yield self.to_cancel(request_id)


_OVER = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""Errors of writing when the call is over; reading raises the reason."""


async def _converse(
    call: grpc.aio.StreamStreamCall[RequestT, ResponseT],
    sending: Coroutine[Any, Any, None],
    connection: Connection,
    timeout: float | None,
) -> AsyncGenerator[ResponseT]:
    """Write and read at the same time; errors of writing are raised to the reader."""
    writing = asyncio.create_task(sending)
    writing.add_done_callback(lambda task: call.cancel() if task.cancelled() or task.exception() else None)
    try:
        with our_errors(connection.target, timeout):
            async for response in call:
                yield response
    except asyncio.CancelledError:
        if writing.done() and not writing.cancelled() and (error := writing.exception()) is not None:
            raise error from None
        raise
    finally:
        call.cancel()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _send(
    call: grpc.aio.StreamStreamCall[RequestT, ResponseT], messages: AsyncGenerator[RequestT], lock: asyncio.Lock
) -> None:
    """Send *messages* until the call is over; one writer at a time."""
    with suppress(*_OVER):
        async with aclosing(messages) as requests:
            async for request in requests:
                async with lock:
                    await call.write(request)


async def each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[ItemT]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
