"""Sweeps: one timer, as long as anything is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dst_grpc.contexts.sweeps import SWEEP_SECONDS, Sweeps


class Timers:
    """Timers that a test lets go off."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.cancelled = 0

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timers:
        assert seconds == SWEEP_SECONDS
        self.waiting.append(callback)
        return self

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize("n_left", [1, 3])
def test_it_goes_on_until_nothing_is_left(n_left: int) -> None:
    timers, left = Timers(), [*range(n_left)]

    def sweep() -> bool:
        left.pop()
        return bool(left)

    sweeps = Sweeps(sweep, timers.call_later)
    sweeps.go_on()
    sweeps.go_on()
    while timers.waiting:
        (callback,) = timers.waiting
        timers.waiting.clear()
        callback()
    assert not left
    sweeps.go_on()
    assert len(timers.waiting) == 1


def test_a_closed_one_cancels_its_timer() -> None:
    timers = Timers()
    sweeps = Sweeps(lambda: True, timers.call_later)
    sweeps.close()
    assert timers.cancelled == 0
    sweeps.go_on()
    sweeps.close()
    assert timers.cancelled == 1
