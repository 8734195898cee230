"""What a scheduler holds back: who waits for memory, who is refused, and what comes too late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dst_grpc.domain.callers import Caller, Priority
from dst_grpc.errors import Exhausted, Reason
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.jobs import Job
from dst_grpc.pipeline.memory_shares import MemoryShares
from dst_grpc.pipeline.rates import Rate
from tests.unit.pipeline.scheduled import Device, names

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


def test_the_other_passes_of_a_request_that_has_begun_go_before_who_waits_for_its_memory() -> None:
    """Of a queue those run together that are of a length, also if not next: it may be the last of a request."""
    device = Device(max_run_bytes=100)
    first = device.add("one", group="g", n_tokens=20)
    large = with_bytes(device, "one", 100)
    ticket = device.ticket("one", 10)
    parts = [device.add("one", ticket=ticket, group="g", n_tokens=n) for n in (3, 7, 20)]
    assert device.run(release=False) == [first, parts[2]]
    later = device.add("one", ticket=ticket, group="g", n_tokens=13)
    assert [device.run(release=False) for _ in range(3)] == [[parts[0]], [parts[1]], [later]]
    assert device.scheduler.start() is None
    device.scheduler.memory.release(ticket)
    assert device.run() == [large]


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
    device.flow("greedy").deficit = 0.005
    assert device.scheduler.expected_wait == pytest.approx(0.010 + 0.005 + 0.010), (
        "what runs, what the other has left of its turn, and a quantum"
    )
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


@pytest.mark.parametrize("stalls", [1, 5])
def test_a_machine_that_stood_still_makes_nobody_s_deadline_unreachable(stalls: int) -> None:
    """A thousandth of a second that took one does not mean that all else takes a thousand times as long."""
    device = Device()
    for _ in range(stalls):
        device.add("other", 1)
        batch = device.start()
        ticket = device.ticket("one")
        device.scheduler.check(ticket, 0.001)
        device.add("one", 1, ticket=ticket)
        device.clock.now += 0.001
        device.scheduler.finish(batch, ())
        assert device.run(1.0)[0].ticket is ticket
    device.add("other", 1)
    device.start()
    for _ in range(8):
        device.add("one", 20)
    device.scheduler.check(device.ticket("one", deadline=device.clock.now + 2.0), 0.020)


def test_an_expectation_that_was_a_guess_teaches_nothing() -> None:
    """Of a large model's first passes: the next ones are expected by what these took."""
    device, rate = Device(), Rate(1e-6)
    tickets = [device.ticket("one") for _ in range(8)]
    for ticket in tickets:
        device.scheduler.check(ticket, rate.seconds(1))
        device.scheduler.add(Job(ticket=ticket, rate=rate))
        if not device.scheduler._running:
            device.start()
    running = device.scheduler._running
    assert running is not None
    device.clock.now += 5.0
    device.scheduler.finish(running, running.jobs)
    device.run(5.0)
    device.start()
    device.scheduler.check(device.ticket("one", deadline=device.clock.now + 60.0), rate.seconds(1))


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
    batch = device.start()
    assert batch.jobs == [at_once], "an idle device tries: the estimate may be wrong"
    waited = device.add("one", 50, ticket=device.ticket("one", deadline=0.090))
    device.clock.now = 0.050
    device.scheduler.finish(batch, ())
    assert device.scheduler.drop_late() == [waited]
