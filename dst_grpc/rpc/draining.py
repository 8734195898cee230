"""Whether the server is stopping, and how calls that would otherwise go on learn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dst_grpc.errors import Reason, Unavailable

RETRY_AFTER_SECONDS = 1.0

T = TypeVar("T")


def draining_error() -> Unavailable:
    """What new work is answered with from the moment the server stops."""
    return Unavailable(
        "the server is stopping; try another, or this one again once it is back",
        reason=Reason.DRAINING,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


class DrainSignal:
    """Given once, on the event loop, when the server begins to stop."""

    def __init__(self) -> None:
        """Not given yet."""
        self._callbacks: set[Callable[[], object]] = set()
        self.given = False

    def give(self) -> None:
        """Tell everyone. Giving it again does nothing."""
        if self.given:
            return
        self.given = True
        for callback in list(self._callbacks):
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call *callback* when the signal is given within the block; at once if it was given before."""
        if self.given:
            callback()
        self._callbacks.add(callback)
        try:
            yield
        finally:
            self._callbacks.discard(callback)


async def until_drained(source: AsyncIterator[T], drain: DrainSignal) -> AsyncGenerator[T, None]:
    """What *source* yields, for calls that would last as long as their caller likes.

    Raises:
        Unavailable: The drain signal was given.
    """
    while True:
        step = asyncio.ensure_future(anext(source))
        with drain.calling(step.cancel):
            try:
                item = await step
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if drain.given and (task is None or not task.cancelling()):
                    raise draining_error() from None
                raise
        yield item
