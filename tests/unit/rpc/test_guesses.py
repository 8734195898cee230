from __future__ import annotations

import pytest

from dst_grpc.errors import Exhausted, Reason
from dst_grpc.rpc.guesses import Guesses


class Clock:
    """Stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def wrong_until_refused(guesses: Guesses, host: str = "a") -> tuple[list[float], Exhausted]:
    """The waits of one wrong token after the other, and the error that ends them."""
    waits: list[float] = []
    while len(waits) < 100:
        try:
            waits.append(guesses.wait_after_wrong(host))
        except Exhausted as error:
            return waits, error
    pytest.fail("nobody is refused")


def test_after_a_few_wrong_tokens_each_waits_a_second_longer() -> None:
    waits, error = wrong_until_refused(Guesses(clock=Clock()))
    assert waits == [0.0] * 10 + [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (error.reason, error.retry_after_seconds) == (Reason.QUOTA_EXCEEDED, 6.0)


def test_what_is_refused_as_too_many_costs_no_further_time() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    wrong_until_refused(guesses)
    for _ in range(1000):
        with pytest.raises(Exhausted):
            guesses.wait_after_wrong("a")
    clock.now += 1.0
    assert guesses.wait_after_wrong("a") == 5.0


def test_in_the_long_run_a_host_has_one_guess_a_second() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    answered = 0
    for _ in range(10_000):
        clock.now += 0.01
        try:
            guesses.wait_after_wrong("a")
        except Exhausted:
            continue
        answered += 1
    assert 100 <= answered <= 100 + 15


def test_hosts_are_slowed_apart_and_forgiven_in_time() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    wrong_until_refused(guesses, "a")
    assert guesses.wait_after_wrong("b") == 0.0
    clock.now += 100.0
    assert len(wrong_until_refused(guesses, "a")[0]) == 15


def test_only_so_many_hosts_are_remembered() -> None:
    guesses = Guesses(clock=Clock())
    for i in range(10_000):
        guesses.wait_after_wrong(f"host {i}")
    assert len(guesses) == 4096
