"""From the steps of the pipeline's answers to messages of frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain
from typing import TypeVar

from dst_grpc.wire.envelope import Buffers, Envelope

T = TypeVar("T")


async def messages_of(
    steps: AsyncGenerator[Sequence[T], None], cut: Callable[[T], Iterable[Buffers]], envelope: Envelope
) -> AsyncGenerator[bytes, None]:
    """The messages that answer a request, serialised, produced lazily.

    Args:
        steps: the parts that are ready, step by step; the frames of one step share messages. Closed at the end.
        cut: splits a part of a step into frames.
        envelope: the common fields of the messages.
    """
    async with aclosing(steps):
        async for step in steps:
            for message in envelope.pack(chain.from_iterable(map(cut, step))):
                yield message
