"""The messages that clients send: read from gRPC, a few of each caller at a time.

Of a call that nobody reads, gRPC holds no more than its flow control lets a client send ahead. Once it is asked to
read, it takes in a whole message, however large, before anything can be known of it. So a call's message is read once
its caller is known and may call, and those of one caller a few at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import grpc.aio

from dst_grpc.contexts.caller_turns import CallerTurns
from dst_grpc.errors import DeadlineExceeded, Exhausted, InvalidRequest, Reason

if TYPE_CHECKING:
    from dst_grpc.observability.calls import CallInfo

_CANCEL_SECONDS = 0.05
"""Within which gRPC tells that a call was cancelled whose messages have ended."""
_STRANGERS_SECONDS = 1.0
"""How long the message of a health check may take to come in: it is small, and comes with the call."""
_HEAR_OUT_SECONDS = 1.0
_HEAR_OUT_BYTES = 64 << 20
_LOOKS, _LOOK_SECONDS = 5, 0.05
"""A client that sends nothing between so many looks is not about to. One look would not do: where this process has to
wait for a processor, what came meanwhile is seen at the next."""
UNREAD_BYTES = 256 << 10
"""What gRPC is to hold of a call that nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeLimits:
    """How much is read at once."""

    max_messages: int = 64
    """Calls whose message is being read; one of each caller always may be. As many of strangers, but no more."""
    max_messages_per_caller: int = 8
    """Those of one caller, or of one connection of strangers."""
    max_waiting_per_caller: int = 1024
    """Calls of one caller, or of one connection of strangers, whose message waits to be read."""
    max_streams_per_caller: int = 256
    """Streams of requests that one caller may have open: the next message of each is always being read."""
    slow_sender_seconds: float = 30.0
    """How long the message of a call may take to come in."""


class Intake:
    """What is being read, of each caller.

    Callers who are not known are strangers: those of health checks, and those who are refused. Their turns are apart,
    and those of each connection too: a host says little, as a proxy is one host with its own health checks.
    """

    def __init__(self, limits: IntakeLimits | None = None) -> None:
        """Start with nothing."""
        self._limits = limits = limits or IntakeLimits()
        at_once, per_caller = limits.max_messages, limits.max_messages_per_caller
        self._turns = CallerTurns(at_once=at_once, at_once_per_caller=per_caller, one_each=True)
        self._strangers = CallerTurns(at_once=at_once, at_once_per_caller=per_caller)
        self._streams: Counter[str] = Counter()
        """Open streams of each caller."""

    def turn(self, call: CallInfo) -> AbstractAsyncContextManager[None]:
        """The turn of *call* to be read.

        Raises:
            Exhausted: (QUEUE_FULL) if too many wait for theirs.
        """
        name, limit = call.caller.name, self._limits.max_waiting_per_caller
        turns, sender = (self._turns, name) if name else (self._strangers, call.peer)
        if turns.n_waiting(sender) >= limit:
            raise Exhausted.full("too many calls of the caller wait to be read", "max_incoming_calls_per_caller", limit)
        return turns.turn(sender)

    def seconds(self, call: CallInfo) -> float:
        """How long the message of *call* may take to come in."""
        seconds = self._limits.slow_sender_seconds
        return seconds if call.caller.name else min(seconds, _STRANGERS_SECONDS)

    def open(self, caller: str) -> None:
        """Count a stream of *caller*.

        Raises:
            Exhausted: (QUEUE_FULL) if it has too many.
        """
        limit = self._limits.max_streams_per_caller
        if self._streams[caller] >= limit:
            raise Exhausted.full("the caller has too many streams open", "max_streams_per_caller", limit)
        self._streams[caller] += 1

    def close(self, caller: str) -> None:
        """Count it no more."""
        self._streams[caller] -= 1
        if not self._streams[caller]:
            del self._streams[caller]


class Incoming:
    """The messages of one call. Whoever waits for one may be cancelled: the next gets it."""

    def __init__(
        self, context: grpc.aio.ServicerContext[Any, Any], info: CallInfo, intake: Intake, *, is_stream: bool
    ) -> None:
        """Read from *context* for the call *info*, which *is_stream* of messages or has one, within *intake*."""
        self.is_stream: Final = is_stream
        self._context, self._info, self._intake = context, info, intake
        self._opened: str | None = None
        """The caller of whose streams this is counted as one."""
        self._has_begun = False
        """Whether its only message is being read, or was."""
        self._reading: asyncio.Task[Any] | None = None

    async def only(self) -> bytes:
        """The message of a call that has one, once it is the turn of its caller.

        Raises:
            InvalidRequest: It has none.
            Exhausted: Too many calls of its caller wait to be read.
            DeadlineExceeded: It took too long to come in.
        """
        seconds = self._intake.seconds(self._info)
        async with self._intake.turn(self._info):
            self._has_begun = True
            try:
                data = await self._next(seconds)
            except TimeoutError:
                raise DeadlineExceeded(f"the message of the call did not come in within {seconds:g} s") from None
        if _is_end(data):
            # A cancelled call, or one whose deadline has passed, ends so too; gRPC cancels its task a little later.
            await asyncio.sleep(_CANCEL_SECONDS)
            raise InvalidRequest.of("", "the call ended without a request", reason=Reason.MALFORMED_MESSAGE)
        return data

    def open(self) -> None:
        """Begin to read a stream.

        Raises:
            Exhausted: (QUEUE_FULL) if its caller has too many.
        """
        caller = self._info.caller.name
        self._intake.open(caller)
        self._opened = caller

    def __aiter__(self) -> Self:
        """The messages of a stream."""
        return self

    async def __anext__(self) -> bytes:
        """The next message."""
        data = await self._next()
        if _is_end(data):
            raise StopAsyncIteration
        return data

    async def hear_out(self) -> None:
        """Drop what the client still sends on a call that is about to fail: its only message, or those of a stream
        until it pauses; for a second at most, with the time until it is its caller's turn.

        A client that is sending while its call ends may not be told why: those of grpc.aio then report INTERNAL.
        """
        if self._has_begun:
            return
        with suppress(TimeoutError, Exhausted, grpc.aio.BaseError):
            async with asyncio.timeout(_HEAR_OUT_SECONDS), self._intake.turn(self._info):
                if self.is_stream:
                    await self._until_pause()
                else:
                    await self._next()

    async def _until_pause(self) -> None:
        n_bytes = n_silent = 0
        while n_bytes < _HEAR_OUT_BYTES and n_silent < _LOOKS:
            try:
                data = await self._next(_LOOK_SECONDS)
            except TimeoutError:
                n_silent += 1
            else:
                if _is_end(data):
                    return
                n_bytes, n_silent = n_bytes + len(data), 0

    async def _next(self, seconds: float | None = None) -> bytes:
        """What gRPC gives next, a message or that there are no more.

        Reading goes on when nobody waits for it any longer, until the call is over: of a message that comes in once its
        reader was cancelled, gRPC never frees the memory.

        Raises:
            TimeoutError: It took more than *seconds*.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
            self._reading.add_done_callback(_retrieve)
        if not (await asyncio.wait((self._reading,), timeout=seconds))[0]:
            raise TimeoutError
        reading, self._reading = self._reading, None
        try:
            return cast("bytes", reading.result())
        finally:
            del reading  # whose error refers to this frame

    def close(self) -> None:
        """Count the call no more."""
        if self._opened is not None:
            self._intake.close(self._opened)
            self._opened = None


def _is_end(data: object) -> bool:
    """Whether *data*, which gRPC gave as a message, is none: there are no more."""
    return data is grpc.aio.EOF


def _retrieve(reading: asyncio.Task[Any]) -> None:
    """Take note of how *reading* failed, if it did: with its call, which nobody need be told twice."""
    if not reading.cancelled():
        reading.exception()
