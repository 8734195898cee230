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
    assert rate.seconds(1) == pytest.approx((0.01 + 0.04) / 2)
    for _ in range(20):
        rate.note(1, 0.01)
    before = rate.seconds(1)
    rate.note(1, 60.0)
    assert rate.seconds(1) == pytest.approx(1.3 * before)


def test_a_first_small_piece_says_little_of_a_large_one() -> None:
    """It takes a time of its own, the first longest: of that nobody is refused who asks for much."""
    rate = Rate(0.001)
    rate.note(5, 0.5)
    assert rate.seconds(5) == pytest.approx(0.5)
    assert rate.seconds(500) == pytest.approx(0.5 + 495 * 0.001)
    assert rate.note(500, 5.0), "it says more than all before"
    assert rate.seconds(500) == pytest.approx(500 * 5.5 / 505)
    assert not rate.note(500, 5.0)


def test_the_first_pieces_weigh_alike() -> None:
    rate = Rate(0.001)
    for seconds in (1.0, 2.0, 3.0):
        rate.note(10, seconds)
    assert rate.of_unit == pytest.approx(0.2)


def test_each_kind_of_work_of_each_model_has_its_own() -> None:
    rates = Rates()
    rates.of("a", Work.FORWARD).note(1, 7.0)
    assert rates.of("a", Work.FORWARD).seconds(1) == 7.0
    assert rates.of("a", Work.GRADIENT).seconds(1) == Work.GRADIENT.guess
    assert rates.of("b", Work.FORWARD).seconds(1) == Work.FORWARD.guess
