"""How plans become an answer: admitted, with their contexts leased, run as one batch, then answered step by step.

Derive, TopK and Explain differ in what they make of what was recorded, not in how they get there. Steps are done on the
device's thread, and only one ahead of the reader: a slow one holds neither the device nor more than its own recorded
taps. A caller who goes away leaves the device within about a layer's time, wherever its request is.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

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
    from dst_grpc.domain.results import RunSummary
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.run import RunResult

    Contexts = Mapping[str, AutoencoderContext]
    """Autoencoder sets by name."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StepwiseAnswer(Protocol[T_co]):
    """What is made of recordings. Everything happens on the device's thread."""

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""

    def steps(self) -> Iterator[Sequence[T_co]]:
        """Each pull does the next step, and gives what is to be sent of it, if anything. Called once."""

    def summary(self) -> RunSummary:
        """What it all cost, and what the numbers depend on."""


class Executor:
    """Runs plans on the devices of their models. Lives on the event loop; torch runs on the workers' threads."""

    def __init__(self, cache: ContextCache, limits: Limits) -> None:
        """Work on what *cache* holds, within *limits*."""
        self._cache = cache
        self._admission = Admission(limits)
        self._store_bytes = limits.store_bytes
        self._devices: dict[str, tuple[Worker, Batcher]] = {}

    async def run(
        self,
        plans: Sequence[Plan],
        begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
        *,
        peak_bytes: int,
        operations: int,
    ) -> AsyncGenerator[Sequence[T | RunSummary], None]:
        """Run *plans*, all of one model, and yield what is ready of the answer, at last its summary.

        The next step is done while the reader has what came before, and no further.

        Args:
            plans: what to run, together if it fits into one batch.
            begin: begins the answer, with what each plan recorded.
            peak_bytes: estimated device memory, weights apart.
            operations: floating-point operations of it all, about.

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
                answer, steps, ready = await _begun(batcher, plans, lease.model, contexts, begin, deriving.check)
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
        """Refuse what waits and stop the workers."""
        self._admission.close()
        for worker, _ in self._devices.values():
            await worker.close()

    def _device(self, device: str) -> tuple[Worker, Batcher]:
        if device not in self._devices:
            worker = Worker(device)
            self._devices[device] = worker, Batcher(worker, RecordingStore(self._store_bytes))
        return self._devices[device]


async def _begun(
    batcher: Batcher,
    plans: Sequence[Plan],
    model: ModelContext,
    sets: Contexts,
    begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
    check: Check,
) -> tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T]]:
    """The answer to *plans*, its steps, and what the first gives; raises the first plan's error if any failed.

    *check* is made wherever something is derived of the results.
    """
    results: dict[int, RunResult] = {}
    begun: list[tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T]]] = []

    def then(i: int, result: RunResult) -> None:
        """On the device's thread, where the last plan's result is not fetched from before the answer is begun."""
        results[i] = replace(result, check=check)
        if len(results) == len(plans):
            answer = begin([results[k] for k in range(len(plans))], model, sets)
            steps = answer.steps()
            begun.append((answer, steps, _next_items(steps)))

    # All wait before the first batch is formed, so that they run together.
    runs = [batcher.run(plan, model.decoder, sets, partial(then, i)) for i, plan in enumerate(plans)]
    for error in await asyncio.gather(*runs, return_exceptions=True):
        if error is not None:
            raise error
    return begun.pop()


def _next_items(steps: Iterator[Sequence[T]]) -> Sequence[T]:
    """What the next step gives that gives anything; empty if none does."""
    return next((items for items in steps if items), ())
