"""The loop in the background: an iterator ends whenever it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from dst_grpc.client._loop import _finish, _next


async def test_finishing_cancels_an_item_that_is_still_waited_for() -> None:
    async def never() -> AsyncGenerator[int]:
        await asyncio.Event().wait()
        yield 1

    source, pulling = never(), list[asyncio.Task[Any]]()
    waiting = asyncio.create_task(_next(source, pulling))
    await asyncio.sleep(0)
    assert pulling == [waiting]
    await asyncio.wait_for(_finish(source, pulling), 10)
    assert waiting.cancelled()
