"""Whose turn it is at a device: the callers of whom something waits, and what each may still use of it.

Deficit round robin (Shreedhar and Varghese, 1995) in device seconds. Callers take turns; at the start of its turn a
caller is given a quantum, once, and what its jobs cost is taken from it: first what they are estimated to cost, then
the difference to what they took. Who has used more waits until that is made up for. So a caller with a long queue gets
its part of the device. Unlike in that paper, who has nothing waiting saves a little, and with that goes before all who
have a queue, until its turn comes (as new flows do in FQ-CoDel, RFC 8290): whoever asks now and then, and takes less
than its part, waits for hardly more than what runs.

Used on the event loop only, but for `flows` and what they tell of themselves.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import Priority
from dst_grpc.pipeline.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.pipeline.door import Ticket
    from dst_grpc.pipeline.jobs import Job

    FlowKey = tuple[str, Priority]

_WEIGHT_OF_BATCH = 0.25
"""Weight of a caller's items of streams beside its other requests, of which somebody waits for each."""
_COSTS_KEPT = 128
_USUAL = 0.9
"""The quantum is this quantile of recent costs: the largest that is usual, so that a turn is at least one such job."""
_FIRST_QUANTUM = 0.01
_LEAST_QUANTUM = 0.001
_SAVED = 2.0
"""Quanta that a caller has of whom nothing waited for a few turns: so much of what it then asks at once runs before its
turn, as if it had asked meanwhile."""
_MOST_PACE = 8.0
"""No caller's requests are expected to take longer than so many times what the queue shows."""


def key_of(ticket: Ticket) -> FlowKey:
    """The flow that a request is of."""
    return ticket.caller.name, ticket.priority


def weight_of(ticket: Ticket) -> float:
    """The part of the device that the flow of a request gets, relative to others'."""
    return ticket.grant.weight * (_WEIGHT_OF_BATCH if ticket.priority is Priority.BATCH else 1.0)


def _starts_sparse(key: FlowKey) -> bool:
    """Whether a flow of whom nothing waited goes before others: items of streams go before nobody."""
    return key[1] is Priority.INTERACTIVE


class Flow:
    """The waiting jobs of one caller and class, and what it may still use of the device in its turn.

    Steps of answers that have begun, and then passes of requests that have, go before others, as they hold memory:
    what waits for it must not be ahead of them.
    """

    __slots__ = ("_begun", "_pace", "_passes", "_steps", "deficit", "is_sparse", "key", "seconds", "weight")

    def __init__(self, key: FlowKey) -> None:
        """Start empty."""
        self.key = key
        self.is_sparse = _starts_sparse(key)
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
        self._begun: deque[Job] = deque()
        """Passes of requests that have begun."""
        self._passes: deque[Job] = deque()
        """All others."""

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._steps) + len(self._begun) + len(self._passes)

    def __iter__(self) -> Iterator[Job]:
        """The jobs in their order."""
        return chain(self._steps, self._begun, self._passes)

    @property
    def head(self) -> Job | None:
        """The job that is next."""
        queue = self._steps or self._begun or self._passes
        return queue[0] if queue else None

    @property
    def pace(self) -> float:
        """How much longer its requests take than is expected of what waits when they come: others come meanwhile."""
        return min(max(self._pace.of_unit, 1.0), _MOST_PACE)

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
        for queue in (self._steps, self._begun, self._passes):
            with suppress(IndexError):  # it began to run meanwhile
                oldest = min(oldest, queue[0].since)
        return oldest

    @property
    def next_pass(self) -> Job | None:
        """The pass that is next of a request that has not begun."""
        return self._passes[0] if self._passes else None

    def add(self, job: Job) -> None:
        """Let *job* wait."""
        self._queue_of(job).append(job)
        job.is_waiting = True
        self.seconds += job.cost

    def remove(self, job: Job) -> None:
        """Take *job* out, which waits."""
        self._queue_of(job).remove(job)
        job.is_waiting = False
        self.seconds = self.seconds - job.cost if len(self) else 0.0

    def begin(self, ticket: Ticket) -> None:
        """Let what else waits of a request go before others, now that its first job is no longer in the queue."""
        others = [job for job in self._passes if job.ticket is ticket]
        for job in others:
            self._passes.remove(job)
        self._begun += others

    def _queue_of(self, job: Job) -> deque[Job]:
        if job.is_step:
            return self._steps
        return self._begun if job.ticket.has_started else self._passes

    def similar(self, first: Job, count: int) -> Iterator[Job]:
        """Jobs of the group of *first*, among the next *count*; those of the nearest length first."""
        near = [job for job in islice(self, count) if job.group == first.group]
        yield from sorted(near, key=lambda job: abs(job.n_tokens - first.n_tokens))


class Turns:
    """The flows of one device, and whose turn it is."""

    def __init__(self) -> None:
        """Start with no flow."""
        self._ring: OrderedDict[FlowKey, Flow] = OrderedDict()
        """Flows that have jobs waiting, or something to make up for; the first has the turn."""
        self._is_new_turn = True
        self._turns_left = 0
        """Of this round."""
        self._costs: deque[float] = deque(maxlen=_COSTS_KEPT)
        """Of the latest passes."""
        self.quantum = _FIRST_QUANTUM
        """Device seconds that a flow is given for a turn; the same for all turns of a round."""

    @property
    def flows(self) -> list[Flow]:
        """All of them, in the order of their turns. May be read on any thread."""
        return list(self._ring.values())

    def find(self, key: FlowKey) -> Flow | None:
        """The flow, if something of it waits or is to be made up for."""
        return self._ring.get(key)

    def enter(self, key: FlowKey, weight: float) -> Flow:
        """The flow, which has something to wait for now."""
        flow = self._ring.get(key)
        if flow is None:
            flow = self._ring[key] = Flow(key)
            flow.deficit = self._most_saved(weight)
        flow.weight = weight  # a reload may have changed it
        return flow

    def credit(self, key: FlowKey | None, weight: float) -> tuple[bool, float]:
        """Whether a flow goes before the others, and device seconds that it may use before its next turn.

        None is a flow that goes before nobody.
        """
        flow = None if key is None else self._ring.get(key)
        if flow is not None:
            return flow.is_sparse, flow.deficit
        return key is not None and _starts_sparse(key), self._most_saved(weight)

    def _most_saved(self, weight: float) -> float:
        """Device seconds that a flow of this weight has saved after a few turns without jobs."""
        return _SAVED * self.quantum * weight

    def note_cost(self, cost: float) -> None:
        """Learn what passes usually cost."""
        self._costs.append(cost)

    def forget(self) -> None:
        """Owe nobody anything, and begin anew."""
        self._ring.clear()
        self._is_new_turn = True
        self._begin_round()

    def ahead(self) -> Iterator[Job]:
        """The next job of each flow that goes before the others."""
        for flow in self._ring.values():
            head = flow.head
            if flow.is_sparse and head is not None and head.cost <= flow.deficit:
                yield head

    def first(self, ready: Mapping[FlowKey, Job]) -> Job | None:
        """The job to run next, of the next jobs of flows that are *ready*."""
        if not ready:
            return None
        for job in self.ahead():
            if key_of(job.ticket) in ready:
                return job
        while True:
            for _ in range(len(self._ring)):
                flow = next(iter(self._ring.values()))
                if self._is_new_turn:
                    flow.deficit += self.quantum * flow.weight
                    self._is_new_turn = False
                head = ready.get(flow.key)
                if head is not None and head.cost <= flow.deficit:
                    return head
                self._end_turn(flow)
            # None can afford its job yet: at once all the rounds until one can, but for the last.
            rounds = min(
                math.ceil((head.cost - self._ring[key].deficit) / (self.quantum * self._ring[key].weight))
                for key, head in ready.items()
            )
            for flow in self._ring.values():
                flow.deficit += (rounds - 1) * self.quantum * flow.weight

    def _end_turn(self, flow: Flow) -> None:
        """Pass the turn on. Nobody keeps more than may be saved, or than its next job costs and a quantum."""
        self._is_new_turn, flow.is_sparse = True, False
        self._turns_left -= 1
        if self._turns_left <= 0:
            self._begin_round()
        head, saved = flow.head, self._most_saved(flow.weight)
        if head is None and flow.deficit >= saved:
            del self._ring[flow.key]
            return
        most = saved if head is None else max(self.quantum * flow.weight + head.cost, saved)
        flow.deficit = min(flow.deficit, most)
        self._ring.move_to_end(flow.key)

    def _begin_round(self) -> None:
        self._turns_left = len(self._ring)
        if self._costs:
            self.quantum = max(sorted(self._costs)[int(_USUAL * len(self._costs))], _LEAST_QUANTUM)
