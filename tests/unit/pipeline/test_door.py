"""The door: how many may wait, and that none who left is counted."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from dst_grpc.domain.callers import LOCAL, Caller, Grant, Grants, Priority
from dst_grpc.domain.urgency import WHENEVER, Urgency
from dst_grpc.errors import Exhausted, Reason, Unavailable
from dst_grpc.pipeline.door import Bounds, Door
from tests.unit.pipeline.simulated import Clock

OTHER = Caller(name="other")


def a_door(bounds: Bounds | None = None, grants: Grants | None = None, clock: Clock | None = None) -> Door:
    return Door(bounds or Bounds(), (grants or Grants()).of, clock or Clock())


def limit_of(door: Door, caller: Caller = LOCAL, request_bytes: int = 0) -> dict[str, str]:
    """The limit that refuses one more request."""
    with pytest.raises(Exhausted) as caught, door.entered(caller, WHENEVER, request_bytes):
        pass
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_seconds
    return caught.value.metadata


def test_a_caller_may_not_fill_the_queue() -> None:
    door = a_door(Bounds(max_requests=3, max_requests_per_caller=2))
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(door.entered(LOCAL, WHENEVER, 0))
        assert limit_of(door) == {"max_queued_requests_per_caller": "2"}
        inside.enter_context(door.entered(OTHER, WHENEVER, 0))
        assert limit_of(door, OTHER) == {"max_queued_requests": "3"}
    with door.entered(LOCAL, WHENEVER, 0):
        pass


def test_who_has_started_does_not_wait() -> None:
    door = a_door(Bounds(max_requests_per_caller=1))
    with door.entered(LOCAL, WHENEVER, 0) as first:
        assert limit_of(door)
        first.start()
        with door.entered(LOCAL, WHENEVER, 0):
            assert limit_of(door)
    with door.entered(LOCAL, WHENEVER, 0):
        assert limit_of(door)


def test_messages_that_wait_are_bounded_by_their_bytes_too() -> None:
    door = a_door(Bounds(max_bytes=100))
    with door.entered(LOCAL, WHENEVER, 20):
        assert limit_of(door, request_bytes=6) == {"max_queued_bytes_per_caller": "25"}
        with door.entered(LOCAL, WHENEVER, 5), door.entered(OTHER, WHENEVER, 70):
            assert limit_of(door, Caller(name="third"), 6) == {"max_queued_bytes": "100"}
    with door.entered(LOCAL, WHENEVER, 1000):
        assert limit_of(door, request_bytes=1), "a large one may wait, but alone"


def test_what_waits_to_be_read_counts_too() -> None:
    door = a_door(Bounds(max_bytes=100, max_requests_per_caller=2), Grants(default=Grant(cost_seconds_per_minute=6.0)))
    with door.waiting(LOCAL, 20):
        assert limit_of(door, request_bytes=6) == {"max_queued_bytes_per_caller": "25"}
        with door.entered(LOCAL, WHENEVER, 0), pytest.raises(Exhausted), door.waiting(LOCAL, 0):
            pass
    door.quotas.charge(LOCAL.name, 60.0)
    with door.waiting(LOCAL, 25), pytest.raises(Exhausted), door.waiting(LOCAL, 1):
        pass  # quotas are of the device's time


def test_an_error_inside_is_counted_out() -> None:
    door = a_door(Bounds(max_requests=1))
    with pytest.raises(ValueError, match="mine"), door.entered(LOCAL, WHENEVER, 0):
        raise ValueError("mine")
    with door.entered(LOCAL, WHENEVER, 0):
        pass


def test_a_closed_door_says_that_the_server_stops() -> None:
    door = a_door()
    door.close()
    with pytest.raises(Unavailable), door.entered(LOCAL, WHENEVER, 0):
        pass


def test_the_class_of_a_request_is_no_better_than_its_caller_is_granted() -> None:
    grants = Grants(by_name={"other": Grant(priority=Priority.BATCH, weight=3.0)})
    door = a_door(grants=grants)
    with door.entered(OTHER, WHENEVER, 0) as ticket:
        assert (ticket.priority, ticket.grant.weight) == (Priority.BATCH, 3.0)
    with door.entered(LOCAL, Urgency(priority=Priority.BATCH), 0) as ticket:
        assert ticket.priority is Priority.BATCH
    with door.entered(LOCAL, WHENEVER, 0) as ticket:
        assert ticket.priority is Priority.INTERACTIVE


def test_a_quota_fills_up_again() -> None:
    clock = Clock()
    door = a_door(grants=Grants(by_name={"other": Grant(cost_seconds_per_minute=6.0)}), clock=clock)
    with door.entered(OTHER, WHENEVER, 0):
        door.quotas.charge("other", 9.0)
    with pytest.raises(Exhausted) as caught, door.entered(OTHER, WHENEVER, 0):
        pass
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.retry_after_seconds == pytest.approx(30.0), "3 s too much, at 0.1 s a second"
    clock.now = 29.9
    with pytest.raises(Exhausted), door.entered(OTHER, WHENEVER, 0):
        pass
    clock.now = 30.1
    with door.entered(OTHER, WHENEVER, 0), door.entered(LOCAL, WHENEVER, 0):
        pass


def test_what_is_given_back_does_not_overfill_a_quota() -> None:
    clock = Clock()
    door = a_door(grants=Grants(default=Grant(cost_seconds_per_minute=6.0)), clock=clock)
    door.quotas.charge("other", 4.0)
    door.quotas.charge("other", -100.0)
    door.quotas.charge("other", 6.0)
    with pytest.raises(Exhausted):
        door.quotas.check("other")


def test_a_quota_of_nothing_is_never_worth_waiting_for() -> None:
    door = a_door(grants=Grants(default=Grant(cost_seconds_per_minute=0.0)))
    with pytest.raises(Exhausted) as caught, door.entered(LOCAL, WHENEVER, 0):
        pass
    assert caught.value.retry_after_seconds is None
