"""What a pipeline of fakes answers, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.rpc.ports import AnswerPart
from tests.fake_parts import Script, answer, tensor


def until(event: asyncio.Event, tensors: int = 0) -> Script:
    """A script that waits for *event* before its answer."""

    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        await event.wait()
        yield answer([tensor(i, [float(i)]) for i in range(tensors)])

    return script


def half_until(event: asyncio.Event) -> Script:
    """A script that waits for *event* after the header of its answer."""

    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        parts = answer()
        yield parts[:1]
        await event.wait()
        yield parts[1:]

    return script
