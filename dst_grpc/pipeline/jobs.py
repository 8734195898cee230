"""Jobs: pieces of requests' work that a device runs, and those that run together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from dst_grpc.pipeline.door import Ticket
    from dst_grpc.pipeline.rates import Rate


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A piece of a request's work that runs on the device: a pass, or a step of its answer."""

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
