"""A small request may run in the midst of a large one; each gets what it gets alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.timeline import Stage
from dst_grpc.domain.work import OnWork, WorkDone
from dst_grpc.engine.cancellation import never_cancelled
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.rates import Work
from dst_grpc.pipeline.run import RunResult
from dst_grpc.pipeline.scheduler import Scheduler
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.pipeline.worker import Worker
from tests import models
from tests.unit.pipeline.test_batching import plan_of
from tests.unit.pipeline.test_own_time import Clock

T = TypeVar("T")
WORLD = models.world()
SMALL, LARGE = plan_of(WORLD.registry, [2, 1]), plan_of(WORLD.registry, [1, 2, 3, 4, 3, 2])


class Slow(Worker):
    """Gives way the chosen time only, and then waits until there is something to give way to."""

    def __init__(self, place: int) -> None:
        super().__init__("cpu")
        self.count = 0
        """How often it could have given way."""
        self.in_backward: list[bool] = []
        """Whether autograd ran where it did."""
        self._may_come, self._has_come = threading.Event(), threading.Event()
        self._place = place

    async def may_be_interrupted(self) -> None:
        assert await asyncio.to_thread(self._may_come.wait, 30)

    def interrupt(self, job: Callable[[], T], *, operations: int = 0) -> asyncio.Future[T]:
        found = super().interrupt(job, operations=operations)
        self._has_come.set()
        return found

    def give_way(self) -> None:
        self.count += 1
        if self.count - 1 == self._place:
            self._may_come.set()
            assert self._has_come.wait(30)
            self.in_backward.append(torch._C._current_graph_task_id() != -1)
            super().give_way()


@pytest.fixture
def interruptible(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that may be interrupted is, whatever it is expected to take."""
    monkeypatch.setattr(Scheduler, "_can_interrupt", lambda *_: True)


def a_batcher(worker: Worker, *observers: OnWork) -> Batcher:
    return Batcher(worker, RecordingStore(), Scheduler(DeviceLimits(), time.monotonic), observers=observers)


async def ask(batcher: Batcher, name: str, plan: Plan) -> RunResult:
    return await batcher.run(Ticket(Caller(name=name)), plan, WORLD.decoder, {}, lambda result: result)


def values(result: RunResult) -> list[torch.Tensor]:
    recording = result.recording
    return [one[site] for one in (recording.taps.values, *recording.passes) for site in sorted(one, key=str)]


async def alone(plan: Plan) -> tuple[list[torch.Tensor], int]:
    """What *plan* records alone, and how often it gives way."""
    worker = Slow(-1)  # never
    try:
        return values(await ask(a_batcher(worker), "alone", plan)), worker.count
    finally:
        await worker.close()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("place", "in_backward"), [(0, False), (9, False), (-3, True), (-1, True)])
async def test_each_gets_what_it_gets_alone(place: int, in_backward: bool) -> None:
    """Wherever it gives way, in the backward pass too; and each is told of its own passes."""
    _, count = await alone(LARGE)
    worker = Slow(range(count)[place])
    batcher = a_batcher(worker)
    large = asyncio.create_task(ask(batcher, "large", LARGE))
    await worker.may_be_interrupted()
    found = await ask(batcher, "small", SMALL)
    results = [await large, found]
    assert worker.in_backward == [in_backward]
    for result, plan in zip(results, (LARGE, SMALL), strict=True):
        expected, _ = await alone(plan)
        assert len(expected) == len(values(result)) > 0
        assert all(map(torch.equal, values(result), expected))
        assert (result.statistics.forward_passes, result.statistics.backward_passes) == (1, 1)
    await batcher.close()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("place", [0, -1])
async def test_each_is_told_its_own_time(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """By a clock that stands still but for the small one: in the midst of the large one, forward and backward."""
    clock = Clock()
    monkeypatch.setattr("dst_grpc.pipeline.own_time.time", clock)
    _, count = await alone(LARGE)
    worker, heard = Slow(range(count)[place]), list[WorkDone]()
    batcher = a_batcher(worker, heard.append)
    large, small = (Ticket(Caller(name=name)) for name in ("large", "small"))

    def takes_long(result: RunResult) -> RunResult:
        clock.now += 1000
        return result

    running = asyncio.create_task(batcher.run(large, LARGE, WORLD.decoder, {}, lambda result: result))
    await worker.may_be_interrupted()
    await batcher.run(small, SMALL, WORLD.decoder, {}, takes_long)
    assert (await running).statistics.pass_duration == 0
    assert (large.timeline.seconds[Stage.PASS], large.timeline.seconds[Stage.DERIVE]) == (0, 0)
    assert (small.timeline.seconds[Stage.PASS], small.timeline.seconds[Stage.DERIVE]) == (0, 1000)
    assert [work.jobs[0].caller for work in heard] == ["small", "large"]
    assert [(one.forward_seconds, one.backward_seconds) for work in heard for one in work.passes] == [(0, 0)] * 2
    await batcher.close()


@pytest.mark.usefixtures("interruptible")
async def test_a_step_is_told_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("dst_grpc.pipeline.own_time.time", clock)
    worker = Slow(0)
    batcher = a_batcher(worker)
    large, small = (Ticket(Caller(name=name)) for name in ("large", "small"))

    def step() -> None:
        clock.now += 1
        batcher.giving_way(never_cancelled)()

    def interrupting() -> None:
        clock.now += 1000

    running = asyncio.create_task(batcher.step(large, "tiny", Work.PATCH_STEP, step, 1))
    await worker.may_be_interrupted()
    await batcher.step(small, "tiny", Work.PATCH_STEP, interrupting, 1)
    await running
    assert [one.timeline.seconds[Stage.DERIVE] for one in (large, small)] == [1, 1000]
    await batcher.close()


async def test_what_takes_longer_than_expected_is_interrupted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else need ask for that."""
    monkeypatch.setattr("dst_grpc.pipeline.batching._LOOK_SECONDS", 0.0)
    refusals = iter([False, False])
    monkeypatch.setattr(Scheduler, "_can_interrupt", lambda *_: next(refusals, True))
    worker = Slow(0)
    batcher = a_batcher(worker)
    large = asyncio.create_task(ask(batcher, "large", LARGE))
    await worker.may_be_interrupted()
    await ask(batcher, "small", SMALL)
    await large
    assert worker.in_backward == [False]
    await batcher.close()
