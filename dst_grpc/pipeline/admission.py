"""Admission: limits the requests that wait, and the estimated bytes of those that run."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.errors import Exhausted, Reason, Unavailable
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEFAULT_RUN_BYTES = 4 << 30
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the pipeline."""

    max_queued_requests: int = 64
    """Requests that may wait; one more is refused."""
    max_run_bytes: int | None = None
    """Estimated device memory of all requests that run, without weights; None = 4 GiB."""
    store_bytes: int = DEFAULT_STORE_BYTES
    """Bytes of recordings kept for later requests about the same run; 0 keeps none."""
    share_recordings: bool = False
    """Whether callers find one another's plans and recordings, and can tell by the time that an answer takes."""


class Admission:
    """First come, first served. Used on the event loop only."""

    def __init__(self, limits: Limits) -> None:
        """Start with nothing admitted."""
        self._max_queued = limits.max_queued_requests
        self._max_bytes = limits.max_run_bytes or DEFAULT_RUN_BYTES
        self._used_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_closed = False

    @asynccontextmanager
    async def admitted(self, estimated_bytes: int) -> AsyncIterator[None]:
        """Hold *estimated_bytes* of the budget, after waiting for them.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if they can never fit; (QUEUE_FULL) if too many wait already.
            Unavailable: (DRAINING) once closed.
        """
        if estimated_bytes > self._max_bytes:
            raise Exhausted(
                f"the request needs about {estimated_bytes} bytes, and may have {self._max_bytes}; ask for fewer"
                " derived scalars, layers or tokens",
                reason=Reason.MEMORY_BUDGET_EXCEEDED,
                metadata={"estimated_bytes": str(estimated_bytes), "limit_bytes": str(self._max_bytes)},
            )
        await self._wait_for(estimated_bytes)
        try:
            yield
        finally:
            self._used_bytes -= estimated_bytes
            self._wake()

    async def _wait_for(self, estimated_bytes: int) -> None:
        if self._is_closed:
            raise Unavailable("the server is stopping", reason=Reason.DRAINING)
        if not self._waiting and self._used_bytes + estimated_bytes <= self._max_bytes:
            self._used_bytes += estimated_bytes
            return
        if len(self._waiting) >= self._max_queued:
            raise Exhausted(
                f"{self._max_queued} requests wait already",
                retry_after_seconds=_RETRY_SECONDS,
                metadata={"max_queued_requests": str(self._max_queued)},
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (estimated_bytes, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # Admitted and cancelled at the same time: return the bytes.
                self._used_bytes -= estimated_bytes
            elif entry in self._waiting:
                self._waiting.remove(entry)
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._used_bytes + self._waiting[0][0] <= self._max_bytes:
            estimated_bytes, turn = self._waiting.popleft()
            if not turn.done():  # A cancelled caller may not have removed itself from the queue yet.
                self._used_bytes += estimated_bytes
                turn.set_result(None)

    def close(self) -> None:
        """Refuse all further requests, and those that wait."""
        self._is_closed = True
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Unavailable("the server is stopping", reason=Reason.DRAINING))
