from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from dst_grpc.rpc.hangups import Hangups


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_those_that_come_before_and_after_somebody_is_told_end_nothing() -> None:
    hangups = Hangups.installed()
    assert Hangups.installed() is hangups
    told: list[str] = []
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    with hangups.told_to(lambda: told.append("first")):
        assert told == ["first"], "once for all that came before"
        signal.raise_signal(signal.SIGHUP)
        assert told == ["first", "first"]
    signal.raise_signal(signal.SIGHUP)
    with hangups.told_to(lambda: told.append("second")):
        assert told == ["first", "first", "second"]
