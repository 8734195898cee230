"""From requests to values, and from the steps of the pipeline's answers to messages of frames."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.sender import Sender
from dst_grpc.domain.urgency import Urgency
from dst_grpc.errors import Violations
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.reading import Reading
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.envelope import Buffers, Envelope
from dst_grpc.wire.frames import is_light

T = TypeVar("T")
AskedT = TypeVar("AskedT", bound="Asked")
Messages = AsyncGenerator[bytes, None]

_FEW = 200
"""Tensors that are put into messages faster than threads are changed."""


class Asked(Protocol):
    """A request that is answered by messages of frames."""

    @property
    def request_id(self) -> str:
        """The client's own id."""


def deadline_of(context: ObservedContext) -> float | None:
    """The deadline of a call, as a reading of `time.monotonic`; None if it has none."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def urgency_of(context: ObservedContext) -> Urgency:
    """How soon the answer of a call is wanted, and who takes it."""
    return Urgency(deadline=deadline_of(context), reader=context.outbox)


def sender_of(context: ObservedContext, tensors: TensorStore, request: Message | None = None) -> Sender:
    """Who makes a call, and what they put into *tensors*; *request* is None for a stream of them."""
    caller = context.caller
    return Sender(
        caller=caller,
        tensors=tensors.of(caller.name),
        urgency=urgency_of(context),
        request_bytes=0 if request is None else request.ByteSize(),
    )


async def messages_of(
    steps: AsyncGenerator[Sequence[T], None],
    cut: Callable[[T], Iterable[Buffers]],
    envelope: Envelope,
    threads: Threads,
) -> AsyncGenerator[bytes, None]:
    """The messages that answer a request, serialised, produced lazily.

    Args:
        steps: the parts that are ready, step by step; the frames of one step share messages. Closed at the end.
        cut: splits a part of a step into frames.
        envelope: the common fields of the messages.
        threads: where messages of many small pieces are made.
    """
    async with aclosing(steps):
        async for step in steps:
            messages = envelope.pack(chain.from_iterable(map(cut, step)))
            if len(step) <= _FEW and all(map(is_light, step)):
                for message in messages:
                    yield message
            else:
                while (each := await threads.run(next, messages, None)) is not None:
                    yield each


async def answers_of(
    reading: Reading, cls: type[T], message: Message, answers: Callable[[T, Violations | None], Messages]
) -> Messages:
    """The messages of *answers* to the request in *message*, once it is read; raises what `Reading.read` does."""
    asked, known = await reading.read(cls, message)
    async with aclosing(answers(asked, known)) as messages:
        async for each in messages:
            yield each


def frames_of(
    reading: Reading,
    cls: type[AskedT],
    message: Message,
    sender: Sender,
    run: Callable[..., AsyncGenerator[Sequence[T], None]],
    cut: Callable[[T], Iterable[Buffers]],
) -> Messages:
    """The messages of a call that is answered by frames; raises what `Reading.read` and *run* do.

    Args:
        reading: reads the message.
        cls: the class of the request.
        message: the request.
        sender: who sent it.
        run: the method of `PipelinePort` that runs the request.
        cut: splits a part of the answer into frames.
    """

    def answers(asked: AskedT, known: Violations | None) -> Messages:
        steps = run(asked, known, sender=sender)
        return messages_of(steps, cut, Envelope(asked.request_id), reading.threads)

    return answers_of(reading, cls, message, answers)
