"""Many requests on one stream: how `DeriveStream` and `ResolveStream` run items side by side within bounds.

Knows neither protobuf nor sockets: requests come from an iterator, frames leave as bytes through a callable. At most
so many items run at once, and reading pauses beyond; finished frames wait in an outbox bounded by bytes, so that a
client who stops reading stops the work. An item's failure is a frame of that item.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dst_grpc.errors import DstError, InvalidRequest
from dst_grpc.rpc.draining import DrainSignal, draining_error
from dst_grpc.rpc.errors import as_dst_error

RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """How much one stream may hold."""

    max_items_in_flight: int = 16
    """Items that run at once; reading pauses beyond."""
    outbox_bytes: int = 4 * _MIB
    """Bytes of frames that wait for the client; items pause beyond. One frame may always wait."""


class ItemHandler(Protocol[RequestT_contra]):
    """What the items of a stream are."""

    @property
    def method(self) -> str:
        """Full name of the RPC, for the log."""

    def request_id(self, request: RequestT_contra) -> str:
        """The id that the client gave the item, whatever else is wrong with it."""

    def run(self, request: RequestT_contra) -> AsyncGenerator[bytes, None]:
        """The frames of one item, in order. Closing the generator stops the work."""

    def failed(self, request_id: str, error: DstError) -> bytes:
        """The frame that ends a failed item."""


class Outbox:
    """A queue of frames, bounded by bytes."""

    def __init__(self, limit_bytes: int) -> None:
        """Start empty."""
        self._limit_bytes = limit_bytes
        self._frames: deque[bytes] = deque()
        self._held_bytes = 0
        self._closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    async def put(self, frame: bytes) -> None:
        """Add a frame once there is room for it; writers get room in the order in which they came."""
        while self._frames and self._held_bytes + len(frame) > self._limit_bytes:
            room = asyncio.get_running_loop().create_future()
            self._writers.append(room)
            await room
        self._frames.append(frame)
        self._held_bytes += len(frame)
        _wake(self._reader)

    def close(self) -> None:
        """Let the reader finish once the frames put so far are taken."""
        self._closed = True
        _wake(self._reader)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Take the frames, for a single reader."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self._held_bytes -= len(frame)
                while self._writers:
                    _wake(self._writers.popleft())
                yield frame
            if self._closed:
                return
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


class Multiplexer(Generic[RequestT]):
    """Runs the items of one stream."""

    def __init__(self, handler: ItemHandler[RequestT], limits: StreamLimits, drain: DrainSignal) -> None:
        """Make it for one call."""
        self._handler = handler
        self._limits = limits
        self._drain = drain
        self._outbox = Outbox(limits.outbox_bytes)
        self._slots = asyncio.Semaphore(limits.max_items_in_flight)
        self._in_flight: set[str] = set()
        self._is_cut_short = False

    async def run(self, requests: AsyncIterator[RequestT], write: Callable[[bytes], Awaitable[None]]) -> None:
        """Answer every request of *requests* through *write*; returns once they ended and all answers are written.

        Cancelling stops every item before this returns.

        Raises:
            Unavailable: The server is stopping: what was in flight is answered, later requests are not read.
            DstError: *requests* raised it; nothing more can be said on this stream.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._produce(requests))
                async for frame in self._outbox:
                    await write(frame)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        if self._is_cut_short:
            raise draining_error()

    async def _produce(self, requests: AsyncIterator[RequestT]) -> None:
        """Read and run until there is nothing more to do."""
        try:
            async with asyncio.TaskGroup() as items:
                reader = items.create_task(self._read(requests, items))
                with self._drain.calling(reader.cancel):
                    # A cancelled reader is the way of draining; what it started goes on to its end.
                    await asyncio.wait([reader])
                    self._is_cut_short = reader.cancelled()
        finally:
            self._outbox.close()

    async def _read(self, requests: AsyncIterator[RequestT], items: asyncio.TaskGroup) -> None:
        """Start an item for each request, never more at once than may be."""
        iterator = aiter(requests)
        while True:
            await self._slots.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
            request_id = self._handler.request_id(request)
            if request_id in self._in_flight:
                duplicate = InvalidRequest.of("request_id", f"{request_id!r} is in flight on this stream already")
                await self._outbox.put(self._handler.failed(request_id, duplicate))
                self._slots.release()
            else:
                self._in_flight.add(request_id)
                items.create_task(self._run_item(request_id, request))

    async def _run_item(self, request_id: str, request: RequestT) -> None:
        """Put the frames of one item, and its failure if it fails."""
        try:
            async with aclosing(self._handler.run(request)) as frames:
                async for frame in frames:
                    await self._outbox.put(frame)
        except asyncio.CancelledError as stop:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled the item: something inside it was. The client must not wait for it forever.
            await self._fail(request_id, RuntimeError(f"cancelled from within: {stop!r}"))
        except Exception as error:  # noqa: BLE001  an item's failure, of whatever kind, is the item's
            await self._fail(request_id, error)
        finally:
            self._in_flight.discard(request_id)
            self._slots.release()

    async def _fail(self, request_id: str, error: BaseException) -> None:
        known = as_dst_error(error, method=self._handler.method, request_id=request_id)
        await self._outbox.put(self._handler.failed(request_id, known))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error behind nested groups: only reading can fail, and the rest was cancelled because of it."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
