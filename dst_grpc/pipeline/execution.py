"""Executes plans: the door, lease of their contexts, the queue of a device, then the answer step by step.

Shared by Derive, TopK and Explain, which differ only in the answer they make of recordings. Steps run on the device's
thread, in turn with other callers' work, and only one ahead of the reader. A cancelled request leaves the device within
about a layer's time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from dst_grpc.contexts.device import memory_of
from dst_grpc.domain.callers import Grants
from dst_grpc.domain.server_info import DeviceLoad
from dst_grpc.domain.timeline import Stage
from dst_grpc.engine.cancellation import Cancellation
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.door import Door
from dst_grpc.pipeline.scheduler import Scheduler
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.pipeline.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.callers import Caller, Grant
    from dst_grpc.domain.readings import DeviceReading
    from dst_grpc.domain.resolution import LoadProgress
    from dst_grpc.domain.results import MadeAnswer, RunSummary
    from dst_grpc.domain.sender import Sender
    from dst_grpc.domain.timeline import Timeline
    from dst_grpc.domain.work import OnWork
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.pipeline.door import Ticket
    from dst_grpc.pipeline.limits import Limits
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.rates import Work
    from dst_grpc.pipeline.run import RunResult

    Contexts = Mapping[str, AutoencoderContext]
    """Autoencoder sets by name."""

_KEPT_SECONDS = 5e-5
"""What a kept answer costs its caller: about what it takes of the event loop."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StepwiseAnswer(Protocol[T_co]):
    """An answer that is computed from recordings in steps, on the device's thread."""

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""

    @property
    def held_bytes(self) -> int | None:
        """What it takes from now on, once it knows that better than its plan does; None = it does not."""

    @property
    def step_operations(self) -> int | None:
        """Approximate floating-point operations of its next step, likewise."""

    def steps(self) -> Iterator[Sequence[T_co]]:
        """Yields the items of each step, which may be none. Called once."""

    def summary(self) -> RunSummary:
        """The cost of the whole, and the provenance of the numbers."""


class Executor:
    """Runs plans on the devices of their models. Used on the event loop only; torch runs on the workers' threads."""

    def __init__(self, cache: ContextCache, limits: Limits) -> None:
        """Use the contexts of *cache*, within *limits*."""
        self._cache, self._limits = cache, limits
        self.grants = Grants()
        """What the operator grants each caller; a reload replaces it."""
        self._door = Door(limits.bounds, self._grant_of, time.monotonic)
        self._devices: dict[str, Batcher] = {}
        self.observers: list[OnWork] = []
        """Told of what devices have done."""

    @contextmanager
    def entered(self, sender: Sender, model: ModelEntry | None) -> Iterator[Ticket]:
        """Let a request in for the time of the block, before it is planned.

        Args:
            sender: who sent it.
            model: its model; None if it is not known.

        Raises:
            DstError: what `Door.entered` raises; and what `Scheduler.check` does if even a request that costs nothing
                could not be served before its deadline.
        """
        with self._door.entered(sender.caller, sender.urgency, sender.request_bytes, sender.timeline) as ticket:
            if model is not None:
                ticket.timeline.model, ticket.timeline.device = model.name, model.device
                self._device(model.device).scheduler.check(ticket)
            yield ticket

    def waiting(self, caller: Caller, request_bytes: int) -> AbstractContextManager[None]:
        """As `Door.waiting`."""
        return self._door.waiting(caller, request_bytes)

    async def run(
        self,
        ticket: Ticket,
        plans: Sequence[Plan],
        begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
        *,
        peak_bytes: int,
        step_operations: int,
        steps: Work,
        n_steps: int,
        held_bytes: int | None = None,
        make: Callable[[Sequence[T | RunSummary]], MadeAnswer | None] | None = None,
    ) -> AsyncGenerator[Sequence[T | RunSummary | MadeAnswer], None]:
        """Run *plans*, all of one model, and yield the items of the answer as they are ready, finally its summary.

        Works one step ahead of the reader. Nothing of the runs is held any more once the last items are yielded.

        Args:
            ticket: the request's.
            plans: the plans, run together if they fit into one batch.
            begin: begins the answer, given the result of each plan.
            peak_bytes: estimated memory of tensors on the device, without weights.
            step_operations: approximate floating-point operations of a step, unless the answer knows better: small
                ones run on one thread.
            steps: what the steps of the answer are.
            n_steps: how many there are besides the first; approximately.
            held_bytes: what the request takes once its passes are over; None = as much as before.
            make: makes an answer to one plan, if it is whole with its first step, ready to be sent; yielded instead,
                unless it is None.

        Raises:
            DstError: what `Batcher.check`, `ContextCache.lease` and `Batcher.run` raise, before anything is yielded.
        """
        taken = self._limits.of_device.taken
        ticket.peak_bytes = taken(peak_bytes)
        entries = dict.fromkeys(entry for plan in plans for entry in plan.autoencoders)
        handles = [handle for plan in plans for handle in plan.handles]
        ticket.timeline.contexts = [entry.name for entry in entries]
        batcher = self._device(plans[0].model.device)
        batcher.check(ticket, plans, steps, n_steps)
        deriving, loading = Cancellation(), _Loading(ticket.timeline)
        check = batcher.giving_way(deriving.check)
        try:
            async with self._cache.lease(plans[0].model, entries, handles=handles, on_progress=loading.note) as lease:
                loading.end()
                answer, iterator, ready, made = await _begun(
                    batcher, ticket, plans, lease.model, dict(lease.autoencoders), begin, make, check
                )
                batcher.shrink(ticket, taken(peak_bytes if held_bytes is None else held_bytes))
                while not answer.is_complete:
                    step, known = partial(_next_items, iterator), answer.step_operations
                    operations = step_operations if known is None else known
                    following = asyncio.ensure_future(
                        batcher.step(ticket, plans[0].model.name, steps, step, operations)
                    )
                    try:
                        if ready:
                            yield ready
                        ready = await following
                    finally:
                        following.cancel()
                    if answer.held_bytes is not None:
                        batcher.shrink(ticket, taken(answer.held_bytes))
                last: list[T | RunSummary | MadeAnswer] = [*ready, answer.summary()] if made is None else [made]
                del answer, iterator
        finally:
            deriving.cancel()
            batcher.release(ticket)
        ticket.timeline.now = Stage.WRITE
        yield last

    def memory_of(self, caller: Caller) -> int:
        """Bytes of tensors on a device, without weights, that requests of *caller* may have together."""
        limits = self._limits.of_device
        return int(limits.max_run_bytes * self._grant_of(caller.name).memory_share / limits.allocator_factor)

    def kept_answer(self, plan: Plan, sender: Sender) -> MadeAnswer | None:
        """The answer to *plan*, if it is kept, and what it was computed with is loaded.

        Raises:
            DstError: what `Door.check` raises, if there is one.
        """
        batcher = self._devices.get(plan.model.device)
        answer = None if batcher is None else batcher.kept_answer(plan, sender.caller)
        if answer is None or not self._cache.use_loaded((plan.model, *plan.autoencoders)):
            return None
        if sender.timeline is not None:
            sender.timeline.model, sender.timeline.device = plan.model.name, plan.model.device
            sender.timeline.contexts = [entry.name for entry in plan.autoencoders]
            sender.timeline.now = Stage.WRITE
        self._door.check(sender.caller.name, sender.request_bytes)
        self._door.quotas.charge(sender.caller.name, _KEPT_SECONDS)
        return answer

    def _grant_of(self, caller: str) -> Grant:
        return self.grants.of(caller)

    def loads(self) -> tuple[DeviceLoad, ...]:
        """What waits for each device that has been used."""
        return tuple(
            DeviceLoad(
                device=name,
                expected_wait=batcher.scheduler.expected_wait,
                waiting_requests=sum(batcher.scheduler.counts.values()),
            )
            for name, batcher in list(self._devices.items())
        )

    def readings(self) -> tuple[DeviceReading, ...]:
        """What each device does that has been used, or that a model of the registry is for. May be called on any
        thread."""
        used = list(self._devices.values())
        names = {entry.device for entry in self._cache.registry.registered().values()}
        idle = [self._batcher(device) for device in sorted(names - {batcher.worker.device for batcher in used})]
        return tuple(batcher.reading for batcher in (*used, *idle))

    async def close(self) -> None:
        """Refuse waiting requests and stop the workers."""
        self._door.close()
        for batcher in self._devices.values():
            await batcher.close()

    def _device(self, device: str) -> Batcher:
        if device not in self._devices:
            self._devices[device] = self._batcher(device)
        return self._devices[device]

    def _batcher(self, device: str) -> Batcher:
        """One for *device*, which has not been used; it starts no thread yet."""
        store = RecordingStore(self._limits.store_bytes, shared=self._limits.share_recordings)
        scheduler = Scheduler(self._limits.of_device, time.monotonic, self._door.quotas.charge)
        at_rest = memory_of(device).reclaim if device == "cpu" else None  # a GPU's allocator does well to keep it
        return Batcher(Worker(device), store, scheduler, self.observers, at_rest)


class _Loading:
    """Notes how long a request waits until its contexts are loaded, if it does."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline, self._started = timeline, time.monotonic()
        self._has_waited = False

    def note(self, _progress: LoadProgress) -> None:
        """Some context is being loaded."""
        self._has_waited = True

    def end(self) -> None:
        """All are loaded."""
        if self._has_waited:
            self._timeline.note(Stage.LOAD, self._started, time.monotonic())


async def _begun(
    batcher: Batcher,
    ticket: Ticket,
    plans: Sequence[Plan],
    model: ModelContext,
    sets: Contexts,
    begin: Callable[[Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
    make: Callable[[Sequence[T | RunSummary]], MadeAnswer | None] | None,
    check: Check,
) -> tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T], MadeAnswer | None]:
    """The answer to *plans*, its steps, the items of the first, and what *make* makes of it all if that is the only
    one; raises the first plan's error if any failed.

    *check* is called wherever something is derived from the results.
    """
    results: dict[int, RunResult] = {}
    begun: list[tuple[StepwiseAnswer[T], Iterator[Sequence[T]], Sequence[T], MadeAnswer | None]] = []

    def then(i: int, result: RunResult) -> None:
        """On the device's thread: the last plan's result begins the answer before it returns to the event loop."""
        results[i] = replace(result, check=check)
        if len(results) == len(plans):
            answer = begin([results[k] for k in range(len(plans))], model, sets)
            steps = answer.steps()
            items, made = next(steps, ()), None  # the first step alone, which is timed with the pass
            if make is not None and answer.is_complete:
                made = batcher.made(ticket, plans[0], items, answer.summary(), make)
            begun.append((answer, steps, items, made))

    # All are queued before the first batch is formed, so that they run together.
    runs = [batcher.run(ticket, plan, model.decoder, sets, partial(then, i)) for i, plan in enumerate(plans)]
    if len(runs) == 1:
        await runs[0]  # in this task
    else:
        for error in await asyncio.gather(*runs, return_exceptions=True):
            if error is not None:
                raise error
    return begun.pop()


def _next_items(steps: Iterator[Sequence[T]]) -> Sequence[T]:
    """The items of the next step that has any; empty if none has."""
    return next((items for items in steps if items), ())
