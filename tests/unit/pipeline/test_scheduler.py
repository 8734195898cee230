"""The scheduler: whose turn it is, what runs together, who waits for memory, and who is refused."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.domain.callers import Caller, Grant, Priority
from dst_grpc.domain.urgency import Urgency
from dst_grpc.errors import Exhausted, Reason
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.jobs import Batch, Job
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.memory_shares import MemoryShares
from dst_grpc.pipeline.rates import Rate
from dst_grpc.pipeline.scheduler import MAX_PADDING, Scheduler
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

    def start(self) -> Batch:
        batch = self.scheduler.start()
        assert batch is not None
        return batch

    def run(self, seconds: float | None = None, *, release: bool = True) -> list[Job]:
        """The jobs of one batch, which takes as long as estimated unless *seconds* are given."""
        batch = self.start()
        self.clock.now += batch.cost if seconds is None else seconds
        self.scheduler.finish(())
        if release:
            for job in batch.jobs:
                self.scheduler.memory.release(job.ticket)
        return batch.jobs

    def order(self, count: int) -> list[str]:
        """Whose jobs run next, one after the other."""
        found: list[str] = []
        while len(found) < count:
            found += [job.ticket.caller.name for job in self.run()]
        return found


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.ticket.caller.name for job in jobs]


# Turns


def test_a_long_queue_does_not_keep_others_waiting() -> None:
    device = Device()
    for _ in range(100):
        device.add("greedy")
    device.run()
    device.add("polite")
    assert "polite" in device.order(2)


def test_of_two_who_always_wait_each_gets_half_whatever_their_jobs_cost() -> None:
    device, used = Device(), defaultdict[str, float](float)
    for _ in range(4000):
        device.add("small", 10)
    for _ in range(500):
        device.add("large", 80)
    for _ in range(4000):
        for job in device.run():
            used[job.ticket.caller.name] += job.cost
        assert abs(used["small"] - used["large"]) <= 0.08 + 0.08, "no more than a quantum and a job apart"


def test_weights_are_the_parts_of_the_device() -> None:
    device, used = Device(), defaultdict[str, float](float)
    for name, weight in (("one", 1.0), ("three", 3.0)):
        for _ in range(1000):
            device.add(name, ticket=device.ticket(name, grant=Grant(weight=weight)))
    for _ in range(800):
        for job in device.run():
            used[job.ticket.caller.name] += job.cost
    assert used["three"] / used["one"] == pytest.approx(3.0, rel=0.02)


def test_a_quantum_is_given_once_a_turn_also_if_a_batch_cuts_the_turn_short() -> None:
    """Else whoever has a long queue would keep the turn."""
    device = Device(max_batch_tokens=1)
    for name in ("greedy", "greedy", "greedy", "greedy", "polite"):
        device.add(name, 10, group="same")
    assert device.order(2).count("greedy") == 1


def test_items_of_streams_get_a_quarter_beside_what_somebody_waits_for() -> None:
    device, used = Device(), Counter[Priority]()
    for priority in Priority:
        for _ in range(1000):
            device.add("same", ticket=device.ticket("same", priority=priority))
    for _ in range(1000):
        for job in device.run():
            used[job.ticket.priority] += job.units
    assert used[Priority.INTERACTIVE] / used[Priority.BATCH] == pytest.approx(4.0, rel=0.02)


def test_who_took_longer_than_estimated_makes_up_for_it() -> None:
    device = Device()
    for _ in range(40):
        device.add("slow")
        device.add("honest")
    used = defaultdict[str, float](float)
    for _ in range(30):
        batch = device.start()
        (job,) = batch.jobs
        took = 0.030 if job.ticket.caller.name == "slow" else 0.010
        device.clock.now += took
        device.scheduler.finish(())
        used[job.ticket.caller.name] += took
    assert used["slow"] == pytest.approx(used["honest"], abs=0.04)


def test_an_idle_caller_saves_nothing_up() -> None:
    device = Device()
    for _ in range(50):
        device.add("busy")
    device.add("idle")
    device.order(40)
    for _ in range(50):
        device.add("idle")
    assert device.order(10).count("idle") <= 6


def test_steps_of_a_long_answer_and_passes_of_others_alternate() -> None:
    device = Device()
    answer = device.ticket("long")
    answer.start()
    for _ in range(10):
        device.add("other", 5)
    found = []
    for _ in range(8):
        device.add("long", 5, ticket=answer, is_step=True)
        found += names(device.run())
    assert 3 <= found.count("other") <= 5


def test_a_step_goes_before_a_pass_of_the_same_caller() -> None:
    device = Device()
    device.add("same")
    answer = device.ticket("same")
    answer.start()
    step = device.add("same", ticket=answer, is_step=True)
    assert device.run() == [step]


# Batches


def test_a_batch_takes_from_every_caller_in_turn() -> None:
    device = Device()
    for _ in range(10):
        device.add("greedy", 1, group="same")
    device.add("polite", 1, group="same")
    device.add("another", 1, group="same")
    assert {"polite", "another"} <= set(names(device.run())[:4])


def test_only_jobs_of_a_group_run_together_and_steps_run_alone() -> None:
    device = Device()
    groups: list[Hashable] = ["a", "b", None, "a", None, "b"]
    for group in groups:
        device.add("one", 1, group=group)
    found = []
    while any(device.scheduler.counts.values()):
        found.append({job.group for job in device.run()})
    assert sorted(map(str, found)) == sorted(["{'a'}", "{'b'}", "{None}", "{None}"])


def test_a_job_may_refuse_its_company() -> None:
    class Shy(Job):
        def goes_with(self, others: Sequence[Job]) -> bool:
            return not others

    device = Device()
    for cls in (Job, Shy, Job):
        device.scheduler.add(cls(ticket=device.ticket("one"), rate=RATE, group="same"))
    assert [type(job) for job in device.run()] == [Job, Job]
    assert [type(job) for job in device.run()] == [Shy]


def test_a_batch_is_no_longer_than_one_usual_job_while_several_callers_ask() -> None:
    device = Device()
    for _ in range(40):
        for name in ("a", "b"):
            device.add(name, 10, group="same")
    batches = [device.start().cost]
    for _ in range(10):
        device.scheduler.finish(())
        batches.append(device.start().cost)
    assert max(batches) == pytest.approx(0.05)


def test_the_passes_of_one_request_run_together_however_long_they_take() -> None:
    device = Device()
    mine = device.ticket("one")
    for _ in range(3):
        device.add("one", 40, ticket=mine, group="same")
    for name in ("one", "other"):
        device.add(name, 40, group="same")
    jobs = device.run()
    assert [job.ticket for job in jobs] == [mine] * 3
    assert names(device.run()) == ["other"], "what they took is made up for"


def test_a_caller_alone_gets_long_batches() -> None:
    device = Device()
    for _ in range(40):
        device.add("a", 10, group="same")
    assert device.start().cost == pytest.approx(0.4)


LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 5))
def test_pads_are_at_most_a_sixth_of_a_batch(lengths: list[int], n_callers: int) -> None:
    device = Device(max_batch_tokens=1000)
    for i, length in enumerate(lengths):
        device.add(str(i % n_callers), 1, group="same", n_tokens=length)
    ran: list[Job] = []
    while any(device.scheduler.counts.values()):
        jobs = device.run()
        padded = max(job.n_tokens for job in jobs) * len(jobs)
        assert padded <= MAX_PADDING * sum(job.n_tokens for job in jobs)
        assert padded <= 1000
        ran += jobs
    assert sorted(job.n_tokens for job in ran) == sorted(lengths), "each once"


def test_a_job_that_fits_no_batch_is_not_overtaken_for_ever() -> None:
    """A caller's own small jobs would else use up, in the batches of others, what its large one needs."""
    device = Device()
    for _ in range(20):
        device.add("other", 10, group="same")
        device.add("mixed", 10, group="same")
    large = device.add("mixed", 80, group="same", n_tokens=8)
    while large.is_waiting:
        device.add("other", 10, group="same")
        device.add("mixed", 10, group="same")
        device.run()
    assert device.clock.now <= 0.4 + 0.08 + 0.08 + 2 * 0.05, (
        "what was before it, and as much of the other; then it itself, and as much of the other; and batches"
    )


# Nobody is lost


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "run"]),
        st.integers(0, 3),
        st.integers(1, 100),
        st.integers(0, 10),
        st.sampled_from(["a", "b", None]),
    ),
    max_size=60,
)


@given(EVENTS)
def test_each_job_runs_once_or_is_taken_out_and_nothing_is_left(events: list[tuple[str, int, int, int, Any]]) -> None:
    """Whatever comes and goes, with memory that is short; and costs that are not used are given back."""
    device = Device(max_run_bytes=10)
    waiting: set[Job] = set()
    removed: set[Job] = set()
    ran: list[Job] = []

    def run() -> None:
        jobs = device.run()
        ran.extend(jobs)
        waiting.difference_update(jobs)

    for what, caller, millis, peak_bytes, group in events:
        if what == "add":
            ticket = device.ticket(str(caller), peak_bytes)
            waiting.add(device.add(str(caller), millis, ticket=ticket, group=group, n_tokens=millis))
        elif what == "remove" and waiting:
            job = min(waiting, key=lambda job: job.since)
            device.scheduler.remove(job)
            waiting.discard(job)
            removed.add(job)
        elif waiting:
            run()
    while waiting:
        run()
    assert len(ran) == len(set(ran))
    assert not removed & set(ran)
    assert device.scheduler.start() is None
    assert device.scheduler.memory.used_bytes == 0
    for name in device.charged:
        used = sum(job.cost for job in ran if job.ticket.caller.name == name)
        assert device.charged[name] == pytest.approx(used, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 4)), min_size=2, max_size=12))
def test_nobody_starves(callers: list[tuple[int, int]]) -> None:
    """A caller whose next job costs more than all others' runs it while each other gets what its weight allows: the
    rounds until it can be afforded, and a batch."""
    device = Device()
    for i, (millis, weight) in enumerate(callers):
        for _ in range(30):
            device.add(str(i), millis, ticket=device.ticket(str(i), grant=Grant(weight=float(weight))))
    waiting_since = dict.fromkeys(map(str, range(len(callers))), 0.0)
    largest, lightest = max(millis for millis, _ in callers) / 1000, min(weight for _, weight in callers)
    total = sum(weight for _, weight in callers)
    bound = 3 * (largest + 0.05) * total / lightest + len(callers) * largest
    left = dict.fromkeys(waiting_since, 30)
    while any(device.scheduler.counts.values()):
        for job in device.run():
            name = job.ticket.caller.name
            waiting_since[name] = device.clock.now
            left[name] -= 1
        for name, since in waiting_since.items():
            assert not left[name] or device.clock.now - since <= bound


# Memory


def with_bytes(device: Device, name: str, peak_bytes: int) -> Job:
    return device.add(name, ticket=device.ticket(name, peak_bytes))


def test_a_request_that_does_not_fit_is_passed_over_but_not_for_ever() -> None:
    device = Device(max_run_bytes=100)
    holding = with_bytes(device, "holding", 50)
    device.run(release=False)
    with_bytes(device, "large", 60)
    for _ in range(20):
        with_bytes(device, "small", 10)
    passed = 0
    while device.scheduler.memory.fits(device.ticket("small", 10)) and passed < 20:
        assert names(device.run()) == ["small"]
        passed += 1
        device.scheduler.memory.consider(device.scheduler._nexts())
    assert passed == 8
    assert device.scheduler.start() is None, "now nobody is let in before it"
    device.scheduler.memory.release(holding.ticket)
    assert names(device.run()) == ["large"]


def test_steps_of_answers_go_on_while_a_large_request_waits_for_memory() -> None:
    """They give the memory back."""
    device = Device(max_run_bytes=100)
    holding = with_bytes(device, "holding", 100)
    device.run(release=False)
    with_bytes(device, "large", 100)
    assert device.scheduler.start() is None
    device.add("holding", ticket=holding.ticket, is_step=True)
    assert names(device.run()) == ["holding"]
    assert names(device.run()) == ["large"]


def test_a_caller_takes_half_of_the_memory_and_others_the_rest() -> None:
    device = Device(max_run_bytes=100)
    for _ in range(5):
        with_bytes(device, "greedy", 20)
    for _ in range(2):
        device.run(release=False)
    assert device.scheduler.start() is None
    with_bytes(device, "polite", 60)
    assert names(device.run(release=False)) == ["polite"]
    assert device.scheduler.memory.used_bytes == 100


def test_a_single_request_may_take_all() -> None:
    device = Device(max_run_bytes=100)
    with_bytes(device, "one", 100)
    assert names(device.run(release=False)) == ["one"]


def test_a_caller_at_its_share_does_not_count_as_passed_over() -> None:
    """It waits for its own requests, for which nobody else has to make room."""
    device = Device(max_run_bytes=100)
    for _ in range(2):
        with_bytes(device, "greedy", 50)
    device.run(release=False)
    for _ in range(20):
        with_bytes(device, "small", 10)
    assert device.order(20).count("small") == 20


def test_the_plans_of_one_request_take_its_memory_once() -> None:
    device = Device(max_run_bytes=100)
    ticket = device.ticket("one", 80)
    for _ in range(3):
        device.add("one", ticket=ticket)
    for _ in range(3):
        device.run(release=False)
    assert device.scheduler.memory.used_bytes == 80
    device.scheduler.memory.release(ticket)
    device.scheduler.memory.release(ticket)
    assert device.scheduler.memory.used_bytes == 0


# Deadlines


def refused(check: Callable[[], None]) -> Exhausted:
    with pytest.raises(Exhausted) as caught:
        check()
    return caught.value


def test_what_cannot_be_served_in_time_is_refused() -> None:
    device = Device()
    for _ in range(100):
        device.add("greedy", 10)
    device.start()
    hopeless = device.ticket("greedy", deadline=1.1)
    error = refused(lambda: device.scheduler.check(hopeless, 0.010))
    assert error.reason is Reason.DEADLINE_UNREACHABLE
    assert error.metadata == {"expected_seconds": "1.010", "remaining_seconds": "1.100"}
    assert error.retry_after_seconds == 0.05, "it would just be over at its deadline, but estimates err"
    device.scheduler.check(device.ticket("greedy", deadline=1.2), 0.010)
    error = refused(lambda: device.scheduler.check(device.ticket("greedy", deadline=0.3), 0.010))
    assert error.retry_after_seconds == pytest.approx(0.71)


def test_a_caller_without_a_queue_waits_for_a_turn_of_the_other() -> None:
    device = Device()
    for _ in range(100):
        device.add("greedy", 10)
    device.run()
    device.start()
    assert device.scheduler.expected_wait == pytest.approx(0.010 + 0.010), "what runs, and a quantum"
    device.scheduler.check(device.ticket("polite", deadline=device.clock.now + 0.060), 0.010)


def test_a_caller_whose_requests_take_longer_than_expected_is_expected_to_wait_longer() -> None:
    """Others come meanwhile, which the queue does not show yet."""
    device = Device()
    device.add("greedy", 100)
    for _ in range(20):
        ticket = device.ticket("greedy")
        device.scheduler.check(ticket, 0.100)
        device.add("greedy", 100, ticket=ticket)
    for _ in range(20):
        device.add("other", 100)
        device.run()
    device.start()
    known = device.ticket("greedy")
    device.scheduler.check(known)
    assert known.expected > 0.5
    device.scheduler.check(device.ticket("third", deadline=device.clock.now + 1.4 * known.expected))
    refused(lambda: device.scheduler.check(device.ticket("greedy", deadline=device.clock.now + 1.4 * known.expected)))


def test_without_a_deadline_half_a_minute_is_as_long_as_anybody_is_made_to_wait() -> None:
    device = Device()
    for _ in range(100):
        device.add("greedy", 300)
    device.start()
    assert (
        refused(lambda: device.scheduler.check(device.ticket("greedy"), 0.010)).metadata["remaining_seconds"]
        == "30.000"
    )
    device.scheduler.check(device.ticket("greedy", priority=Priority.BATCH), 0.010)


def test_nobody_is_refused_for_time_while_the_device_is_idle() -> None:
    """An estimate that is far too high would else never be corrected."""
    device = Device()
    device.scheduler.check(device.ticket("one", deadline=0.001), 100.0)


def test_what_can_never_fit_is_refused_at_once() -> None:
    device = Device(max_run_bytes=10)
    error = refused(lambda: device.scheduler.check(device.ticket("one", 11)))
    assert error.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert error.metadata == {"estimated_bytes": "11", "limit_bytes": "10"}
    assert error.retry_after_seconds is None


def test_what_is_late_is_dropped_before_it_runs() -> None:
    device = Device()
    late = device.add("one", ticket=device.ticket("one", deadline=1.0))
    in_time = device.add("one", ticket=device.ticket("one", deadline=3.0))
    device.clock.now = 2.0
    assert device.scheduler.drop_late() == [late]
    assert device.run() == [in_time]
    assert device.charged["one"] == pytest.approx(in_time.cost)


def test_what_has_waited_until_there_is_too_little_time_is_not_begun() -> None:
    device = Device()
    at_once = device.add("one", 50, ticket=device.ticket("one", deadline=0.010))
    assert device.start().jobs == [at_once], "an idle device tries: the estimate may be wrong"
    waited = device.add("one", 50, ticket=device.ticket("one", deadline=0.090))
    device.clock.now = 0.050
    device.scheduler.finish(())
    assert device.scheduler.drop_late() == [waited]


# Learning


def test_costs_are_learnt_from_the_work_that_was_done() -> None:
    clock, rate = Clock(), Rate(1e-9)
    scheduler = Scheduler(DeviceLimits(), clock)
    ticket = Ticket(Caller(name="one"))
    first, second = (Job(ticket=ticket, rate=rate, units=units) for units in (100, 300))
    scheduler.add(first)
    scheduler.add(second)
    scheduler.start()
    clock.now = 2.0
    scheduler.finish([first])
    assert rate.seconds(1) == pytest.approx(0.02)
    assert second.cost == pytest.approx(6.0), "what waits is estimated anew once there is more than a guess"
    assert scheduler.expected_wait == 0.0, "its caller has had two seconds, which it makes up for"


def test_what_a_request_does_not_take_any_longer_is_free_for_others() -> None:
    shares, one, other = MemoryShares(100), Ticket(Caller(name="one")), Ticket(Caller(name="other"))
    one.peak_bytes, other.peak_bytes = 60, 80
    shares.take(one)
    assert not shares.fits(other)
    shares.shrink(one, 20)
    assert shares.used_bytes == 20
    assert shares.fits(other)
    shares.shrink(one, 30)  # less was taken already
    shares.shrink(other, 10)  # nothing was
    assert (shares.used_bytes, other.peak_bytes) == (20, 80)
    shares.release(one)
    assert shares.used_bytes == 0
