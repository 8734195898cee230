"""Unread answers: messages that were made for a client which has not taken them yet.

The answer of a call is made ahead of its reader, as far as the budget of its caller allows, so that the work behind it
ends, and gives back the device and its memory, however slowly it is read. Beyond the budget the work pauses. A client
that takes nothing for a time is given up: its messages and its work are gone before it is told, because gRPC tells it
only after what it has not read.

All that a server streams passes through here. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.readings import MemoryKind, MemoryReading
from dst_grpc.errors import Exhausted, Reason, require
from dst_grpc.failures import without_locals

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable

    Write = Callable[[bytes], Awaitable[None]]

_MIB = 1 << 20
_SMALL_BYTES = 1 << 16
"""What gRPC buffers of a call."""
_PATIENCE_OF_OTHERS = 0.1
"""Part of the time that a client may take nothing, after which it is given up if others wait for what it holds."""
_NEAR_BYTES = 2 * _MIB
"""What is made ahead of a client that reads promptly: gRPC copies it while it is in the processor's caches, and memory
that was just given back is used again."""
_PROMPT_SECONDS = 0.02
"""How soon a client that reads promptly takes a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadLimits:
    """Limits of the answers that wait for their readers."""

    max_caller_bytes: int = 64 * _MIB
    """Bytes that wait for one caller, over all its calls."""
    max_total_bytes: int = 512 * _MIB
    """Bytes that wait for all callers together."""
    slow_reader_seconds: float = 30.0
    """How long a message may wait to be taken before its call is ended; a tenth of it, if others wait for the memory of
    the call's run."""


class Unread:
    """The bytes that wait for each caller, and who waits for room.

    One message of each call may always wait, whatever the budget, so that no call depends on how others are read.
    """

    def __init__(self, limits: UnreadLimits | None = None) -> None:
        """Start with nothing."""
        self.limits = limits or UnreadLimits()
        self.byte_count = 0
        """Bytes that wait now."""
        self._held: Counter[str] = Counter()
        self._queues: dict[str, deque[_Put]] = {}
        """Those that wait for room, by caller, in order of arrival."""
        self._sent: dict[str, dict[Outbox, float]] = {}
        """Since when gRPC has a large message of a call that its client has not taken, by caller; the oldest first."""

    def memory(self) -> MemoryReading:
        """What they take. May be called on any thread."""
        return MemoryReading(
            kind=MemoryKind.UNREAD, used_bytes=self.byte_count, limit_bytes=self.limits.max_total_bytes
        )

    def outbox(self, caller: str, write: Write) -> Outbox:
        """The outbox of a call of *caller*, whose messages *write* sends: it returns when gRPC has taken one.

        Raises:
            Exhausted: (SLOW_READER) if twice what may wait does, and the caller has stalled. One message of each call
                may always wait, and gRPC keeps that of a call that was given up: many calls would take any memory.
        """
        limits, held = self.limits, self._held[caller]
        stalled = time.monotonic() - next(iter(self._sent.get(caller, {}).values()), math.inf)
        is_far_beyond = held > 2 * limits.max_caller_bytes or self.byte_count > 2 * limits.max_total_bytes
        if is_far_beyond and stalled > limits.slow_reader_seconds * _PATIENCE_OF_OTHERS:
            raise _slow_reader(stalled, held)
        return Outbox(self, caller, write)

    def note_sent(self, caller: str, outbox: Outbox) -> None:
        """Note that gRPC is given a large message of *outbox*."""
        self._sent.setdefault(caller, {})[outbox] = time.monotonic()

    def note_taken(self, caller: str, outbox: Outbox) -> None:
        """Note that the client has taken it, or is gone."""
        sent = self._sent.get(caller, {})
        sent.pop(outbox, None)
        if not sent:
            self._sent.pop(caller, None)

    def hold(self, caller: str, size: int) -> None:
        """Count *size* bytes that wait for *caller*."""
        self._held[caller] += size
        self.byte_count += size

    def give_back(self, caller: str, size: int) -> None:
        """Count them no more, and let in those for whom there is room now."""
        self._held[caller] -= size
        if not self._held[caller]:
            del self._held[caller]
        self.byte_count -= size
        for each in list(self._queues):
            self._let_in(each)

    def fits(self, caller: str, size: int) -> bool:
        """Whether *size* more bytes may wait for *caller*."""
        within = self._held[caller] + size <= self.limits.max_caller_bytes
        return within and self.byte_count + size <= self.limits.max_total_bytes

    def is_waited_for(self, caller: str) -> bool:
        """Whether some message of *caller* waits for room."""
        return caller in self._queues

    def enqueue(self, caller: str, put: _Put) -> None:
        """Let *put* in when it is its turn among those of *caller*."""
        self._queues.setdefault(caller, deque()).append(put)

    def _let_in(self, caller: str) -> None:
        queue = self._queues[caller]
        while queue and (queue[0].is_over or self.fits(caller, queue[0].size)):
            queue.popleft().let_in()
        if not queue:
            del self._queues[caller]


class _Put:
    """A message that waits for room."""

    def __init__(self, outbox: Outbox, size: int) -> None:
        self._outbox, self.size = outbox, size
        self.room: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        """Whether it was let in already, or given up."""
        return self.room.done()

    def let_in(self) -> None:
        """Count its bytes, and wake who puts it."""
        if not self.is_over:
            self._outbox.hold(self.size)
            self.room.set_result(None)


class Outbox:
    """The messages of one call, in order. Several tasks may put; `carry` alone delivers."""

    def __init__(self, unread: Unread, caller: str, write: Write) -> None:
        """Start empty."""
        self._unread, self._caller, self._write = unread, caller, write
        self._messages: deque[bytes] = deque()
        self._held_bytes = 0
        self._kept_bytes = 0
        """Of a large message that gRPC has, which keeps it until the client takes it, even if the call is given up."""
        self._waiting: deque[_Put] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._patience: asyncio.Timeout | None = None
        """The time that the client has to take the message that gRPC has; None while nothing is carried."""
        self._producing: asyncio.Task[Any] | None = None
        """The task that makes the messages, until it has made all."""
        self._delivering: asyncio.Task[None] | None = None
        """The task that delivers them; None while there is none, or if they are few bytes that were made at once."""
        self._is_beginning = self._is_stopped = False
        self._goes_on = asyncio.Event()
        """Whether more is made now: little waits, or the client does not read promptly."""
        self._goes_on.set()
        self._given_at = 0.0
        """When gRPC was given the latest message."""
        self.begun_at: float | None = None
        """When the first message was to be sent, by `time.monotonic`; None if none was."""
        self.first_taken_at: float | None = None
        """When that was taken; None if it was not."""
        self.taken_at: float | None = None
        """When the latest was."""

    @property
    def has_stalled(self) -> bool:
        """Whether the client has taken nothing for so long that others need not wait for it."""
        ends = None if self._patience is None else self._patience.when()
        seconds = self._unread.limits.slow_reader_seconds
        return ends is not None and ends - asyncio.get_running_loop().time() < seconds * (1 - _PATIENCE_OF_OTHERS)

    def give_up(self) -> None:
        """End the call, because others wait for what it holds."""
        patience = self._patience
        if patience is not None and patience.when() is not None and not patience.expired():
            patience.reschedule(asyncio.get_running_loop().time())

    async def put(self, message: bytes) -> None:
        """Add *message*, once there is room for it."""
        size = len(message)
        if not self._held_bytes or (
            not self._unread.is_waited_for(self._caller) and self._unread.fits(self._caller, size)
        ):
            self.hold(size)
        else:
            await self._wait(_Put(self, size))
        self._messages.append(message)
        if self._delivering is not None:
            self._wake()
        elif not self._is_beginning:
            self._is_beginning = True
            asyncio.get_running_loop().call_soon(self._begin)
        if not self._goes_on.is_set():
            await self._until_taken()
        elif self._held_bytes > size:
            await asyncio.sleep(0)  # what is made without a pause must leave time to others

    async def send(self, messages: AsyncGenerator[bytes, None]) -> None:
        """Deliver *messages*, made ahead of the reader; closes the generator. Raises as `carry`."""
        await self.carry(self._put_all(messages))

    async def send_made(self, messages: Iterable[bytes]) -> None:
        """Deliver *messages* that are made already. Raises as `carry`."""
        await self.carry(self._hold_all(messages))

    async def carry(self, production: Coroutine[object, object, None]) -> None:
        """Deliver what *production* puts, until it has ended and all is taken.

        If this is cancelled or fails, production has ended, and nothing of the call is held, before it raises; but for
        a large message of a client that is given up, which is counted as long as gRPC keeps it.

        Raises:
            Exhausted: (SLOW_READER) if the client takes nothing for too long.
            BaseException: what *production* raises, once what it had put is taken.
        """
        patience = self._patience = asyncio.timeout(None)
        try:
            async with patience:
                failure = await self._produced(production, patience)
                await self._delivered(patience)
        except TimeoutError:
            raise _slow_reader(time.monotonic() - self._given_at, self._held_bytes) from None
        finally:
            self._patience = None
            if self._delivering is not None and not (patience.expired() and self._kept_bytes):
                self._delivering.cancel()
                await asyncio.gather(self._delivering, return_exceptions=True)
            self._messages.clear()
            self._give_back(self._held_bytes - self._kept_bytes)
        if failure is not None:
            raise failure

    async def _produced(
        self, production: Coroutine[object, object, None], patience: asyncio.Timeout
    ) -> BaseException | None:
        """Run *production* to its end, in this task; what it raises, if it is not this task that is cancelled.

        Its messages are delivered meanwhile, by a task of their own, once it waits for something after a message.
        """
        task = self._producing = require(asyncio.current_task())
        failure: BaseException | None = None
        try:
            await production
        except BaseException as error:  # noqa: BLE001  raised again, once what was put before is taken
            failure = without_locals(error)  # which would wait for the reader too
        self._producing = None
        try:
            if self._is_stopped and not task.uncancel():
                return None  # delivering says why
            if patience.expired() or (isinstance(failure, asyncio.CancelledError) and task.cancelling()):
                raise asyncio.CancelledError
            self._wake()
            return failure
        finally:
            del failure  # its traceback refers to this frame, and both would be left to be collected

    async def _delivered(self, patience: asyncio.Timeout) -> None:
        """Wait until all is taken."""
        if self._delivering is None and self._held_bytes <= _SMALL_BYTES:  # of which gRPC takes a copy at once
            await self._deliver(patience)
        else:
            await asyncio.shield(self._delivering or self._start(patience))

    def _begin(self) -> None:
        """Deliver by a task of its own, as the production is not over."""
        self._is_beginning = False
        if self._producing is not None and self._patience is not None:
            self._start(self._patience)

    def _start(self, patience: asyncio.Timeout) -> asyncio.Task[None]:
        self._delivering = asyncio.create_task(self._deliver(patience))
        self._delivering.add_done_callback(self._stop)
        return self._delivering

    def _stop(self, delivering: asyncio.Task[None]) -> None:
        """Stop the production, if nothing more can be delivered."""
        if not delivering.cancelled() and delivering.exception() is not None and self._producing is not None:
            self._is_stopped = self._producing.cancel()

    def hold(self, size: int) -> None:
        """Count *size* bytes that wait in this outbox."""
        if self._held_bytes <= _NEAR_BYTES < self._held_bytes + size:
            self._goes_on.clear()
        self._held_bytes += size
        self._unread.hold(self._caller, size)

    def _give_back(self, size: int) -> None:
        self._held_bytes -= size
        if self._held_bytes <= _NEAR_BYTES:
            self._goes_on.set()
        while not self._held_bytes and self._waiting:  # one message of each call may always wait
            self._waiting.popleft().let_in()
        self._unread.give_back(self._caller, size)

    async def _hold_all(self, messages: Iterable[bytes]) -> None:
        for message in messages:
            self.hold(len(message))
            self._messages.append(message)

    async def _put_all(self, messages: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(messages):  # gRPC would leave that to the garbage collector
            async for message in messages:
                await self.put(message)

    async def _until_taken(self) -> None:
        """Wait until little waits, or the client has had time to take it."""
        timer = asyncio.get_running_loop().call_later(_PROMPT_SECONDS, self._goes_on.set)
        try:
            await self._goes_on.wait()
        finally:
            timer.cancel()

    async def _wait(self, put: _Put) -> None:
        self._waiting.append(put)
        self._unread.enqueue(self._caller, put)
        try:
            await put.room
        except asyncio.CancelledError:
            # It may have been let in and cancelled at the same time. If not, those behind it move up.
            self._give_back(0 if put.room.cancelled() else put.size)
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(put)

    async def _deliver(self, patience: asyncio.Timeout) -> None:
        """Give the messages to gRPC, one after the other, until all are made and taken, or the client is given up."""
        loop, seconds = asyncio.get_running_loop(), self._unread.limits.slow_reader_seconds
        while not patience.expired():
            if self._messages:
                patience.reschedule(loop.time() + seconds)
                await self._give(self._messages.popleft())
                continue
            patience.reschedule(None)
            if self._producing is None:
                return
            self._reader = loop.create_future()
            await self._reader

    async def _give(self, message: bytes) -> None:
        """Give *message* to gRPC, and wait until the client takes it."""
        self._given_at = time.monotonic()
        if self.begun_at is None:
            self.begun_at = self._given_at
        if len(message) > _SMALL_BYTES:
            self._kept_bytes = len(message)
            self._unread.note_sent(self._caller, self)
        try:
            await self._write(message)
        finally:
            if self._kept_bytes:
                self._kept_bytes = 0
                self._unread.note_taken(self._caller, self)
            self._give_back(len(message))
        self.taken_at = time.monotonic()
        if self.first_taken_at is None:
            self.first_taken_at = self.taken_at

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _slow_reader(seconds: float, unread_bytes: int) -> Exhausted:
    return Exhausted(
        f"the client took nothing for {seconds:.1f} s; {unread_bytes} bytes waited for it: read answers as they come,"
        " or ask for less at a time",
        reason=Reason.SLOW_READER,
        metadata={"seconds": f"{seconds:.3f}", "unread_bytes": str(unread_bytes)},
    )
