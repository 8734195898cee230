"""Reads requests: small ones at once, large ones on threads, so that the event loop stays free.

Small ones that are repeated are read once: programs ask the same again and again. A caller's own only, as the time that
reading takes would tell one caller what others ask.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

import grpc.aio
from google.protobuf.message import Message

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import Caller
from dst_grpc.errors import DstError, Exhausted, InvalidRequest, NotAllowed, Reason, Unauthenticated, Violations
from dst_grpc.wire.codec import message_class_of, read_request
from dst_grpc.wire.parsing import is_light, parse

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_HEAR_OUT_SECONDS = 1.0
_HEAR_OUT_BYTES = 64 << 20
_LOOKS, _LOOK_SECONDS = 5, 0.05
"""A client that sends nothing between so many looks is not about to. One look would not do: where this process has to
wait for a processor, what came meanwhile is seen at the next."""
_THREADS = 2
_SMALL_BYTES = 4096
"""Reading a message of so many bytes takes less than 10 ms, whatever it holds, and mostly less than a change of
threads."""
_RECENT_BYTES = 256 << 10
"""Bytes of recent requests; the values in them take up to 80 times as much."""


Waiting = Callable[[Caller, int], AbstractContextManager[object]]
"""Counts a message of a caller, of so many bytes, as waiting; raises Exhausted if too many wait."""


def _uncounted(_caller: Caller, _n_bytes: int) -> AbstractContextManager[object]:
    return nullcontext()


class Reading:
    """Parses messages, and reads the values that they hold."""

    def __init__(self, waiting: Waiting = _uncounted) -> None:
        """Start without threads; messages are *waiting* until they are read on one."""
        self._waiting = waiting
        self.threads = Threads("dst-wire", at_once=_THREADS)
        """Where large messages are read, and may be written too."""
        self._recent: OrderedDict[tuple[str, type, bytes], Any] = OrderedDict()
        """Requests that were read without fault, by caller, class and bytes."""
        self._recent_bytes = 0

    async def parsed(self, message_type: type[M], data: bytes, caller: Caller) -> M:
        """The message in *data*, which *caller* sent.

        Raises:
            InvalidRequest: There is none, or it is larger than the limits allow.
            Exhausted: Too many wait to be read.
        """
        if is_light(message_type, data):
            return parse(message_type, data)
        with self._waiting(caller, len(data)):
            return await self.threads.run(parse, message_type, data, caller=caller.name)

    async def read(self, cls: type[T], message: Message, caller: Caller) -> tuple[T, Violations | None]:
        """The request in *message*, with stand-ins for bad fields, and the violations; None if there are none.

        Raises:
            InvalidRequest: Nothing of it is usable.
            Exhausted: Too many wait to be read.
        """
        value, found = await self._read(cls, message, caller)
        if value is None:
            raise found.error()
        return value, found if found.count else None

    async def request(self, cls: type[T], data: bytes, caller: Caller) -> tuple[T, Violations | None]:
        """The request in *data*, which *caller* sent, and its violations: as `parsed` and `read` together."""
        key = caller.name, cls, data
        recent = self._recent.get(key)
        if recent is not None:
            self._recent.move_to_end(key)
            return cast("T", recent), None
        value, known = await self.read(cls, await self.parsed(message_class_of(cls), data, caller), caller)
        if known is None and len(data) <= _SMALL_BYTES:
            self._keep(key, value)
        return value, known

    def _keep(self, key: tuple[str, type, bytes], value: object) -> None:
        """Keep the *value* of a request, and the most recent of those before it."""
        self._recent_bytes += len(key[2]) if key not in self._recent else 0
        self._recent[key] = value
        while self._recent_bytes > _RECENT_BYTES:
            (_, _, data), _ = self._recent.popitem(last=False)
            self._recent_bytes -= len(data)

    async def violations(self, cls: type, message: Message, caller: Caller) -> Violations:
        """What is wrong with the request in *message*."""
        return (await self._read(cls, message, caller))[1]

    async def _read(self, cls: type[T], message: Message, caller: Caller) -> tuple[T | None, Violations]:
        size = message.ByteSize()
        if size <= _SMALL_BYTES:
            return read_request(cls, message)
        with self._waiting(caller, size):
            return await self.threads.run(read_request, cls, message, caller=caller.name)


class Incoming:
    """The messages that a client sends. Whoever waits for one may be cancelled: the next gets it."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Read from *context*."""
        self._context = context
        self._reading: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Self:
        """The messages."""
        return self

    async def __anext__(self) -> bytes:
        """The next message."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
            self._reading.add_done_callback(_retrieve)
        data: bytes = await asyncio.shield(self._reading)
        if data is grpc.aio.EOF:  # type: ignore[comparison-overlap]  # which is no message
            raise StopAsyncIteration
        self._reading = None
        return data

    async def hear_out(self) -> None:
        """Drop what the client still sends on a call that is about to fail: until it pauses, or for a second.

        A client that is sending while its call ends may not be told why: those of grpc.aio then report INTERNAL.
        """
        loop = asyncio.get_running_loop()
        ends, n_bytes, n_silent = loop.time() + _HEAR_OUT_SECONDS, 0, 0
        with suppress(grpc.aio.BaseError, StopAsyncIteration):
            while n_bytes < _HEAR_OUT_BYTES and n_silent < _LOOKS and loop.time() < ends:
                try:
                    n_bytes += len(await asyncio.wait_for(anext(self), _LOOK_SECONDS))
                    n_silent = 0
                except TimeoutError:
                    n_silent += 1

    def close(self) -> None:
        """Wait for no further message."""
        if self._reading is not None:
            self._reading.cancel()


def _retrieve(reading: asyncio.Task[Any]) -> None:
    """Take note of how *reading* failed, if it did: with its call, which nobody need be told twice."""
    if not reading.cancelled():
        reading.exception()


class Refused(NamedTuple):
    """A message of a stream that is larger than the limits allow, or that its caller may no longer send."""

    data: bytes
    """Its bytes."""
    error: DstError
    """Why it is refused."""


class RequestStream(Generic[M]):
    """The requests of a stream, each parsed when it is wanted."""

    def __init__(self, messages: AsyncIterator[bytes], parsed: Callable[[bytes], Awaitable[M]]) -> None:
        """Parse *messages* by *parsed*."""
        self._messages = messages
        self._parsed = parsed

    async def __aiter__(self) -> AsyncGenerator[M, None]:
        """The messages; raises InvalidRequest at the first that is refused."""
        async for data in self._messages:
            yield await self._parsed(data)

    async def items(self) -> AsyncGenerator[M | Refused, None]:
        """The messages; raises InvalidRequest at the first that is none."""
        async for data in self._messages:
            try:
                message = await self._parsed(data)
            except (InvalidRequest, Unauthenticated, NotAllowed, Exhausted) as error:
                if error.reason is Reason.MALFORMED_MESSAGE:
                    raise
                yield Refused(data, error)
            else:
                yield message
