"""Reads requests: small ones at once, large ones on threads, so that the event loop stays free."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from dst_grpc.contexts.threads import Threads
from dst_grpc.errors import DstError, InvalidRequest, NotAllowed, Reason, Unauthenticated, Violations
from dst_grpc.wire.codec import read_request
from dst_grpc.wire.parsing import is_light, parse

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_THREADS = 2
_SMALL_BYTES = 4096
"""Reading a message of so many bytes takes less than 10 ms, whatever it holds, and mostly less than starting a
thread."""


class Reading:
    """Parses messages, and reads the values that they hold."""

    def __init__(self) -> None:
        """Start without threads."""
        self.threads = Threads("dst-wire", at_once=_THREADS)
        """Where large messages are read, and may be written too."""

    async def parsed(self, message_type: type[M], data: bytes) -> M:
        """The message in *data*; raises InvalidRequest if there is none, or if it is larger than the limits allow."""
        if is_light(message_type, data):
            return parse(message_type, data)
        return await self.threads.run(parse, message_type, data)

    async def read(self, cls: type[T], message: Message) -> tuple[T, Violations | None]:
        """The request in *message*, with stand-ins for bad fields, and the violations; None if there are none.

        Raises:
            InvalidRequest: Nothing of it is usable.
        """
        value, found = await self._read(cls, message)
        if value is None:
            raise found.error()
        return value, found if found.count else None

    async def violations(self, cls: type, message: Message) -> Violations:
        """What is wrong with the request in *message*."""
        return (await self._read(cls, message))[1]

    async def _read(self, cls: type[T], message: Message) -> tuple[T | None, Violations]:
        if message.ByteSize() <= _SMALL_BYTES:
            return read_request(cls, message)
        return await self.threads.run(read_request, cls, message)


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
            except (InvalidRequest, Unauthenticated, NotAllowed) as error:
                if error.reason is Reason.MALFORMED_MESSAGE:
                    raise
                yield Refused(data, error)
            else:
                yield message
