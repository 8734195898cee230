"""A simulated device and its callers, to see what a scheduler makes of a load without waiting for it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.urgency import Urgency
from dst_grpc.errors import Exhausted
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.jobs import Batch, Job
from dst_grpc.pipeline.rates import Rate
from dst_grpc.pipeline.scheduler import Scheduler

SMALL, LARGE = 0.010, 0.080
"""Device seconds of the two kinds of requests."""
P_LARGE = 0.2
SECONDS_OF_A_TOKEN = SMALL / 16
OVERHEAD = 0.004
"""Of each batch."""
DEADLINE = 2.0
GREEDY = "greedy"
UNITS = 1_000_000


class Clock:
    """Seconds that pass only when it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ends:
    """What became of one caller's requests."""

    sent: int = 0
    refused: int = 0
    late: int = 0
    """Dropped, as their deadline passed while they waited."""
    seconds: list[float] = field(default_factory=list)
    """From arrival to end, of those that ran."""

    @property
    def in_time(self) -> float:
        """Part of all that ended before its deadline."""
        return sum(one <= DEADLINE for one in self.seconds) / self.sent


@dataclass
class Result:
    """What became of all."""

    ends: dict[str, Ends]
    useful: float
    """Work that ended before its deadline, in device seconds a second."""

    def of(self, names: Sequence[str]) -> Ends:
        """Of some callers together."""
        found = Ends()
        for name in names:
            one = self.ends[name]
            found.sent += one.sent
            found.refused += one.refused
            found.late += one.late
            found.seconds += one.seconds
        return found


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def arrivals(offered: dict[str, float], seconds: float, seed: int) -> list[tuple[float, str, float]]:
    """When which caller asks for how much, with Poisson arrivals; *offered* are device seconds a second."""
    found = []
    mean = SMALL * (1 - P_LARGE) + LARGE * P_LARGE
    for name, load in offered.items():
        now, chance = 0.0, random.Random(f"{name} {seed}")
        while (now := now + chance.expovariate(load / mean)) < seconds:
            found.append((now, name, LARGE if chance.random() < P_LARGE else SMALL))
    return sorted(found)


def simulate(
    offered: dict[str, float],
    make: Callable[[Clock], Scheduler],
    *,
    seconds: float = 200.0,
    seed: int = 1,
    bytes_of: Callable[[float], int] = lambda _: 0,
) -> Result:
    """Serve *offered* for a while."""
    clock = Clock()
    scheduler, rate = make(clock), Rate(1 / UNITS)
    coming = arrivals(offered, seconds, seed)
    ends: dict[str, Ends] = defaultdict(Ends)
    useful, busy_until, i = 0.0, None, 0
    batch = Batch(0.0)
    cost_of: dict[Job, float] = {}
    asked: dict[Job, float] = {}
    while i < len(coming) or busy_until is not None:
        if busy_until is None or (i < len(coming) and coming[i][0] <= busy_until):
            clock.now, name, cost = coming[i]
            i += 1
            ends[name].sent += 1
            ticket = Ticket(Caller(name=name), Urgency(deadline=clock.now + DEADLINE))
            ticket.peak_bytes = bytes_of(cost)
            try:
                scheduler.check(ticket, rate.seconds(int(cost * UNITS)))
            except Exhausted:
                ends[name].refused += 1
                continue
            n_tokens = round(cost / SECONDS_OF_A_TOKEN)
            job = Job(ticket=ticket, rate=rate, units=int(cost * UNITS), group="the only one", n_tokens=n_tokens)
            cost_of[job], asked[job] = cost, clock.now
            scheduler.add(job)
        else:
            clock.now, busy_until = busy_until, None
            scheduler.finish(batch, batch.jobs)
            for job in batch.jobs:
                took = clock.now - asked[job]
                ends[job.ticket.caller.name].seconds.append(took)
                useful += cost_of[job] if took <= DEADLINE and clock.now < seconds else 0.0
                scheduler.memory.release(job.ticket)
        if busy_until is None:
            for job in scheduler.drop_late():
                ends[job.ticket.caller.name].late += 1
            started = scheduler.start()
            if started is not None:
                batch = started
                busy_until = clock.now + OVERHEAD + sum(cost_of[job] for job in batch.jobs)
    assert not any(scheduler.counts.values())
    return Result(dict(ends), useful / seconds)


def greedy_and_polite(load: float) -> tuple[dict[str, float], list[str]]:
    """One greedy caller that offers ten times as much as each of five polite ones, *load* together."""
    polite = [f"polite {i}" for i in range(5)]
    return {GREEDY: load * 10 / 15} | dict.fromkeys(polite, load / 15), polite
