"""Executes plans: admission, lease of their contexts, one batch, then the answer step by step.

Shared by Derive, TopK and Explain, which differ only in the answer they make of recordings. Steps run on the device's
thread, only one ahead of the reader: a slow reader holds neither the device nor more than its own recorded taps. A
cancelled request leaves the device within about a layer's time.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from dst_grpc.domain.callers import LOCAL, Grants
from dst_grpc.engine.cancellation import Cancellation
from dst_grpc.pipeline.admission import Admission, Limits
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.pipeline.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.results import RunSummary
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.run import RunResult

    Contexts = Mapping[str, AutoencoderContext]
    """Autoencoder sets by name."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StepwiseAnswer(Protocol[T_co]):
    """An answer that is computed from recordings in steps, on the device's thread."""

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""

    def steps(self) -> Iterator[Sequence[T_co]]:
        """Yields the items of each step, which may be none. Called once."""

    def summary(self) -> RunSummary:
        """The cost of the whole, and the provenance of the numbers."""


class Executor:
    """Runs plans on the devices of their models. Used on the event loop only; torch runs on the workers' threads."""

    def __init__(self, cache: ContextCache, limits: Limits) -> None:
        """Use the contexts of *cache*, within *limits*."""
        self._cache = cache
        self._admission = Admission(limits)
        self._limits = limits
        self.grants = Grants()
        """What the operator grants each caller; a reload replaces it."""
        self._devices: dict[str, tuple[Worker, Batcher]] = {}

    async def run(
        self,
        plans: Sequence[Plan],
        begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
        *,
        peak_bytes: int,
        operations: int,
        caller: Caller = LOCAL,
    ) -> AsyncGenerator[Sequence[T | RunSummary], None]:
        """Run *plans*, all of one model, and yield the items of the answer as they are ready, finally its summary.

        Works one step ahead of the reader.

        Args:
            plans: the plans, run together if they fit into one batch.
            begin: begins the answer, given the result of each plan.
            peak_bytes: estimated device memory, without weights.
            operations: approximate floating-point operations of the whole.
            caller: who asks.

        Raises:
            DstError: what `Admission.admitted` and `ContextCache.lease` raise, before anything is yielded.
        """
        entries = dict.fromkeys(entry for plan in plans for entry in plan.autoencoders)
        handles = [handle for plan in plans for handle in plan.handles]
        deriving = Cancellation()
        async with (
            self._admission.admitted(peak_bytes),
            self._cache.lease(plans[0].model, entries, handles=handles) as lease,
        ):
            worker, batcher = self._device(lease.model.device)
            contexts = dict(lease.autoencoders)
            try:
                answer, steps, ready = await _begun(
                    batcher, plans, lease.model, contexts, begin, deriving.check, caller
                )
                while not answer.is_complete:
                    following = asyncio.ensure_future(worker.submit(partial(_next_items, steps), operations=operations))
                    try:
                        yield ready
                        ready = await following
                    finally:
                        following.cancel()
            finally:
                deriving.cancel()
            yield [*ready, answer.summary()]

    async def close(self) -> None:
        """Refuse waiting requests and stop the workers."""
        self._admission.close()
        for worker, _ in self._devices.values():
            await worker.close()

    def _device(self, device: str) -> tuple[Worker, Batcher]:
        if device not in self._devices:
            worker = Worker(device)
            store = RecordingStore(self._limits.store_bytes, shared=self._limits.share_recordings)
            self._devices[device] = worker, Batcher(worker, store)
        return self._devices[device]


async def _begun(
    batcher: Batcher,
    plans: Sequence[Plan],
    model: ModelContext,
    sets: Contexts,
    begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
    check: Check,
    caller: Caller,
) -> tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T]]:
    """The answer to *plans*, its steps, and the items of the first; raises the first plan's error if any failed.

    *check* is called wherever something is derived from the results.
    """
    results: dict[int, RunResult] = {}
    begun: list[tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T]]] = []

    def then(i: int, result: RunResult) -> None:
        """On the device's thread: the last plan's result begins the answer before it returns to the event loop."""
        results[i] = replace(result, check=check)
        if len(results) == len(plans):
            answer = begin([results[k] for k in range(len(plans))], model, sets)
            steps = answer.steps()
            begun.append((answer, steps, _next_items(steps)))

    # All are queued before the first batch is formed, so that they run together.
    runs = [batcher.run(plan, model.decoder, sets, partial(then, i), caller) for i, plan in enumerate(plans)]
    for error in await asyncio.gather(*runs, return_exceptions=True):
        if error is not None:
            raise error
    return begun.pop()


def _next_items(steps: Iterator[Sequence[T]]) -> Sequence[T]:
    """The items of the next step that has any; empty if none has."""
    return next((items for items in steps if items), ())
