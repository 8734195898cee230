"""From requests to values, and from the steps of the pipeline's answers to messages of frames."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain, groupby
from typing import Any, Protocol, TypeVar

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.results import MadeAnswer
from dst_grpc.domain.sender import Sender
from dst_grpc.domain.urgency import Urgency
from dst_grpc.errors import Violations
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.reading import Reading, Received
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.envelope import Buffers, Envelope, packed_alone
from dst_grpc.wire.frames import FrameCutter, is_light

T = TypeVar("T")
AskedT = TypeVar("AskedT", bound="Asked")
Messages = AsyncGenerator[bytes, None]
Answer = Sequence[bytes] | Messages
"""Messages that are made already, or as they are made."""

_FEW = 200
"""Tensors that are put into messages faster than threads are changed."""


class Asked(Protocol):
    """A request that is answered by messages of frames."""

    @property
    def request_id(self) -> str:
        """The client's own id."""


def deadline_of(context: ObservedContext) -> float | None:
    """The deadline of a call, as a reading of `time.monotonic`; None if it has none."""
    remaining: float | None = context.inner.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def urgency_of(context: ObservedContext) -> Urgency:
    """How soon the answer of a call is wanted, and who takes it."""
    return Urgency(deadline=deadline_of(context), reader=context.outbox)


def sender_of(context: ObservedContext, tensors: TensorStore, data: bytes = b"") -> Sender:
    """Who makes a call, and what they put into *tensors*; *data* is the request, if it is a single one."""
    caller = context.caller
    return Sender(
        caller=caller,
        tensors=tensors.of(caller.name),
        urgency=urgency_of(context),
        request_bytes=len(data),
        timeline=context.info.timeline,
    )


async def messages_of(
    steps: AsyncGenerator[Sequence[Any], None],
    cut: Callable[[Any], Iterable[Buffers]],
    envelope: Envelope,
    threads: Threads,
) -> AsyncGenerator[bytes, None]:
    """The messages that answer a request, serialised, produced lazily.

    Args:
        steps: the parts that are ready, step by step, of which the frames share messages if they are made in the same
            place; or a MadeAnswer. Closed at the end.
        cut: splits a part of a step into frames.
        envelope: the common fields of the messages.
        threads: where messages of many small pieces are made; others are made on the event loop.
    """
    async with aclosing(steps):
        async for step in steps:
            if step and isinstance(step[0], MadeAnswer):
                for message in envelope.all_around(step[0]):
                    yield message
                return
            for light, parts in groupby(step, is_light):
                together = list(parts)
                messages = envelope.pack(chain.from_iterable(map(cut, together)))
                if light and len(together) <= _FEW:
                    for message in messages:
                        yield message
                else:
                    while (each := await threads.run(next, messages, None)) is not None:
                        yield each


def made(parts: Sequence[Any]) -> MadeAnswer | None:
    """A whole answer of Derive; None if making its messages takes so long that it is better done bit by bit."""
    if not _is_light(parts):
        return None
    return MadeAnswer(tuple(packed_alone(chain.from_iterable(map(FrameCutter().cut, parts)))))


def _is_light(parts: Sequence[Any]) -> bool:
    """Whether *parts* are put into messages faster than a thread starts."""
    return len(parts) <= _FEW and all(map(is_light, parts))


async def answers_of(
    reading: Reading,
    cls: type[T],
    received: Received[Any],
    caller: Caller,
    answer: Callable[[T, Violations | None], Awaitable[Answer]],
) -> Messages:
    """The messages of the *answer* to the request that was *received* from *caller*, once it is read; raises what
    `Reading.read` does."""
    messages = await answer(*await reading.read(cls, *received, caller))
    if isinstance(messages, Sequence):
        for each in messages:
            yield each
        return
    async with aclosing(messages):
        async for each in messages:
            yield each


async def frames_of(
    context: ObservedContext,
    data: bytes,
    reading: Reading,
    tensors: TensorStore,
    cls: type[AskedT],
    run: Callable[..., AsyncGenerator[Sequence[T], None]],
    cut: Callable[[T], Iterable[Buffers]],
) -> Messages:
    """The messages of frames that answer a call; raises what `Reading.request` does.

    Args:
        context: of the call.
        data: the request.
        reading: reads the request.
        tensors: what callers have stored.
        cls: the class of the request.
        run: the method of `PipelinePort` that runs the request.
        cut: splits a part of the answer into frames.
    """
    sender = sender_of(context, tensors, data)
    asked, known = await reading.request(cls, data, sender.caller)
    steps = run(asked, known, sender=sender)
    return messages_of(steps, cut, Envelope(asked.request_id), reading.threads)
