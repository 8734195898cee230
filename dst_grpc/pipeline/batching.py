"""Batching: plans that wait for the same device run together, right-padded, under a budget of tokens.

No plan is delayed to be batched: plans queue while a batch runs. A plan whose recording is still kept runs nothing. If
a batch fails, each of its plans is run again alone, so that only the faulty one fails. A batch continues as long as any
of its callers waits. Used on the event loop; batches run on the worker's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dst_grpc.domain.callers import LOCAL
from dst_grpc.engine.cancellation import cancelled
from dst_grpc.errors import Cancelled, failure_of
from dst_grpc.pipeline.arrangement import MAX_BATCH_TOKENS, nothing_kept
from dst_grpc.pipeline.run import RunResult, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.domain.callers import Caller
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.propagation import Propagation
    from dst_grpc.pipeline.arrangement import Kept
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.store import RecordingStore
    from dst_grpc.pipeline.worker import Worker
    from dst_grpc.scalars.explained_model import AutoencoderSet

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    plan: Plan
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]
    then: Callable[[RunResult], Any]
    caller: Caller
    result: asyncio.Future[Any]
    since: float

    @property
    def group(self) -> tuple[int, tuple[str, ...], Propagation]:
        """Equal for all plans of a batch: the model, the spliced autoencoders, and the propagation rule."""
        return id(self.decoder), tuple(info.name for info in self.plan.spliced), self.plan.run.propagation

    @property
    def is_over(self) -> bool:
        """Whether its caller was cancelled, or has the answer. Thread-safe."""
        return self.result.done()


class Batcher:
    """Runs plans on one device, as many of the waiting ones at a time as fit."""

    def __init__(self, worker: Worker, store: RecordingStore, max_batch_tokens: int = MAX_BATCH_TOKENS) -> None:
        """Run on *worker*; keep and look for recordings in *store*, which only its thread touches."""
        self._worker, self._store, self._max_tokens = worker, store, max_batch_tokens
        self._waiting: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None

    async def run(
        self,
        plan: Plan,
        decoder: Decoder,
        sets: Mapping[str, AutoencoderSet],
        then: Callable[[RunResult], T],
        caller: Caller = LOCAL,
    ) -> T:
        """Run *plan*; a caller that is cancelled before its batch is formed is left out of it; a later one gets no
        result.

        Args:
            plan: what to run.
            decoder: the model.
            sets: the autoencoders that the plan uses, by name.
            then: applied to the result on the worker's thread.
            caller: who asks; it finds kept recordings of its own only, unless they are shared.

        Returns:
            The result of *then*.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(plan, decoder, sets, then, caller, result, time.perf_counter()))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run_all())
        return await result

    async def _run_all(self) -> None:
        while batch := self._next_batch():
            operations = sum(waiting.plan.cost.floating_point_operations for waiting in batch)
            results: Sequence[object]
            try:
                results = await self._worker.submit(partial(self._run, batch), operations=operations)
            except BaseException as error:  # noqa: BLE001  the worker is closed, or there was no room to keep a recording
                results = [failure_of(error)] * len(batch)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.is_over:
                    continue
                if isinstance(result, Exception):
                    waiting.result.set_exception(result)
                else:
                    waiting.result.set_result(result)

    def _next_batch(self) -> list[_Waiting]:
        """The plan that has waited longest, with all later ones of its group that fit."""
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
        """On the worker's thread: plans without a kept recording run as one batch, or, if that fails, one by one."""
        started = time.perf_counter()
        results: dict[int, RunResult | Exception] = {}
        for i, waiting in enumerate(batch):
            recording = self._store.find(waiting.plan, waiting.caller)
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
            check = partial(_check_wanted, batch)
            found = run(plans, batch[0].decoder, sets, check, max_tokens=self._max_tokens, kept=self._kept(batch))
        except Cancelled:
            return [cancelled() for _ in batch]  # without the traceback, whose frames would keep tensors alive
        except BaseException as error:  # noqa: BLE001  whatever it is, it is one caller's, who gets it
            if len(batch) == 1:
                return [self._worker.translated(failure_of(error))]
            return [result for waiting in batch for result in self._run_new([waiting])]
        for waiting, result in zip(batch, found, strict=True):
            self._store.keep(waiting.plan, result.recording, waiting.caller, batch_size=result.batch_size)
        return [replace(result, plan=waiting.plan) for waiting, result in zip(batch, found, strict=True)]

    def _kept(self, batch: Sequence[_Waiting]) -> Kept:
        """What is kept of runs that plans of *batch* read; nothing if it is of several callers."""
        if len({waiting.caller.name for waiting in batch}) > 1:
            return nothing_kept
        return partial(self._store.values_of, batch[0].plan, caller=batch[0].caller)

    def _finished(self, waiting: _Waiting, result: RunResult | Exception, started: float) -> object:
        """The caller's result, after its *then*, or its error."""
        if isinstance(result, Exception) or waiting.is_over:
            return result
        try:
            return waiting.then(replace(result, queue_duration=started - waiting.since))
        except BaseException as error:  # noqa: BLE001  likewise
            return self._worker.translated(failure_of(error))


def _check_wanted(batch: Sequence[_Waiting]) -> None:
    """Raise Cancelled if all callers of *batch* have been cancelled."""
    for waiting in batch:
        if not waiting.is_over:
            return
    raise cancelled()
