"""A gate before a server's device, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from dst_grpc.pipeline import batching
from dst_grpc.pipeline.scheduler import Scheduler


class Gate:
    """Lets passes through once it is open, and notes the first token of each prompt, batch by batch.

    Nothing interrupts what waits at it: a pass that has not begun gives way to none.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = vars(batching)["run"]
        self.is_reached, self.is_open = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []
        monkeypatch.setattr(batching, "run", self._gated)
        monkeypatch.setattr(Scheduler, "_can_interrupt", lambda *_: False)

    def _gated(self, plans: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        self.is_reached.set()
        assert self.is_open.wait(60)
        self.batches.append([plan.token_ids[0] for plan in plans])
        return self._run(plans, *arguments, **options)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.is_reached.wait, 60)
