"""Many requests on one stream: `DeriveStream` and `ResolveStream` run items concurrently within limits.

Independent of protobuf and sockets: messages come from an iterator, answers go as bytes into the call's outbox, which
stops the work of a client that stops reading. Items are numbered by arrival. A limited number runs at once, and reading
pauses beyond. A failed item is answered with its error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dst_grpc.errors import Cancelled, DeadlineExceeded, DstError, Exhausted, Reason, Violations
from dst_grpc.failures import failure_of
from dst_grpc.observability.calls import CallInfo, ItemInfo
from dst_grpc.rpc.draining import DrainSignal, draining_error
from dst_grpc.rpc.errors import as_dst_error, outcome_of
from dst_grpc.rpc.outbox import Outbox
from dst_grpc.rpc.seen_ids import SeenIds

MessageT = TypeVar("MessageT")
MessageT_contra = TypeVar("MessageT_contra", contravariant=True)

_UNCOUNTED = nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Limits of one stream."""

    max_items_in_flight: int = 16
    """Items that run at once; reading pauses at the next."""
    max_items: int = 1_000_000
    """Items in all; a further one fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A request of a stream."""

    request_id: str
    """The client's own id, even if the rest is invalid."""
    answers: Callable[[ItemInfo], AsyncGenerator[bytes, None]]
    """The messages that answer it, in order. Closing the generator stops the work."""
    problems: Callable[[], Awaitable[Violations]]
    """The violations of the item as it was sent."""
    received_bytes: int = 0
    """Bytes of its message."""
    timeout_seconds: float | None = None
    """How long it may take from its arrival; None = as long as the call."""
    waiting: AbstractContextManager[object] = _UNCOUNTED
    """Counts it for its caller while it waits for others of the stream to end; raises Exhausted if too much waits."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request to cancel an item."""

    request_id: str
    """The item's id."""


class ItemHandler(Protocol[MessageT_contra]):
    """Reads and answers the items of a stream."""

    @property
    def method(self) -> str:
        """Full name of the RPC, for the log."""

    @property
    def id_path(self) -> str:
        """Path of an item's id in its message."""

    def read(self, message: MessageT_contra) -> Item | Cancellation:
        """The item or cancellation in *message*. A bad item raises when its answers are iterated.

        Raises:
            DstError: it cannot be told which item is bad; nothing more is read.
        """

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The message that ends a failed item."""


class Multiplexer(Generic[MessageT]):
    """Runs the items of one stream."""

    def __init__(
        self,
        handler: ItemHandler[MessageT],
        limits: StreamLimits,
        drain: DrainSignal,
        outbox: Outbox,
        call: CallInfo | None = None,
    ) -> None:
        """Make it for *call*, whose answers go into *outbox*, and whose observers are told of each item."""
        self._handler = handler
        self._limits = limits
        self._drain = drain
        self._outbox = outbox
        self._call = call or CallInfo(method=handler.method)
        self._slots = asyncio.Semaphore(limits.max_items_in_flight)
        self._seen = SeenIds()
        self._running: dict[str, asyncio.Timeout] = {}
        self._cancelled: set[str] = set()
        self._is_cut_short = False

    async def run(self, messages: AsyncIterator[MessageT]) -> None:
        """Answer every item of *messages*; returns once all have ended and all answers are taken.

        Cancelling stops every item before this returns.

        Raises:
            Unavailable: The server is stopping: items in flight are answered, later messages are not read.
            DstError: *messages* raised it, and nothing more can be sent on this stream; or what `Outbox.carry` raises.
        """
        try:
            await self._outbox.carry(self._produce(messages))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        if self._is_cut_short:
            raise draining_error()

    async def _produce(self, messages: AsyncIterator[MessageT]) -> None:
        """Read and run items until all have ended."""
        async with asyncio.TaskGroup() as items:
            reader = items.create_task(self._read(messages, items))
            with self._drain.calling(reader.cancel):
                # Draining cancels the reader; items that it started run to their end.
                await asyncio.wait([reader])
                self._is_cut_short = reader.cancelled()

    async def _read(self, messages: AsyncIterator[MessageT], items: asyncio.TaskGroup) -> None:
        """Start each item, within the limit, and cancel items on request."""
        index = 0
        async for message in messages:
            read = self._handler.read(message)
            del message
            if isinstance(read, Cancellation):
                self._cancel(read.request_id)
            else:
                await self._start(index, read, items)
                index += 1
            del read  # nothing of it is kept while the next may be long in coming

    async def _start(self, index: int, read: Item, items: asyncio.TaskGroup) -> None:
        """Start an item once it may run, or answer why it may not."""
        item = ItemInfo(
            index=index,
            request_id=read.request_id,
            timeline=self._call.timeline.item(),
            received_bytes=read.received_bytes,
        )
        deadline = None
        if read.timeout_seconds is not None:
            deadline = asyncio.get_running_loop().time() + read.timeout_seconds
        try:
            await self._check(index, read)
            with read.waiting:
                async with asyncio.timeout_at(deadline):
                    await self._slots.acquire()
        except TimeoutError:
            await self._fail(item, _too_late(read))
        except DstError as error:
            await self._fail(item, error)
        else:
            items.create_task(self._run_item(item, read, deadline))
            await asyncio.sleep(0)  # so that it has begun before a message can cancel it

    async def _check(self, index: int, item: Item) -> None:
        """Raise for an item beyond the limit, or one whose id is missing or repeated."""
        limit, path = self._limits.max_items, self._handler.id_path
        if index >= limit:
            raise Exhausted(
                f"the stream has had its {limit} items: open another",
                reason=Reason.QUOTA_EXCEEDED,
                metadata={"max_items_per_stream": str(limit)},
            )
        complaint = ""
        if not item.request_id:
            complaint = "is required on a stream"
        elif not self._seen.add(item.request_id):
            complaint = "must differ from that of every earlier item of the stream"
        if complaint:
            problems = await item.problems()
            problems.add(path, complaint)
            raise problems.error()

    def _cancel(self, request_id: str) -> None:
        scope = self._running.get(request_id)
        if scope is not None and not scope.expired():
            self._cancelled.add(request_id)
            scope.reschedule(asyncio.get_running_loop().time())

    async def _run_item(self, item: ItemInfo, read: Item, deadline: float | None) -> None:
        """Put the answers of one item, and its error if it fails."""
        request_id = item.request_id
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                self._running[request_id] = scope
                try:
                    async with aclosing(read.answers(item)) as answers:
                        async for answer in answers:
                            item.sent_bytes += len(answer)
                            await self._outbox.put(answer)
                            item.first_put_at = item.first_put_at or time.monotonic()
                finally:
                    del self._running[request_id]
        except TimeoutError as error:
            if request_id in self._cancelled:
                await self._fail(item, Cancelled("the client cancelled the item"))
            else:
                await self._fail(item, _too_late(read) if scope.expired() else error)
        except asyncio.CancelledError as stop:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._end(item, None, code="CANCELLED")
                raise
            # The item was not cancelled: something inside it was. The client must not wait for it forever.
            await self._fail(item, RuntimeError(f"cancelled from within: {stop!r}"))
        except BaseException as error:  # noqa: BLE001  an item's failure, of whatever kind, is the item's
            await self._fail(item, failure_of(error))
        else:
            self._end(item, None)
        finally:
            self._cancelled.discard(request_id)
            self._slots.release()

    async def _fail(self, item: ItemInfo, error: BaseException) -> None:
        known = as_dst_error(error, method=self._handler.method, request_id=item.request_id)
        message = self._handler.failed(item.index, item.request_id, known)
        item.sent_bytes += len(message)
        self._end(item, known)
        await self._outbox.put(message)

    def _end(self, item: ItemInfo, error: DstError | None, *, code: str | None = None) -> None:
        """Tell observers how *item* ended."""
        self._call.on_item(item, outcome_of(error, time.monotonic() - item.started_at, code=code))


def _too_late(item: Item) -> DeadlineExceeded:
    return DeadlineExceeded(f"the item took longer than its timeout of {item.timeout_seconds} s")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error behind nested groups: only reading can fail, and the rest was cancelled because of it."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
