"""Messages are made where that keeps nobody waiting, and are the same wherever they are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.components import Dimension, PassType
from dst_grpc.domain.results import AnswerHeader, Axis, DenseTensor, TensorInfo
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.rpc.answers import messages_of
from dst_grpc.wire.envelope import MESSAGE_BYTES, Chunk, Envelope, received
from dst_grpc.wire.frames import FrameCutter
from tests.fake_answers import SUMMARY

T = TypeVar("T")
TOKENS, ACTS = 1000, 2500
"""Of a tensor of ten messages, whose header has more tokens than are put into a message on the event loop."""


class CountedThreads(Threads):
    def __init__(self) -> None:
        super().__init__("test", at_once=1)
        self.n_runs = 0

    async def run(self, work: Callable[..., T], *arguments: object, caller: str = "") -> T:
        self.n_runs += 1
        return await super().run(work, *arguments, caller=caller)


def tensor() -> DenseTensor:
    axes = (Axis(Dimension.SEQUENCE_TOKENS, TOKENS), Axis(Dimension.MLP_ACTS, ACTS))
    info = TensorInfo(
        tensor_id=0, dst=DerivedScalarType.MLP_POST_ACT, pass_type=PassType.FORWARD, layer_index=0, axes=axes
    )
    return DenseTensor(info, np.arange(TOKENS * ACTS, dtype=np.float32).reshape(TOKENS, ACTS))


async def test_only_what_takes_long_is_put_into_messages_on_threads() -> None:
    whole = tensor()
    header = AnswerHeader(
        model="m", token_ids=tuple(range(TOKENS)), token_strings=("a",) * TOKENS, tensors=(whole.info,)
    )

    async def steps() -> AsyncGenerator[Sequence[Any], None]:
        yield header, whole
        yield (SUMMARY,)

    threads = CountedThreads()
    messages = [each async for each in messages_of(steps(), FrameCutter().cut, Envelope("id"), threads)]
    assert threads.n_runs == 2  # the header, and that it has no more messages
    assert len(messages) >= whole.values.nbytes / MESSAGE_BYTES
    frames = [frame for each in messages for frame in received(each).frames]
    chunks = [frame for frame in frames if isinstance(frame, Chunk)]
    assert b"".join(chunk.data for chunk in chunks) == whole.values.tobytes()
