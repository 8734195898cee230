"""Reads requests: small ones at once, large ones on threads, so that the event loop stays free.

Small ones that are repeated are read once: programs ask the same again and again. A caller's own only, as the time that
reading takes would tell one caller what others ask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.message import Message

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import Caller
from dst_grpc.errors import DstError, Exhausted, InvalidRequest, NotAllowed, Reason, Unauthenticated, Violations
from dst_grpc.wire.codec import message_class_of, read_request
from dst_grpc.wire.parsing import is_light, parse

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_THREADS = 2
_SMALL_BYTES = 4096
"""Reading a message of so many bytes takes less than 10 ms, whatever it holds, and mostly less than a change of
threads."""
_HELD_BYTES = 64 << 10
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

    async def read(self, cls: type[T], message: Message, n_bytes: int, caller: Caller) -> tuple[T, Violations | None]:
        """The request in *message*, parsed from *n_bytes*, with stand-ins for bad fields, and the violations; None if
        there are none.

        Raises:
            InvalidRequest: Nothing of it is usable.
            Exhausted: Too many wait to be read.
        """
        value, found = await self._read(cls, message, n_bytes, caller)
        if value is None:
            raise found.error()
        return value, found if found.count else None

    async def request(self, cls: type[T], data: bytes, caller: Caller) -> tuple[T, Violations | None]:
        """The request in *data*, which *caller* sent, and its violations: as `parsed` and `read` together."""
        n_bytes = len(data)
        key = (caller.name, cls, data) if n_bytes <= _SMALL_BYTES else None  # hashing a large one takes milliseconds
        recent = None if key is None else self._recent.get(key)
        if key is not None and recent is not None:
            self._recent.move_to_end(key)
            return cast("T", recent), None
        message = await self.parsed(message_class_of(cls), data, caller)
        value, known = await self.read(cls, message, n_bytes, caller)
        if key is not None and known is None:
            self._keep(key, value)
        return value, known

    def _keep(self, key: tuple[str, type, bytes], value: object) -> None:
        """Keep the *value* of a request, and the most recent of those before it."""
        self._recent_bytes += len(key[2]) if key not in self._recent else 0
        self._recent[key] = value
        while self._recent_bytes > _RECENT_BYTES:
            (_, _, data), _ = self._recent.popitem(last=False)
            self._recent_bytes -= len(data)

    async def violations(self, cls: type, message: Message, n_bytes: int, caller: Caller) -> Violations:
        """What is wrong with the request in *message*, parsed from *n_bytes*."""
        return (await self._read(cls, message, n_bytes, caller))[1]

    def held(self, n_bytes: int, caller: Caller) -> AbstractContextManager[object]:
        """Counts a message of *caller*, of *n_bytes*, that waits on a stream, unless it is so small that a stream may
        always have one; raises Exhausted on entry if too much waits."""
        return self._waiting(caller, n_bytes) if n_bytes > _HELD_BYTES else nullcontext()

    async def _read(self, cls: type[T], message: Message, n_bytes: int, caller: Caller) -> tuple[T | None, Violations]:
        if n_bytes <= _SMALL_BYTES:
            return read_request(cls, message)
        with self._waiting(caller, n_bytes):
            return await self.threads.run(read_request, cls, message, caller=caller.name)


class Received(NamedTuple, Generic[M]):
    """A message of a stream."""

    message: M
    """What it is."""
    n_bytes: int
    """Its size on the wire, which protobuf could tell only by writing it again."""


class Refused(NamedTuple):
    """A message of a stream that is larger than the limits allow, or that its caller may no longer send."""

    data: bytes
    """Its bytes."""
    error: DstError
    """Why it is refused."""


class RequestStream(Generic[M]):
    """The requests of a stream, each parsed when it is wanted. It keeps none: the next may be long in coming."""

    def __init__(self, messages: AsyncIterator[bytes], parsed: Callable[[bytes], Awaitable[M]]) -> None:
        """Parse *messages* by *parsed*."""
        self._messages = messages
        self._parsed = parsed

    async def __aiter__(self) -> AsyncGenerator[M, None]:
        """The messages; raises InvalidRequest at the first that is refused."""
        async for data in self._messages:
            message = await self._parsed(data)
            del data
            yield message
            del message

    async def items(self) -> AsyncGenerator[Received[M] | Refused, None]:
        """The messages; raises InvalidRequest at the first that is none."""
        async for data in self._messages:
            try:
                message = await self._parsed(data)
            except (InvalidRequest, Unauthenticated, NotAllowed, Exhausted) as error:
                if error.reason is Reason.MALFORMED_MESSAGE:
                    raise
                # Whoever tells the error clears the frames that it passed through, and Python 3.11 and 3.12 close a
                # generator whose frame is cleared: this one is among them, and has messages to give yet.
                received: Received[M] | Refused = Refused(data, error.with_traceback(None))
            else:
                received = Received(message, len(data))
                del message
            del data
            yield received
            del received
