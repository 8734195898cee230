"""Batching: the jobs that wait for one device, run as its scheduler chooses, those of a group together.

Plans of a batch are right-padded. No plan is delayed to be batched: plans queue while a batch runs. A plan whose
recording is still kept runs nothing. If a batch fails, each of its plans is run again alone, so that only the faulty
one fails. A batch continues as long as any of its callers waits. While one runs, a small job of another caller may run
in its midst, wherever it gives way: at its checks. Used on the event loop; jobs run on the worker's thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dst_grpc.domain.readings import DeviceReading, MemoryKind, MemoryReading
from dst_grpc.domain.results import RunStatistics
from dst_grpc.domain.timeline import Stage
from dst_grpc.engine.cancellation import cancelled
from dst_grpc.errors import Cancelled, DeadlineExceeded, require
from dst_grpc.failures import failure_of, is_out_of_memory
from dst_grpc.pipeline.arrangement import nothing_kept
from dst_grpc.pipeline.awaited import Awaited, Pass, Step, Stretch, check_wanted, fail, note_stages, work_done
from dst_grpc.pipeline.directions import naming
from dst_grpc.pipeline.own_time import Timer
from dst_grpc.pipeline.rates import Rates, Work
from dst_grpc.pipeline.run import RunResult, run
from dst_grpc.pipeline.worker import stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.results import MadeAnswer, RunSummary
    from dst_grpc.domain.work import OnWork, PassesDone
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.arrangement import Kept
    from dst_grpc.pipeline.door import Ticket
    from dst_grpc.pipeline.jobs import Batch
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.scheduler import Scheduler
    from dst_grpc.pipeline.store import RecordingStore
    from dst_grpc.pipeline.worker import Worker
    from dst_grpc.scalars.explained_model import AutoencoderSet

T = TypeVar("T")

_NOTHING = RunStatistics(forward_passes=0, backward_passes=0)
_LOOK_SECONDS = 0.1
"""How often it is looked, while something waits, for readers that have stalled, for what has become too late, and for
what may interrupt a batch that takes longer than was expected."""
_REST_SECONDS = 10.0
"""How long nothing must have run before freed memory is returned, as in jemalloc: the next job pays for getting it
again."""


@dataclass(slots=True, eq=False)
class _Running:
    """A batch that runs."""

    batch: Batch
    jobs: list[Awaited]
    """Its jobs."""
    passes: list[PassesDone] = field(default_factory=list)
    """What was done. Added to on the worker's thread."""


class Batcher:
    """Runs the jobs of one device."""

    def __init__(
        self,
        worker: Worker,
        store: RecordingStore,
        scheduler: Scheduler,
        observers: Sequence[OnWork] = (),
        at_rest: Callable[[], None] | None = None,
    ) -> None:
        """Run on *worker*, in the order of *scheduler*; keep and look for recordings in *store*, which only the
        worker's thread changes. Tell *observers* what was done. Once nothing has run for a while, *at_rest* does, on
        the worker's thread."""
        self.worker = worker
        """What runs the jobs."""
        self.store = store
        """What is kept."""
        self._observers = observers
        self.scheduler = scheduler
        """What waits for the device."""
        self._rates = Rates()
        self._is_waking = self._is_closed = False
        self._looking: asyncio.TimerHandle | None = None
        """When to look again, if something waits."""
        self._at_rest = at_rest
        self._resting: asyncio.TimerHandle | None = None
        """When to see whether the device rests, if anything has run since it did."""

    @property
    def reading(self) -> DeviceReading:
        """What the device does, and what waits for it. May be read on any thread."""
        scheduler, store, device = self.scheduler, self.store, self.worker.device
        runs, kept = scheduler.memory, MemoryKind.STORE
        return DeviceReading(
            device=device,
            waiting=scheduler.counts,
            oldest_seconds=scheduler.oldest_wait,
            expected_wait=scheduler.expected_wait,
            busy_seconds=self.worker.busy_seconds,
            store_hits=store.n_found + store.n_answered,
            store_misses=store.n_missed,
            memory=(
                MemoryReading(
                    kind=MemoryKind.RUNS, device=device, used_bytes=runs.used_bytes, limit_bytes=runs.limit_bytes
                ),
                MemoryReading(kind=kept, device=device, used_bytes=store.byte_count, limit_bytes=store.budget_bytes),
            ),
        )

    def check(self, ticket: Ticket, plans: Sequence[Plan], steps: Work, n_steps: int) -> None:
        """Raise unless a request can be served before its deadline; see `Scheduler.check`.

        Args:
            ticket: the request's.
            plans: its plans.
            steps: what the steps of its answer are.
            n_steps: how many there are besides the first, which runs with the pass; approximately.
        """
        model = plans[0].model.name
        cost = self._rates.of(model, steps).seconds(n_steps)
        for plan in plans:
            kind, units = self._work_of(ticket, plan)
            cost += self._rates.of(model, kind).seconds(units)
        self.scheduler.check(ticket, cost)

    async def run(
        self,
        ticket: Ticket,
        plan: Plan,
        decoder: Decoder,
        sets: Mapping[str, AutoencoderSet],
        then: Callable[[RunResult], T],
    ) -> T:
        """Run *plan*; a caller that is cancelled before its batch is formed is left out of it; a later one gets no
        result.

        Args:
            ticket: the request's; its memory is taken once the first of its plans runs, until `release`.
            plan: what to run.
            decoder: the model.
            sets: the autoencoders that the plan uses, by name.
            then: applied to the result on the worker's thread.

        Returns:
            The result of *then*.

        Raises:
            DeadlineExceeded: it waited until there was too little time left before its deadline.
            Unavailable: (DRAINING) if the device is closed.
        """
        kind, units = self._work_of(ticket, plan)
        job = Pass(
            ticket=ticket,
            rate=self._rates.of(plan.model.name, kind),
            units=units,
            group=(id(decoder), tuple(info.name for info in plan.spliced), plan.run.propagation),
            n_tokens=max(len(plan.token_ids), 1),
            operations=plan.cost.floating_point_operations,
            plan=plan,
            decoder=decoder,
            sets=sets,
            then=then,
            is_stored=kind is Work.STORED,
        )
        return await self._result_of(job)

    async def step(self, ticket: Ticket, model: str, kind: Work, work: Callable[[], T], operations: int) -> T:
        """Run *work*, a step of an answer of *model*; raises as `run`, and what *work* raises."""
        rate = self._rates.of(model, kind)
        return await self._result_of(Step(ticket=ticket, rate=rate, is_step=True, operations=operations, work=work))

    def kept_answer(self, plan: Plan, caller: Caller) -> MadeAnswer | None:
        """The answer to *plan* that *caller* may find, if it is kept."""
        return self.store.answer(plan, caller)

    def made(
        self,
        ticket: Ticket,
        plan: Plan,
        parts: Sequence[Any],
        summary: RunSummary,
        make: Callable[[Sequence[Any]], MadeAnswer | None],
    ) -> MadeAnswer | None:
        """What *make* makes of *parts* and *summary*, the whole answer to *plan*. On the worker's thread.

        If it took no pass, it is kept for when the same is asked again, when it will take nothing.
        """
        answer = make([*parts, summary])
        if answer is not None and not summary.statistics.forward_passes:
            again = require(make([*parts, replace(summary, statistics=_NOTHING)]))
            self.store.keep_answer(plan, again, ticket.caller)
        return answer

    def shrink(self, ticket: Ticket, n_bytes: int) -> None:
        """Give back what a request takes beyond *n_bytes*, now that its passes are over."""
        self.scheduler.memory.shrink(ticket, n_bytes)
        self._wake()

    def release(self, ticket: Ticket) -> None:
        """Give the memory of a request back, now that nothing of its runs is needed any more."""
        self.scheduler.memory.release(ticket)
        self._wake()

    async def close(self) -> None:
        """Refuse what waits, let the running batch end, and stop the worker."""
        self._is_closed = True
        for timer in (self._looking, self._resting):
            if timer is not None:
                timer.cancel()
        for job in self.scheduler.clear():
            fail(job, stopping())
        await self.worker.close()

    def _work_of(self, ticket: Ticket, plan: Plan) -> tuple[Work, int]:
        """What *plan* is to the device, and how much of it."""
        if self.store.holds(plan, ticket.caller):
            return Work.STORED, 1
        return Work.GRADIENT if plan.gradients else Work.FORWARD, max(plan.cost.floating_point_operations, 1)

    async def _result_of(self, job: Awaited) -> Any:
        if self._is_closed:
            raise stopping()
        self.scheduler.add(job)
        self._wake()
        try:
            return await job.result
        finally:
            if job.is_waiting:  # its caller was cancelled
                self.scheduler.remove(job)
                self._wake()

    def _wake(self) -> None:
        """Start what can run, once all who are about to ask in this round of the event loop have asked."""
        if not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_waking = False
        for late in self.scheduler.drop_late():
            fail(late, DeadlineExceeded("the request waited until there was too little time left before its deadline"))
        batch = self.scheduler.start() or self.scheduler.interrupt()
        self._relieve()
        if batch is None:
            return
        running = _Running(batch, [job for job in batch.jobs if isinstance(job, Awaited)])
        operations = sum(job.operations for job in running.jobs)
        run = self.worker.submit if batch.interrupts is None else self.worker.interrupt
        run(partial(self._run, running), operations=operations).add_done_callback(partial(self._finish, running))

    def _relieve(self) -> None:
        """Give up readers that have stalled while others wait for the memory that they hold; look again in a while."""
        for ticket in self.scheduler.in_the_way():
            require(ticket.urgency.reader).give_up()
        if self._looking is None and not self.scheduler.is_idle:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self._is_closed:
            self._wake()

    def _await_rest(self) -> None:
        if self._at_rest is not None and self._resting is None and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._resting = loop.call_later(_REST_SECONDS, self._rest, self._at_rest, self.worker.busy_seconds)

    def _rest(self, at_rest: Callable[[], None], busy_seconds: float) -> None:
        """Run *at_rest* if nothing has run since the device had been busy for *busy_seconds*."""
        self._resting = None
        if self.worker.busy_seconds > busy_seconds:
            self._await_rest()
        else:
            self.worker.submit(at_rest)

    def _finish(self, running: _Running, done: asyncio.Future[Sequence[object]]) -> None:
        self._await_rest()
        jobs = running.jobs
        self.scheduler.finish(running.batch, [job for job in jobs if job.as_estimated])
        note_stages(jobs)
        self._tell(running)
        error = stopping() if done.cancelled() else done.exception()
        results = done.result() if error is None else [failure_of(error)] * len(jobs)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                fail(job, result)
            elif not job.is_over:
                job.result.set_result(result)
        self._wake()

    def _tell(self, running: _Running) -> None:
        """Tell observers what was done."""
        if self._observers:
            work = work_done(self.worker.device, running.batch.started, running.jobs, running.passes)
            for observer in self._observers:
                observer(work)

    # On the worker's thread

    def giving_way(self, check: Check) -> Check:
        """*check* for work on the worker's thread, which may be interrupted wherever it is made."""

        def give_way() -> None:
            check()
            self.worker.give_way()

        return give_way

    def _run(self, running: _Running) -> list[object]:
        """The results of jobs: of a single step, or of plans."""
        timer, batch = Timer(), running.batch
        if batch.interrupts is None:
            return self._results(running, timer)
        batch.started = timer.begun
        try:
            return self._results(running, timer)
        finally:
            batch.interrupts.interrupted += timer.seconds

    def _results(self, running: _Running, timer: Timer) -> list[object]:
        passes = [job for job in running.jobs if isinstance(job, Pass)]
        if passes:
            return self._run_passes(passes, timer, running.passes)
        (step,) = (job for job in running.jobs if isinstance(job, Step))
        step.as_estimated = True
        outcome = self._outcome(step.work)
        step.stages.append(Stretch.of(Stage.DERIVE, timer))
        return [outcome]

    def _run_passes(self, batch: Sequence[Pass], timer: Timer, done: list[PassesDone]) -> list[object]:
        """Plans without a kept recording run as one batch, or, if that fails, one by one; *done* is added to."""
        results: dict[int, RunResult | Exception] = {}
        for i, job in enumerate(batch):
            recording = self.store.find(job.plan, job.ticket.caller)
            if recording is not None:
                job.as_estimated = job.is_stored
                results[i] = RunResult(job.plan, job.decoder, job.sets, recording, batches=())
        new = [i for i in range(len(batch)) if i not in results]
        results |= dict(zip(new, self._run_new([batch[i] for i in new], done), strict=True))
        ran = Stretch.of(Stage.PASS, timer)
        for i in new:
            batch[i].stages.append(ran)
        return [self._finished(job, results[i], timer.begun) for i, job in enumerate(batch)]

    def _run_new(self, batch: Sequence[Pass], done: list[PassesDone]) -> Sequence[RunResult | Exception]:
        """The results of a batch; if it fails, of each of its plans alone. Recordings give way to a plan that has no
        memory."""
        n_kept = self.store.byte_count
        try:
            return self._ran(batch, done)
        except Cancelled:
            return [cancelled() for _ in batch]  # without the traceback, whose frames would keep tensors alive
        except BaseException as error:  # noqa: BLE001  whatever it is, it is one caller's, who gets it
            told = self._told(error)
        if len(batch) > 1:
            return [result for job in batch for result in self._run_new([job], done)]
        return self._run_new(batch, done) if self.store.byte_count < n_kept else [told]

    def _ran(self, batch: Sequence[Pass], done: list[PassesDone]) -> Sequence[RunResult]:
        if not batch:
            return []
        sets = {name: found for job in batch for name, found in job.sets.items()}
        plans = [self.store.widened(job.plan) for job in batch]
        check, max_tokens = self.giving_way(partial(check_wanted, batch)), self.scheduler.max_batch_tokens
        with naming(batch[0].plan.direction_paths):  # a batch of several fails for none of them
            found = run(plans, batch[0].decoder, sets, check, max_tokens=max_tokens, kept=self._kept(batch))
        done += (one.done for one in dict.fromkeys(one for result in found for one in result.batches))
        results = []
        for job, result in zip(batch, found, strict=True):
            job.as_estimated, job.n_run = not job.is_stored, job.n_tokens
            recording = result.recording
            if result.batch_size > 1:  # or each answer would hold the tensors of all
                recording = recording.alone()
            self.store.keep(job.plan, recording, job.ticket.caller)
            results.append(replace(result, plan=job.plan, recording=recording))
        return results

    def _kept(self, batch: Sequence[Pass]) -> Kept:
        """What is kept of runs that plans of *batch* read; nothing if it is of several callers."""
        caller = batch[0].ticket.caller
        if any(job.ticket.caller.name != caller.name for job in batch):
            return nothing_kept
        return partial(self.store.values_of, batch[0].plan, caller=caller)

    def _finished(self, job: Pass, result: RunResult | Exception, started: float) -> object:
        """The caller's result, after its *then*, or its error."""
        if isinstance(result, Exception) or job.is_over:
            return result
        timer = Timer()
        outcome = self._outcome(lambda: job.then(replace(result, queue_duration=started - job.since)))
        job.stages.append(Stretch.of(Stage.DERIVE, timer))
        return outcome

    def _outcome(self, work: Callable[[], Any]) -> object:
        """What *work* gives, or its error, which is the caller's alone."""
        try:
            return work()
        except BaseException as error:  # noqa: BLE001  likewise
            return self._told(error)

    def _told(self, error: BaseException) -> Exception:
        """What is told of *error*; if memory ran out, the recordings give way."""
        failure = failure_of(error)
        if is_out_of_memory(failure):
            self.store.clear()
        return self.worker.translated(failure)
