"""The scheduler: which of the waiting jobs a device runs next, and which requests it refuses.

A batch begins with the job whose turn it is (`turns`), and is filled up with jobs that can run together with it, of
every caller in turn; their callers are charged too. A job is a pass, or a step of an answer that has begun: steps are
charged alike, so that a long answer does not keep the device from others. Nor does a long pass: a small job of a caller
who goes before others may interrupt it.

Pure logic: nothing runs or waits here, and the clock is an argument. Used on the event loop only, but for
`expected_wait`, `oldest_wait` and `counts`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import Priority
from dst_grpc.errors import Exhausted, Reason, require
from dst_grpc.pipeline.jobs import Batch
from dst_grpc.pipeline.memory_shares import MemoryShares
from dst_grpc.pipeline.turns import Turns, key_of, weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from dst_grpc.pipeline.door import Ticket
    from dst_grpc.pipeline.jobs import Job
    from dst_grpc.pipeline.limits import DeviceLimits
    from dst_grpc.pipeline.rates import Rate
    from dst_grpc.pipeline.turns import FlowKey

MAX_PADDING = 1.2
"""Tokens of a batch, pads included, over those of its prompts."""

_MOST_OF_TIME = 0.85
"""Part of the time until its deadline in which a request must be expected to be over; the rest is for errors of the
estimate."""
_LEAST_RETRY_SECONDS = 0.05
_BATCH = 0.05, 128
"""Seconds of the longest batch, unless the quantum is longer; and tokens that it may have however long they take. With
few tokens a device fetches weights rather than computes: more of them take hardly longer."""
_BATCH_ALONE = 1.0, 512
"""The same of a caller who is alone: longer batches do more, and keep nobody waiting."""
_ALONE_AFTER_SECONDS = 10.0
"""After so long a caller whom no other has interrupted is alone."""
_SMALL = 0.125
"""Part of the running batch's cost that a job may have which interrupts it, and of which the batch has twice as much
left at least: else the job waits about as long as it runs."""
_MOST_INTERRUPTED = 0.5
"""Part of its cost for which a batch may be interrupted in all."""
_OFFERED = 64
"""Jobs of a caller, the next ones, among which companions of a batch are looked for."""


class Scheduler:
    """The queue of one device, which runs one batch at a time, and at most one in the midst of it."""

    def __init__(
        self, limits: DeviceLimits, clock: Callable[[], float], charge: Callable[[str, float], None] | None = None
    ) -> None:
        """Start empty.

        Args:
            limits: of the device.
            clock: reads seconds, as deadlines do.
            charge: called with the name of a caller and the device seconds that its jobs take, or that are given back.
        """
        self._limits, self._clock, self._charge = limits, clock, charge or _free_of_charge
        self._turns = Turns()
        self.max_batch_tokens = limits.max_batch_tokens
        """Tokens of a batch, pads included."""
        self.memory = MemoryShares(limits.max_run_bytes)
        """What running requests take."""
        self._running: Batch | None = None
        self._interrupting: Batch | None = None
        """What runs in its midst."""
        self._latest: FlowKey | None = None
        self._another_asked_at = -math.inf
        """When last somebody asked who had not asked just before."""

    # At the door

    def check(self, ticket: Ticket, cost: float = 0.0) -> None:
        """Raise unless a request that takes the device for *cost* seconds can be served before its deadline.

        Nobody is refused for time while the device is idle: the estimate may be wrong, and only running corrects it.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if its memory can never be free; (DEADLINE_UNREACHABLE) if it is
                expected to end after its deadline, or too close to it.
        """
        limit = self._limits.max_run_bytes
        if ticket.peak_bytes > limit:
            raise Exhausted(
                f"the request needs about {ticket.peak_bytes} bytes, and may have {limit}; ask for fewer derived"
                " scalars, layers or tokens",
                reason=Reason.MEMORY_BUDGET_EXCEEDED,
                metadata={"estimated_bytes": str(ticket.peak_bytes), "limit_bytes": str(limit)},
            )
        remaining = self._patience(ticket)
        if remaining is None or (self._running is None and not self._n_waiting):
            return
        key = key_of(ticket)
        wait, goes_first = self._wait(key, weight_of(ticket), cost)
        flow = self._turns.find(key)
        if not goes_first:
            ticket.expected = wait
            wait *= flow.pace if flow else 1.0
        if wait > _MOST_OF_TIME * remaining:
            raise Exhausted(
                f"the answer can be expected in {wait:.3g} s, too late for a deadline in {max(remaining, 0.0):.3g} s",
                reason=Reason.DEADLINE_UNREACHABLE,
                retry_after_seconds=max(_LEAST_RETRY_SECONDS, wait - remaining),
                metadata={"expected_seconds": f"{wait:.3f}", "remaining_seconds": f"{max(remaining, 0.0):.3f}"},
            )

    def _patience(self, ticket: Ticket) -> float | None:
        """Seconds that a request may take; None = any number."""
        if ticket.urgency.deadline is not None:
            return ticket.urgency.deadline - self._clock()
        return None if ticket.priority is Priority.BATCH else self._limits.patience

    @property
    def expected_wait(self) -> float:
        """Seconds that a caller of whom nothing waits would wait now for its turn. May be read on any thread."""
        return self._wait(None, 1.0, 0.0)[0]

    def _wait(self, key: FlowKey | None, weight: float, cost: float) -> tuple[float, bool]:
        """Expected seconds until one more job of a flow, of this *weight* and *cost*, is over; and whether it goes
        before those who have a queue.

        Until then the flow's own jobs run, and of every other as much as its turns allow meanwhile, or all that waits.
        """
        quantum, running = self._turns.quantum, self._running
        flows = self._turns.flows
        own = cost + sum(flow.seconds for flow in flows if flow.key == key)
        goes_first, saved = self._turns.credit(key, weight)
        goes_first = goes_first and own <= saved
        wait = 0.0
        if running is not None and not (goes_first and self._can_interrupt(running, key, own)):
            wait = max(self._left_of(running), 0.0)
        for flow in flows:
            turns = flow.deficit
            if not goes_first:
                turns += (max(own - saved, 0.0) + quantum) * flow.weight / weight
            if flow.key != key and (flow.is_sparse or not goes_first):
                wait += max(min(turns, flow.seconds), 0.0)
        return wait + own, goes_first

    def _left_of(self, running: Batch) -> float:
        """Seconds until *running* is expected to be over, if nothing else interrupts it; below 0 if it should be."""
        return running.started + running.cost + running.interrupted - self._clock()

    # The queue

    def add(self, job: Job) -> None:
        """Let *job* wait."""
        job.since, key = self._clock(), key_of(job.ticket)
        job.has_waited = self._running is not None
        job.cost = job.rate.seconds(job.units)
        if self._latest not in {None, key}:
            self._another_asked_at = job.since
        self._latest = key
        self._turns.enter(key, weight_of(job.ticket)).add(job)
        self._charge(job.ticket.caller.name, job.cost)

    def remove(self, job: Job) -> None:
        """Take *job*, which waits, out of the queue."""
        require(self._turns.find(key_of(job.ticket))).remove(job)
        self._charge(job.ticket.caller.name, -job.cost)

    def drop_late(self) -> list[Job]:
        """Take those out of the queue that are next, but would not be over before their deadlines."""
        late = []
        for flow in self._turns.flows:
            while (head := flow.head) is not None and self._is_late(head):
                self.remove(head)
                flow.note_wait(head, self._clock(), self._turns.quantum)
                late.append(head)
        return late

    def _is_late(self, job: Job) -> bool:
        """Whether the deadline of *job* has passed, or, if it is a pass that has waited, would while it ran."""
        deadline, ahead = job.ticket.urgency.deadline, job.cost if job.has_waited and not job.is_step else 0.0
        return deadline is not None and deadline <= self._clock() + ahead

    def clear(self) -> list[Job]:
        """Take all jobs out of the queue."""
        jobs = [job for flow in self._turns.flows for job in flow]
        for job in jobs:
            self.remove(job)
        return jobs

    def start(self) -> Batch | None:
        """The jobs to run now; None if there are none. `finish` must follow before it is called again.

        Requests whose first jobs are among them hold their memory from now on, until `memory.release`.
        """
        is_free = self._running is None and self._interrupting is None
        first = self._first() if is_free else None
        if first is None:
            return None
        batch = self._running = Batch(self._clock())
        n_started = int(self._take(first, batch))
        if first.group is not None:
            for job in self._companions(batch):
                n_started += self._take(job, batch)
        if n_started:
            self.memory.note_passed_over(self._nexts())
        return batch

    def interrupt(self) -> Batch | None:
        """A job to run now in the midst of the running batch; None if there is none. `finish` must follow before it is
        called again."""
        running = self._running
        if running is None or self._interrupting is not None:
            return None
        for job in self._turns.ahead():
            if self._can_interrupt(running, key_of(job.ticket), job.cost) and self.memory.fits(job.ticket):
                batch = self._interrupting = Batch(self._clock(), running)
                self._take(job, batch)
                return batch
        return None

    def _can_interrupt(self, running: Batch, key: FlowKey | None, cost: float) -> bool:
        """Whether jobs of *cost* seconds may run in the midst of the running batch, if they go before others."""
        if any(key_of(job.ticket) == key for job in running.jobs):
            return False
        left = abs(self._left_of(running))  # the longer it is overdue, the longer it may still take
        whole = self._clock() - running.started - running.interrupted + left
        is_small = cost <= min(_SMALL * whole, left / 2)
        return is_small and running.interrupted + cost <= _MOST_INTERRUPTED * whole

    def _take(self, job: Job, batch: Batch) -> bool:
        """Move *job* from the queue into *batch*; whether it is the first of its request."""
        flow = require(self._turns.find(key_of(job.ticket)))
        flow.remove(job)
        flow.deficit -= job.cost
        batch.add(job)
        if not job.is_step:
            self._turns.note_cost(job.cost)
        is_new = not job.ticket.has_started
        if is_new:
            flow.begin(job.ticket)
            self.memory.take(job.ticket)
        return is_new

    def finish(self, batch: Batch, as_estimated: Collection[Job]) -> None:
        """Note that *batch* is over: charge what it took, and learn how long work takes from the jobs whose work was
        done *as_estimated*."""
        if batch.interrupts is None:
            self._running = None
        else:
            self._interrupting = None
        seconds = self._clock() - batch.started - batch.interrupted
        learnt: dict[Rate, tuple[int, float]] = {}
        for job in batch.jobs:
            part = seconds * (job.cost / batch.cost if batch.cost else 1 / len(batch.jobs))
            flow = self._turns.find(key_of(job.ticket))
            if flow is not None:
                flow.deficit += job.cost - part
            self._charge(job.ticket.caller.name, part - job.cost)
            job.took = part
            if job in as_estimated:
                units, known = learnt.get(job.rate, (0, 0.0))
                learnt[job.rate] = units + job.units, known + part
        were_guesses = [rate.note(units, known) for rate, (units, known) in learnt.items()]
        if any(were_guesses):
            self._reprice(batch)
        for job in batch.jobs:
            flow = self._turns.find(key_of(job.ticket))
            if flow is not None:
                flow.note_wait(job, self._clock(), self._turns.quantum)

    def _reprice(self, batch: Batch) -> None:
        """Estimate all waiting jobs anew, as of some the cost was a guess, and forget when they and those of *batch*
        were expected to be over."""
        for job in batch.jobs:
            job.ticket.expected = 0.0
        for flow in self._turns.flows:
            for job in flow:
                job.ticket.expected = 0.0
                cost = job.rate.seconds(job.units)
                flow.seconds += cost - job.cost
                self._charge(job.ticket.caller.name, cost - job.cost)
                job.cost = cost

    def in_the_way(self) -> list[Ticket]:
        """Requests whose readers have stalled, and whose memory others wait for."""
        return self.memory.in_the_way(self._nexts())

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self._n_waiting

    @property
    def _n_waiting(self) -> int:
        return sum(map(len, self._turns.flows))

    @property
    def counts(self) -> Mapping[Priority, int]:
        """How many jobs wait, by their class. May be read on any thread."""
        found = dict.fromkeys(Priority, 0)
        for flow in self._turns.flows:
            found[flow.key[1]] += len(flow)
        return found

    @property
    def oldest_wait(self) -> float:
        """Seconds that the oldest of the jobs has waited; 0 if none waits. May be read on any thread."""
        since = min((flow.waits_since for flow in self._turns.flows), default=math.inf)
        return 0.0 if since == math.inf else max(self._clock() - since, 0.0)

    def _nexts(self) -> Iterator[Ticket]:
        """The request of each caller that would be let in next."""
        return (job.ticket for flow in self._turns.flows if (job := flow.next_pass) is not None)

    def _first(self) -> Job | None:
        """The job to begin a batch with."""
        if not self._n_waiting:
            self._turns.forget()  # nobody waits, so that nobody is owed anything
            return None
        self.memory.consider(self._nexts())
        heads = {flow.key: flow.head for flow in self._turns.flows}
        return self._turns.first({key: head for key, head in heads.items() if head and self.memory.fits(head.ticket)})

    def _companions(self, batch: Batch) -> Iterator[Job]:
        """Jobs to run with the first of *batch*: of every caller in turn, of those first who have nothing to make up
        for.

        Whose turn it is gives jobs of similar lengths, wherever in its queue; the others only what they would run next,
        so that a job that fits no batch is not overtaken again and again. Who goes before those who have a queue does
        not wait for theirs: of them only so much comes along as takes no longer than the first.
        """
        first = batch.jobs[0]
        longest, holder = self._longest_batch, key_of(first.ticket)
        short = (2 * first.cost, 0) if require(self._turns.find(holder)).is_sparse else longest
        flows = {flow.key: flow for flow in self._turns.flows}
        offers = {key: iter(list(flow)) for key, flow in flows.items()}
        offers[holder] = flows[holder].similar(first, _OFFERED)
        for is_in_credit in (True, False):
            offering = deque(offers)
            while offering:
                key = offering.popleft()
                if is_in_credit and flows[key].deficit < 0:
                    continue
                most = longest if flows[key].is_sparse else short
                for job in offers[key]:
                    if job.group == first.group and self._has_room(batch, job, *most):
                        yield job
                        offering.append(key)
                        break
                    if key != holder:
                        del offers[key]
                        break

    def _has_room(self, batch: Batch, job: Job, seconds: float, n_tokens: int) -> bool:
        padded = batch.padded_with(job)
        return (
            padded <= self.max_batch_tokens
            and padded <= MAX_PADDING * (batch.n_tokens + job.n_tokens)
            # A request waits for all its passes, and its caller makes up for them: apart they would only take longer.
            and (batch.cost + job.cost <= seconds or padded <= n_tokens or job.ticket is batch.jobs[0].ticket)
            and self.memory.fits(job.ticket)
            and not self._is_late(job)
            and job.goes_with(batch.jobs)
        )

    @property
    def _longest_batch(self) -> tuple[float, int]:
        """Seconds that a batch may be estimated to take, and the tokens that it may have however long they take."""
        is_alone = self._clock() - self._another_asked_at > _ALONE_AFTER_SECONDS
        seconds, n_tokens = _BATCH_ALONE if is_alone else _BATCH
        return max(self._turns.quantum, seconds), n_tokens


def _free_of_charge(_caller: str, _seconds: float) -> None:
    """Without quotas."""
