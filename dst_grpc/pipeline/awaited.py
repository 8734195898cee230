"""Jobs that somebody waits for, and what is told of them: to who waits, to their timelines, and to observers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dst_grpc.domain.timeline import Stage
from dst_grpc.domain.work import JobDone, WorkDone
from dst_grpc.engine.cancellation import cancelled
from dst_grpc.pipeline.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.domain.work import PassesDone
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.own_time import Timer
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.run import RunResult
    from dst_grpc.scalars.explained_model import AutoencoderSet


class Stretch(NamedTuple):
    """A time on the worker's thread."""

    stage: Stage
    """What it was for."""
    begun: float
    """When it began."""
    ended: float
    """When it ended."""
    seconds: float
    """How long it was without what interrupted it."""

    @classmethod
    def of(cls, stage: Stage, timer: Timer) -> Stretch:
        """That which *timer* has timed until now."""
        return cls(stage, timer.begun, time.monotonic(), timer.seconds)


@dataclass(slots=True, eq=False, kw_only=True)
class Awaited(Job):
    """A job that somebody waits for."""

    operations: int
    """Its approximate floating-point operations."""
    n_run: int = 0
    """Tokens of its prompt that ran; 0 unless it is a pass that was not found in the store. Set on the worker's
    thread."""
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """What it comes to."""
    stages: list[Stretch] = field(default_factory=list)
    """What it went through on the worker's thread; set there."""
    as_estimated: bool = False
    """Whether the work was done that its cost was estimated of: no pass was cancelled, or found in the store. Set on
    the worker's thread."""

    @property
    def is_over(self) -> bool:
        """Whether its caller was cancelled, or has the answer. Thread-safe."""
        return self.result.done()


@dataclass(slots=True, eq=False, kw_only=True)
class Pass(Awaited):
    """A plan to run."""

    plan: Plan
    """The plan."""
    decoder: Decoder
    """The model."""
    sets: Mapping[str, AutoencoderSet]
    """The autoencoders that the plan uses, by name."""
    then: Callable[[RunResult], Any]
    """Applied to the result on the worker's thread."""
    is_stored: bool
    """Whether a kept recording is expected to answer it."""

    def goes_with(self, others: Sequence[Job]) -> bool:
        """Unless a reload of the registry has given a name to another set meanwhile."""
        known = [other.sets for other in others if isinstance(other, Pass)]
        return all(sets.get(name, one) is one for sets in known for name, one in self.sets.items())


@dataclass(slots=True, eq=False, kw_only=True)
class Step(Awaited):
    """A step of an answer."""

    work: Callable[[], Any]
    """Does it, on the worker's thread."""


def note_stages(jobs: Sequence[Awaited]) -> None:
    """Tell the timelines of *jobs*, which ran together, what they went through."""
    passes = [(job, one) for job in jobs for one in job.stages if one.stage is Stage.PASS]
    batch = None
    if passes:
        first, ran = passes[0]
        timelines = [job.ticket.timeline for job, _ in passes]
        facts = {"prompts": len(passes), "tokens": sum(job.n_tokens for job, _ in passes)}
        model = first.ticket.timeline.model
        told = (one.batch(timelines, ran.begun, ran.ended, model=model, **facts) for one in timelines)
        batch = next(filter(None, told), None)
    for job in jobs:
        timeline = job.ticket.timeline
        if job.stages:
            timeline.note(Stage.QUEUE, job.since, job.stages[0].begun)
        for one in job.stages:
            own = batch if one.stage is Stage.PASS else None
            timeline.note(one.stage, one.begun, one.ended, seconds=one.seconds, batch=own)


def work_done(device: str, started: float, jobs: Sequence[Awaited], passes: Sequence[PassesDone]) -> WorkDone:
    """What observers are told of *jobs*, which ran together from *started* on, in *passes*."""
    done = tuple(
        JobDone(
            job.ticket.caller.name,
            job.ticket.priority,
            job.ticket.timeline.model,
            job.is_step,
            job.since,
            job.took,
            job.n_run,
            job.ticket.timeline.exemplar,
        )
        for job in jobs
    )
    return WorkDone(device, started, done, tuple(passes))


def fail(job: Job, error: Exception) -> None:
    """Tell who waits for *job* that it failed, if anybody still does."""
    if isinstance(job, Awaited) and not job.is_over:
        job.result.set_exception(error)


def check_wanted(batch: Sequence[Pass]) -> None:
    """Raise Cancelled if all callers of *batch* have been cancelled."""
    for job in batch:
        if not job.is_over:
            return
    raise cancelled()
