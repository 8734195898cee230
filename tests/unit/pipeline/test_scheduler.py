"""The scheduler: whose turn it is, and what runs together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.domain.callers import Caller, Grant, Priority
from dst_grpc.errors import Exhausted
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.jobs import Job
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.rates import Rate
from dst_grpc.pipeline.scheduler import MAX_PADDING, Scheduler
from tests.unit.pipeline.scheduled import RATE, Device, names
from tests.unit.pipeline.simulated import Clock

# What is read of it


def test_the_oldest_wait_is_that_of_whoever_has_waited_longest_whatever_their_turn() -> None:
    device = Device()
    assert device.scheduler.oldest_wait == 0
    device.add("first", 10)
    device.clock.now += 3
    device.add("second", 10, is_step=True)
    device.clock.now += 2
    assert device.scheduler.oldest_wait == 5
    assert names(device.run(0.5)) == ["first"]
    assert device.scheduler.oldest_wait == 2.5
    device.run()
    assert device.scheduler.oldest_wait == 0


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
    for name in (*("greedy",) * 9, "polite"):
        device.add(name, 9, group="same")
    device.flow("greedy").is_sparse = False
    device.flow("polite").is_sparse = False
    assert device.order(4) == [*("greedy",) * 3, "polite"], "a quantum, and what it had saved"


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
        device.scheduler.finish(batch, ())
        used[job.ticket.caller.name] += took
    assert used["slow"] == pytest.approx(used["honest"], abs=0.04)


def test_an_idle_caller_saves_two_quanta_up_and_no_more() -> None:
    device = Device()
    for _ in range(50):
        device.add("busy")
    device.add("idle")
    device.order(40)
    for _ in range(50):
        device.add("idle", 9)
    turns = [len(list(jobs)) for name, jobs in groupby(device.order(10)) if name == "idle"]
    assert turns[:3] == [3, 1, 1], "a quantum and what it had saved, then a quantum each"


@pytest.mark.parametrize("pause", [1, 2, 3, 10])
def test_what_is_saved_is_never_more_than_what_was_left_to_others(pause: int) -> None:
    """However a caller spaces its bursts: beside one who always waits it gets half, and what it had saved at first."""
    device, used = Device(), Counter[str]()
    for i in range(600):
        device.add("busy")
        if i % pause == 0:
            for _ in range(pause):
                device.add("often")
        (job,) = device.run()
        used[job.ticket.caller.name] += 1
        assert used["often"] <= used["busy"] + 4, "two quanta, one of the turn, and one that is not made up for yet"


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
            device.add(name, 10, group="same", n_tokens=64)
    batches = [device.start()]
    for _ in range(10):
        device.scheduler.finish(batches[-1], ())
        batches.append(device.start())
    assert max(batch.cost for batch in batches) == pytest.approx(0.05)


@pytest.mark.parametrize(("names_of", "n_tokens"), [(("a", "b"), 128), (("a",), 512)])
def test_a_batch_of_few_tokens_may_take_long(names_of: Sequence[str], n_tokens: int) -> None:
    """A device that takes so long for few tokens is busy with fetching weights, which many tokens share."""
    device = Device()
    for _ in range(40):
        for name in names_of:
            device.add(name, 200, group="same", n_tokens=16)
    assert device.start().n_tokens == n_tokens


def test_the_passes_of_one_request_run_together_however_long_they_take() -> None:
    device = Device()
    mine = device.ticket("one")
    for _ in range(3):
        device.add("one", 40, ticket=mine, group="same", n_tokens=100)
    for name in ("one", "other"):
        device.add(name, 40, group="same", n_tokens=100)
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


# Who takes less than its part


def test_who_had_nothing_waiting_goes_before_who_has_a_queue() -> None:
    """With what it had saved, which is two quanta; then it has its turns as everybody."""
    device = Device()
    for _ in range(50):
        device.add("busy", 10)
    device.order(3)
    for _ in range(5):
        device.add("new", 10)
    assert device.order(6) == ["new", "new", "busy", "new", "busy", "new"]


def test_who_takes_less_than_its_part_always_goes_first() -> None:
    device = Device()
    for _ in range(1000):
        device.add("busy", 10)
    device.order(3)
    for _ in range(50):
        device.add("now and then", 5)
        assert device.order(1) == ["now and then"]
        assert device.order(2) == ["busy", "busy"]


def test_new_callers_go_in_the_order_in_which_they_came() -> None:
    device = Device()
    for _ in range(50):
        device.add("busy", 10)
    device.order(3)
    for name in ("first", "second", "third"):
        device.add(name)
    assert device.order(3) == ["first", "second", "third"]


def test_who_goes_first_does_not_wait_for_the_queues_of_others() -> None:
    """Of these there comes along what takes no longer than it does alone; of others who go first, as much as fits."""
    device = Device()
    for _ in range(50):
        device.add("busy", 30, group="same", n_tokens=64)
        device.add("busier", 4, group="same", n_tokens=64)
    device.order(40)
    for name in ("first", "second"):
        device.add(name, 5, group="same", n_tokens=64)
    assert Counter(names(device.run())) == {"first": 1, "second": 1}
    device.add("third", 5, group="same", n_tokens=64)
    assert Counter(names(device.run())) == {"third": 1, "busier": 1}


def test_items_of_streams_go_before_nobody() -> None:
    device = Device()
    for _ in range(50):
        device.add("busy", 10)
    device.order(3)
    device.add("stream", ticket=device.ticket("stream", priority=Priority.BATCH))
    device.add("new")
    assert device.order(1) == ["new"]


# Interruptions


def test_a_small_job_of_another_caller_interrupts_a_long_batch() -> None:
    device = Device()
    device.add("large", 800)
    running = device.start()
    device.add("large", 1)
    assert device.scheduler.interrupt() is None, "who runs has its turn"
    small = device.add("small", 10)
    device.add("small", 200)
    interrupting = device.scheduler.interrupt()
    assert interrupting is not None
    assert interrupting.jobs == [small]
    assert interrupting.interrupts is running
    assert device.scheduler.interrupt() is None, "one at a time"
    device.scheduler.finish(interrupting, ())
    assert device.scheduler.interrupt() is None, "the next is not small"


def test_nothing_begins_until_what_interrupted_the_last_batch_is_over() -> None:
    device = Device()
    device.add("large", 800)
    running = device.start()
    device.add("small", 10)
    device.add("other", 10)
    interrupting = device.scheduler.interrupt()
    assert interrupting is not None
    device.scheduler.finish(running, ())
    assert device.scheduler.start() is None
    device.scheduler.finish(interrupting, ())
    assert names(device.run()) == ["other"]


@pytest.mark.parametrize(
    ("running", "small", "later"),
    [(80, 20, 0.0), (800, 10, 0.785), (800, 10, 0.81)],
    ids=["not much smaller", "nearly over", "just overdue"],
)
def test_what_would_hardly_wait_interrupts_nothing(running: int, small: int, later: float) -> None:
    device = Device()
    device.add("large", running)
    device.start()
    device.add("small", small)
    device.clock.now += later
    assert device.scheduler.interrupt() is None


def test_items_of_streams_interrupt_nothing_but_are_interrupted() -> None:
    device = Device()
    device.add("one", 800, ticket=device.ticket("one", priority=Priority.BATCH))
    device.start()
    device.add("two", 10, ticket=device.ticket("two", priority=Priority.BATCH))
    assert device.scheduler.interrupt() is None
    device.add("one", 10)
    interrupting = device.scheduler.interrupt()
    assert interrupting is not None
    assert names(interrupting.jobs) == ["one"]


def test_what_does_not_fit_into_memory_interrupts_nothing() -> None:
    device = Device(max_run_bytes=100)
    device.add("large", 800, ticket=device.ticket("large", 80))
    device.start()
    device.add("small", 10, ticket=device.ticket("small", 30))
    assert device.scheduler.interrupt() is None


def interruptions(device: Device, name: str, millis: int) -> int:
    """How many jobs interrupt what runs, one after the other."""
    for _ in range(1000):
        device.add(name, millis)
    count = 0
    while device.interrupt() is not None:
        count += 1
    return count


def test_a_batch_is_interrupted_for_half_as_long_as_it_takes() -> None:
    device = Device()
    device.add("large", 800)
    device.start()
    found = [interruptions(device, f"small {i}", 9) for i in range(23)]
    assert found == [2] * 22 + [0], "each what it had saved: 20 ms"


def test_who_interrupts_does_not_get_more_than_its_part() -> None:
    """It only has its turn earlier: who always asks for small things beside one who asks for large ones has half."""
    device, used = Device(), defaultdict[str, float](float)
    for _ in range(200):
        device.add("large", 800)
    for _ in range(16000):
        device.add("small", 10)
    before = device.clock.now
    while device.clock.now - before < 80.0:
        running = device.start()
        used[running.jobs[0].ticket.caller.name] += running.cost
        while (batch := device.interrupt()) is not None:
            used[batch.jobs[0].ticket.caller.name] += batch.cost
        device.clock.now += running.cost
        device.scheduler.finish(running, ())
    assert used["small"] == pytest.approx(used["large"], rel=0.05)


def test_what_ran_in_the_midst_of_a_batch_is_not_charged_to_it() -> None:
    device = Device()
    device.add("large", 800)
    running = device.start()
    device.add("small", 10)
    device.clock.now += 0.1
    batch = device.scheduler.interrupt()
    assert batch is not None
    device.clock.now += 0.05
    batch.started = device.clock.now  # it began only now, as nothing gave way before
    device.clock.now += 0.03
    running.interrupted += 0.03
    device.scheduler.finish(batch, ())
    assert device.charged["small"] == pytest.approx(0.03)
    assert device.scheduler.expected_wait == pytest.approx(0.65), "and the batch takes so much longer"
    device.clock.now += 0.65
    device.scheduler.finish(running, ())
    assert device.charged["large"] == pytest.approx(0.8)


def test_at_the_door_it_is_known_who_may_interrupt() -> None:
    device = Device()
    device.add("large", 800)
    device.start()
    device.scheduler.check(device.ticket("small", deadline=0.1), 0.01)
    with pytest.raises(Exhausted):
        device.scheduler.check(device.ticket("other", deadline=0.5), 0.2)


# Learning


def test_costs_are_learnt_from_the_work_that_was_done() -> None:
    clock, rate = Clock(), Rate(1e-9)
    scheduler = Scheduler(DeviceLimits(), clock)
    ticket = Ticket(Caller(name="one"))
    first, second, larger = (Job(ticket=ticket, rate=rate, units=units) for units in (100, 50, 300))
    for job in (first, second, larger):
        scheduler.add(job)
    batch = scheduler.start()
    assert batch is not None
    clock.now = 2.0
    scheduler.finish(batch, [first])
    assert rate.seconds(1) == pytest.approx(0.02)
    assert second.cost == pytest.approx(1.0), "what waits is estimated anew once there is more than a guess"
    assert larger.cost == pytest.approx(2.0), "of what is larger than all that was measured, the rest is still a guess"
    assert scheduler.expected_wait == 0.0, "its caller has had two seconds, which it makes up for"
