"""Batching: plans that wait for the same device run together, right-padded, under a budget of tokens.

Nothing waits in order to be batched: while one batch runs, others gather. A plan whose recording is still kept runs
nothing. If a batch fails, each of its plans is run again alone, so that a poisoned one fails by itself. A batch goes on
for as long as any of its callers waits. Lives on the event loop; runs on the worker's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dst_grpc.engine.cancellation import cancelled
from dst_grpc.errors import Cancelled, DstError
from dst_grpc.pipeline.run import RunResult, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.propagation import Propagation
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.store import RecordingStore
    from dst_grpc.pipeline.worker import Worker
    from dst_grpc.scalars.explained_model import AutoencoderSet

T = TypeVar("T")

MAX_BATCH_TOKENS = 2048
"""Tokens of a batch, pads included, unless a single prompt is longer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    plan: Plan
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]
    then: Callable[[RunResult], Any]
    result: asyncio.Future[Any]
    since: float

    @property
    def group(self) -> tuple[int, tuple[str, ...], Propagation]:
        """What must be equal within a batch: the model, the autoencoders in its graph, and how gradients propagate."""
        return id(self.decoder), tuple(info.name for info in self.plan.spliced), self.plan.run.propagation

    @property
    def is_over(self) -> bool:
        """Whether its caller went away, or has the answer. Asked on both threads: it only reads a state."""
        return self.result.done()


class Batcher:
    """Runs plans on one device, as many at a time as wait and fit."""

    def __init__(self, worker: Worker, store: RecordingStore, max_batch_tokens: int = MAX_BATCH_TOKENS) -> None:
        """Run on *worker*; keep and look for recordings in *store*, which only its thread touches."""
        self._worker, self._store, self._max_tokens = worker, store, max_batch_tokens
        self._waiting: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None

    async def run(
        self, plan: Plan, decoder: Decoder, sets: Mapping[str, AutoencoderSet], then: Callable[[RunResult], T]
    ) -> T:
        """Run *plan*; a caller that is cancelled before its batch forms is left out of it, one later is cut off.

        Args:
            plan: what to run.
            decoder: the model.
            sets: the autoencoders that the plan uses, by name.
            then: what to make of the result, on the worker's thread, before it comes back from there.

        Returns:
            What *then* gave.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(plan, decoder, sets, then, result, time.perf_counter()))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run_all())
        return await result

    async def _run_all(self) -> None:
        while batch := self._next_batch():
            operations = sum(waiting.plan.cost.floating_point_operations for waiting in batch)
            results: Sequence[object]
            try:
                results = await self._worker.submit(partial(self._run, batch), operations=operations)
            except DstError as error:  # the worker is closed
                results = [error] * len(batch)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.is_over:
                    continue
                if isinstance(result, Exception):
                    waiting.result.set_exception(result)
                else:
                    waiting.result.set_result(result)

    def _next_batch(self) -> list[_Waiting]:
        """The plan that has waited longest, with all later ones of its group that fit beside it."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        sets: dict[str, AutoencoderSet] = {}
        longest = 0
        for waiting in self._waiting:
            if waiting.is_over:
                continue
            longer = max(longest, len(waiting.plan.token_ids))
            fits = not batch or (
                batch[0].group == waiting.group
                and longer * (len(batch) + 1) <= self._max_tokens
                # A reload of the registry may have given a name to another set meanwhile.
                and all(sets.get(name, one) is one for name, one in waiting.sets.items())
            )
            (batch if fits else left).append(waiting)
            if fits:
                longest = longer
                sets |= waiting.sets
        self._waiting = left
        return batch

    def _run(self, batch: Sequence[_Waiting]) -> list[object]:
        """On the worker's thread: what is not recorded runs as one batch, or, if that fails, one by one."""
        started = time.perf_counter()
        results: dict[int, RunResult | Exception] = {}
        for i, waiting in enumerate(batch):
            recording = self._store.find(waiting.plan)
            if recording is not None:
                results[i] = RunResult(waiting.plan, waiting.decoder, waiting.sets, recording, batches=())
        new = [i for i in range(len(batch)) if i not in results]
        results |= dict(zip(new, self._run_new([batch[i] for i in new]), strict=True))
        return [self._finished(waiting, results[i], started) for i, waiting in enumerate(batch)]

    def _run_new(self, batch: Sequence[_Waiting]) -> Sequence[RunResult | Exception]:
        if not batch:
            return []
        sets = {name: found for waiting in batch for name, found in waiting.sets.items()}
        plans = [self._store.widened(waiting.plan) for waiting in batch]
        try:
            found = run(plans, batch[0].decoder, sets, partial(_check_wanted, batch))
        except Cancelled:
            return [cancelled() for _ in batch]  # without the frames, and so the tensors, of the one that was raised
        except Exception as error:  # noqa: BLE001  whatever it is, it is one caller's, who gets it
            if len(batch) == 1:
                return [self._worker.translated(error)]
            return [result for waiting in batch for result in self._run_new([waiting])]
        for waiting, result in zip(batch, found, strict=True):
            self._store.keep(waiting.plan, result.recording, batch_size=len(batch))
        return [replace(result, plan=waiting.plan) for waiting, result in zip(batch, found, strict=True)]

    def _finished(self, waiting: _Waiting, result: RunResult | Exception, started: float) -> object:
        """What the caller gets: what it makes of its result, or its error."""
        if isinstance(result, Exception) or waiting.is_over:
            return result
        try:
            return waiting.then(replace(result, queue_duration=started - waiting.since))
        except Exception as error:  # noqa: BLE001  likewise
            return self._worker.translated(error)


def _check_wanted(batch: Sequence[_Waiting]) -> None:
    """Raise Cancelled if nobody waits for any of *batch*."""
    for waiting in batch:
        if not waiting.is_over:
            return
    raise cancelled()
