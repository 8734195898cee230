"""Rates: estimates follow what is measured, and add up to it."""

from __future__ import annotations

import pytest

from dst_grpc.pipeline.rates import Rate, Rates, Work


def test_the_first_measurement_replaces_the_guess() -> None:
    rate = Rate(5.0)
    assert rate.seconds(2) == 10.0
    assert rate.note(4, 2.0)
    assert rate.seconds(2) == 1.0
    assert not rate.note(4, 2.0)
    assert rate.seconds(2) == pytest.approx(1.0)


def test_estimates_of_a_mixture_add_up_to_what_it_takes() -> None:
    """Small pieces take longer for each unit; the rate is that of all together, not the mean of theirs."""
    rate = Rate(1.0)
    for _ in range(200):
        rate.note(10, 2.0)
        rate.note(90, 8.0)
    assert rate.seconds(100) == pytest.approx(10.0, rel=0.1)


def test_a_change_is_followed() -> None:
    rate = Rate(1.0)
    rate.note(1, 1.0)
    for _ in range(50):
        rate.note(1, 3.0)
    assert rate.seconds(1) == pytest.approx(3.0, rel=0.01)


def test_a_machine_that_stands_still_for_once_is_not_a_slow_one() -> None:
    rate = Rate(1.0)
    rate.note(1, 0.01)
    rate.note(1, 60.0)
    assert rate.seconds(1) == pytest.approx(0.01 + 0.1 * 0.03)


def test_each_kind_of_work_of_each_model_has_its_own() -> None:
    rates = Rates()
    rates.of("a", Work.FORWARD).note(1, 7.0)
    assert rates.of("a", Work.FORWARD).seconds(1) == 7.0
    assert rates.of("a", Work.GRADIENT).seconds(1) == Work.GRADIENT.guess
    assert rates.of("b", Work.FORWARD).seconds(1) == Work.FORWARD.guess
