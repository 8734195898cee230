"""A device whose scheduler is under test, and which runs what that starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dst_grpc.domain.callers import Caller, Grant, Priority
from dst_grpc.domain.urgency import Urgency
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.jobs import Batch, Job
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.rates import Rate
from dst_grpc.pipeline.scheduler import Scheduler
from dst_grpc.pipeline.turns import Flow
from tests.unit.pipeline.simulated import Clock

RATE = Rate(0.001)
"""A unit is a millisecond."""


class Device:
    """A scheduler and the device that it is for; jobs take what they are estimated to take, or as told."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.charged: defaultdict[str, float] = defaultdict(float)
        self.scheduler = Scheduler(DeviceLimits(**limits), self.clock, self._charge)

    def _charge(self, caller: str, seconds: float) -> None:
        self.charged[caller] += seconds

    def ticket(self, name: str, peak_bytes: int = 0, grant: Grant | None = None, **urgency: Any) -> Ticket:
        ticket = Ticket(Caller(name=name), Urgency(**urgency), grant or Grant())
        ticket.peak_bytes = peak_bytes
        return ticket

    def add(self, name: str, millis: int = 10, *, ticket: Ticket | None = None, **fields: Any) -> Job:
        job = Job(ticket=ticket or self.ticket(name), rate=RATE, units=millis, **fields)
        self.scheduler.add(job)
        return job

    def flow(self, name: str) -> Flow:
        flow = self.scheduler._turns.find((name, Priority.INTERACTIVE))
        assert flow is not None
        return flow

    def start(self) -> Batch:
        batch = self.scheduler.start()
        assert batch is not None
        return batch

    def run(self, seconds: float | None = None, *, release: bool = True) -> list[Job]:
        """The jobs of one batch, which takes as long as estimated unless *seconds* are given."""
        batch = self.start()
        self.clock.now += batch.cost if seconds is None else seconds
        self.scheduler.finish(batch, ())
        if release:
            for job in batch.jobs:
                self.scheduler.memory.release(job.ticket)
        return batch.jobs

    def interrupt(self) -> Batch | None:
        """What interrupts the running batch now, if anything does; it takes as long as estimated."""
        batch = self.scheduler.interrupt()
        if batch is not None:
            assert batch.interrupts is not None
            batch.started = self.clock.now
            self.clock.now += batch.cost
            batch.interrupts.interrupted += batch.cost
            self.scheduler.finish(batch, ())
        return batch

    def order(self, count: int) -> list[str]:
        """Whose jobs run next, one after the other."""
        found: list[str] = []
        while len(found) < count:
            found += [job.ticket.caller.name for job in self.run()]
        return found


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.ticket.caller.name for job in jobs]
