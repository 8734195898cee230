"""Many requests on one stream: who is in flight, whose answer a message belongs to, when to send the next.

Neither derives nor resolves: a `Collector` makes an answer of one request's messages, whatever they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

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
    """Makes one request's answer of its messages."""

    def add(self, message: MessageT_contra, /) -> AnswerT_co | None:
        """Take the next message.

        Returns:
            The answer, if this message completes it.

        Raises:
            DstError: If the request failed, or the message does not fit what came before.
        """
        ...  # pragma: no cover


@dataclass(frozen=True, kw_only=True)
class Exchange(Generic[ItemT, RequestT, ResponseT, AnswerT]):
    """What distinguishes one kind of stream from another."""

    method: grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT]
    """The RPC."""
    id_of_item: Callable[[ItemT], str]
    """The id that the caller gave; empty for none."""
    to_request: Callable[[ItemT, str], RequestT]
    """The message that sends an item under an id."""
    id_of_response: Callable[[ResponseT], str]
    """Whose answer a message belongs to."""
    collector: Callable[[], Collector[ResponseT, AnswerT]]
    """Makes what collects one item's answer."""

    async def run(
        self,
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        connection: Connection,
        *,
        timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> AsyncGenerator[tuple[str, AnswerT | DstError]]:
        """Yield each item's id and its answer or error, in the order in which they come.

        An item without an id is known by its position: "0", "1", ...

        Raises:
            InvalidRequest: If two items in flight have the same id.
            DstError: If the stream itself fails.
        """
        if max_in_flight < 1:
            raise InvalidRequest.of("max_in_flight", f"must be at least 1, not {max_in_flight}")
        in_flight: dict[str, Collector[ResponseT, AnswerT]] = {}
        slots = asyncio.Semaphore(max_in_flight)
        outgoing = self._outgoing(items, in_flight, slots)
        async with aclosing(self._converse(outgoing, connection, timeout)) as responses:
            async for response in responses:
                request_id = self.id_of_response(response)
                collector = in_flight.get(request_id)
                if collector is None:
                    continue  # its answer broke earlier, or is of a kind that this client does not know
                try:
                    answer: AnswerT | DstError | None = collector.add(response)
                except DstError as error:
                    answer = error
                if answer is not None:
                    del in_flight[request_id]
                    yield request_id, answer
                    slots.release()
        for request_id in in_flight:
            yield (
                request_id,
                DataLoss("the answer is truncated: the stream ended before it did", reason=Reason.ANSWER_TRUNCATED),
            )

    async def _outgoing(
        self,
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        in_flight: dict[str, Collector[ResponseT, AnswerT]],
        slots: asyncio.Semaphore,
    ) -> AsyncGenerator[RequestT]:
        position = 0
        async for item in each(items):
            await slots.acquire()
            request_id = self.id_of_item(item) or str(position)
            if request_id in in_flight:
                raise InvalidRequest.of("request_id", f"{request_id!r} is in flight already")
            in_flight[request_id] = self.collector()
            yield self.to_request(item, request_id)
            position += 1

    async def _converse(
        self, outgoing: AsyncGenerator[RequestT], connection: Connection, timeout: float | None
    ) -> AsyncGenerator[ResponseT]:
        """Write and read at the same time; what goes wrong with the writing is raised where one reads."""
        call = self.method(timeout=timeout, metadata=connection.call_metadata)
        writing = asyncio.create_task(_write(call, outgoing))
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


async def _write(call: grpc.aio.StreamStreamCall[RequestT, ResponseT], outgoing: AsyncGenerator[RequestT]) -> None:
    async with aclosing(outgoing) as requests:
        async for request in requests:
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the call is over, and whoever reads it learns why
    await call.done_writing()


async def each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[ItemT]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
