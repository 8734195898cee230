"""The signal that the server is stopping, for calls that would otherwise continue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dst_grpc.errors import Reason, Unavailable

_RETRY_AFTER_SECONDS = 1.0

T = TypeVar("T")


def draining_error() -> Unavailable:
    """The error of new requests once the server is stopping."""
    return Unavailable(
        "the server is stopping; try another, or this one again once it is back",
        reason=Reason.DRAINING,
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


class DrainSignal:
    """Set once, on the event loop, when the server begins to stop."""

    def __init__(self) -> None:
        """Start unset."""
        self._callbacks: set[Callable[[], object]] = set()
        self.given = False

    def give(self) -> None:
        """Set it. Setting it again does nothing."""
        if self.given:
            return
        self.given = True
        for callback in list(self._callbacks):
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call *callback* when the signal is set within the block; at once if it was set before."""
        if self.given:
            callback()
        self._callbacks.add(callback)
        try:
            yield
        finally:
            self._callbacks.discard(callback)


async def until_drained(source: AsyncIterable[T], drain: DrainSignal) -> AsyncGenerator[T, None]:
    """Yield from *source* until the server drains, for calls without an end of their own.

    Raises:
        Unavailable: The drain signal was set.
    """
    items = aiter(source)
    while True:
        step = asyncio.ensure_future(anext(items))
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
