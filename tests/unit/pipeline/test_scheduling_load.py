"""What the scheduler makes of more than a device can do: figures of a simulation that always comes out the same."""

from __future__ import annotations

import pytest

from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.scheduler import Scheduler
from tests.unit.pipeline.simulated import GREEDY, Clock, greedy_and_polite, quantile, simulate

CAPACITY = 0.08 / (0.08 + 0.004)
"""Work that the device can do in a second, in batches of the longest that is usual."""


def a_scheduler(clock: Clock) -> Scheduler:
    return Scheduler(DeviceLimits(), clock)


@pytest.mark.parametrize("load", [0.95, 1.5])
def test_polite_callers_are_served_in_time_whatever_a_greedy_one_does(load: float) -> None:
    offered, polite = greedy_and_polite(load)
    result = simulate(offered, a_scheduler)
    assert result.of(polite).in_time == 1.0
    assert result.useful >= 0.94 * min(load, CAPACITY)
    assert result.of([GREEDY]).late <= 0.07 * result.of([GREEDY]).sent, "it is refused at once, or served"
    alone = simulate({name: offered[name] for name in polite}, a_scheduler).of(polite)
    assert quantile(result.of(polite).seconds, 0.99) <= 2.5 * quantile(alone.seconds, 0.99)


def test_too_much_from_everybody_is_refused_rather_than_late() -> None:
    offered, polite = greedy_and_polite(3.0)
    result = simulate(offered, a_scheduler)
    assert result.useful >= 0.9 * CAPACITY
    assert result.of([GREEDY]).refused > 0.5 * result.of([GREEDY]).sent
    assert result.of(polite).in_time >= 0.85, "they alone offer all that the device can do"


def test_below_capacity_nobody_is_refused() -> None:
    offered, polite = greedy_and_polite(0.7)
    result = simulate(offered, a_scheduler)
    assert result.of([*polite, GREEDY]).in_time == 1.0
