"""A piece of work has taken the time for which it ran itself."""

from __future__ import annotations

import threading

import pytest

from dst_grpc.pipeline.own_time import Timer, others_run, own_time


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dst_grpc.pipeline.own_time.time", clock)
    return clock


def test_what_runs_in_the_midst_of_work_is_no_part_of_it(clock: Clock) -> None:
    outer = Timer()
    clock.now += 1
    with others_run():
        inner = Timer()
        clock.now += 10
        with others_run():
            clock.now += 100
        clock.now += 20
        assert inner.seconds == 30
    clock.now += 2
    assert (outer.begun, inner.begun, outer.seconds) == (100, 101, 3)


def test_what_fails_in_the_midst_of_work_is_no_part_of_it(clock: Clock) -> None:
    timer = Timer()

    def fail() -> None:
        with others_run():
            clock.now += 10
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert timer.seconds == 0


def test_each_thread_has_its_own(clock: Clock) -> None:
    def interrupted() -> None:
        with others_run():
            clock.now += 10

    started = own_time()
    thread = threading.Thread(target=interrupted)
    thread.start()
    thread.join()
    assert own_time() - started == 10
