"""Jobs: pieces of requests' work that a device runs without a break; those that run together, and those that wait."""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import Priority
from dst_grpc.pipeline.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from dst_grpc.pipeline.door import Ticket

    FlowKey = tuple[str, Priority]

_MOST_PACE = 8.0
"""No caller's requests are expected to take longer than so many times what the queue shows."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A piece of a request's work that runs on the device without a break: a pass, or a step of its answer."""

    ticket: Ticket
    """Its request's."""
    rate: Rate
    """How long its kind of work takes."""
    units: int = 1
    """How much of it there is, in the units of the rate; at least 1."""
    group: Hashable | None = None
    """Jobs of the same group can run as one batch; None = it runs alone."""
    n_tokens: int = 1
    """Length of its prompt, which is padded to the longest of its batch."""
    is_step: bool = False
    """Whether it is a step of an answer that has begun."""
    since: float = field(default=0.0, init=False)
    """When it began to wait."""
    cost: float = field(default=0.0, init=False)
    """Device seconds that it is estimated to take, while it waits."""
    took: float = field(default=0.0, init=False)
    """Its part of the seconds that its batch took."""
    has_waited: bool = field(default=False, init=False)
    """Whether the device was busy when it came."""
    is_waiting: bool = field(default=False, init=False)
    """Whether it is in the queue."""

    def goes_with(self, others: Sequence[Job]) -> bool:
        """Whether it can run with *others*, which are of its group."""
        del others
        return True


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs that run together."""

    started: float
    """When it was formed; of one that interrupts another, when it began to run."""
    interrupts: Batch | None = None
    """The batch in whose midst it runs, if any."""
    interrupted: float = 0.0
    """Seconds for which others have run in its midst. Changed on the device's thread."""
    jobs: list[Job] = field(default_factory=list)
    """The jobs."""
    cost: float = 0.0
    """Seconds that it is estimated to take."""
    n_tokens: int = 0
    """Tokens of its prompts."""
    longest: int = 0
    """Tokens of the longest."""

    def add(self, job: Job) -> None:
        """Let *job* run with the others."""
        self.jobs.append(job)
        self.cost += job.cost
        self.n_tokens += job.n_tokens
        self.longest = max(self.longest, job.n_tokens)

    def padded_with(self, job: Job) -> int:
        """Its tokens, pads included, if *job* ran with it."""
        return max(self.longest, job.n_tokens) * (len(self.jobs) + 1)


class Flow:
    """The waiting jobs of one caller and class, and what it may still use of the device in its turn.

    Steps of answers that have begun go before passes, as they hold memory.
    """

    __slots__ = ("_pace", "_passes", "_steps", "deficit", "is_sparse", "key", "seconds", "weight")

    def __init__(self, key: FlowKey) -> None:
        """Start empty."""
        self.key = key
        self.is_sparse = key[1] is Priority.INTERACTIVE
        """Whether it has not had a turn since something of it waits: it lives on what it had saved, ahead of the
        others."""
        self.weight = 1.0
        """Its part of the device while others wait too, relative to theirs."""
        self.deficit = 0.0
        """Device seconds that it may use; below zero, those that it has to make up for."""
        self.seconds = 0.0
        """Estimated cost of all its jobs."""
        self._pace = Rate(1.0)
        self._steps: deque[Job] = deque()
        self._passes: deque[Job] = deque()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._steps) + len(self._passes)

    def __iter__(self) -> Iterator[Job]:
        """The jobs in their order."""
        return chain(self._steps, self._passes)

    @property
    def head(self) -> Job | None:
        """The job that is next."""
        queue = self._steps or self._passes
        return queue[0] if queue else None

    @property
    def pace(self) -> float:
        """How much longer its requests take than is expected of what waits when they come: others come meanwhile."""
        return min(max(self._pace.seconds(1.0), 1.0), _MOST_PACE)

    def note_wait(self, job: Job, now: float, quantum: float) -> None:
        """Learn how long a request took from its arrival to its first answer, or to when it was given up.

        What should have taken less than a *quantum* counts as that: of such short times a pause of the machine's, and
        not who came meanwhile, makes hundreds of what was expected.
        """
        if job.ticket.expected:
            self._pace.note(max(job.ticket.expected, quantum), now - job.since)
            job.ticket.expected = 0.0

    @property
    def waits_since(self) -> float:
        """When the job that has waited longest began to; infinite if none waits. May be read on any thread."""
        oldest = math.inf
        for queue in (self._steps, self._passes):
            with suppress(IndexError):  # it began to run meanwhile
                oldest = min(oldest, queue[0].since)
        return oldest

    @property
    def next_pass(self) -> Job | None:
        """The pass that is next, after all steps."""
        return self._passes[0] if self._passes else None

    def add(self, job: Job) -> None:
        """Let *job* wait."""
        (self._steps if job.is_step else self._passes).append(job)
        job.is_waiting = True
        self.seconds += job.cost

    def remove(self, job: Job) -> None:
        """Take *job* out, which waits."""
        (self._steps if job.is_step else self._passes).remove(job)
        job.is_waiting = False
        self.seconds = self.seconds - job.cost if len(self) else 0.0

    def similar(self, first: Job, count: int) -> Iterator[Job]:
        """Jobs of the group of *first*, among the next *count*; those of the nearest length first."""
        near = [job for job in islice(self, count) if job.group == first.group]
        yield from sorted(near, key=lambda job: abs(job.n_tokens - first.n_tokens))
