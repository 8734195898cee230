"""Turns: so many at a time, of all callers and of each, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest

from dst_grpc.contexts.caller_turns import CallerTurns


class Going:
    """What goes on, of which caller, until it is told to end."""

    def __init__(self, turns: CallerTurns) -> None:
        self.turns = turns
        self.now: list[str] = []
        self.most = Counter[str]()
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str) -> None:
        """Begin *names*, whose callers are their first letters."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._go(name))
        await _settled()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await _settled()

    async def leave(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await _settled()

    async def _go(self, name: str) -> None:
        async with self.turns.turn(name[0]):
            self.now.append(name)
            callers = Counter(each[0] for each in self.now)
            self.most |= callers | Counter({"all": len(self.now)})
            try:
                await self._ends[name].wait()
            finally:
                self.now.remove(name)


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def going(**limits: int) -> AsyncIterator[Going]:
    """Ends all at last, and sees that nothing is counted then."""
    found = Going(CallerTurns(**limits))  # type: ignore[arg-type]
    yield found
    await found.end(*found.tasks)
    assert not found.now
    for task in found.tasks.values():
        with suppress(asyncio.CancelledError):
            await task
    assert not found.turns._going
    assert not found.turns._n_going
    assert not found.turns._waiting


async def test_callers_take_turns() -> None:
    async with going(at_once=1) as found:
        await found.begin("a1", "a2", "a3", "b1", "b2")
        order = []
        while found.now:
            order += found.now
            await found.end(*found.now)
        assert order == ["a1", "a2", "b1", "a3", "b2"]


async def test_each_caller_has_a_limit_of_its_own() -> None:
    async with going(at_once=4, at_once_per_caller=2) as found:
        await found.begin("a1", "a2", "a3", "b1")
        assert found.now == ["a1", "a2", "b1"]
        assert found.turns.n_waiting("a") == 1
        await found.end("b1")
        assert found.now == ["a1", "a2"]
        await found.end("a1")
        assert found.now == ["a2", "a3"]


async def test_one_of_each_caller_may_go_on_whatever_others_do() -> None:
    async with going(at_once=2, one_each=True) as found:
        await found.begin("a1", "a2", "b1", "b2", "c1")
        assert found.now == ["a1", "a2", "b1", "c1"]
        await found.end("b1")
        assert found.now == ["a1", "a2", "c1", "b2"]


async def test_who_goes_on_alone_is_not_held_up_by_those_that_left() -> None:
    """What was cancelled waits no longer, also for those of its caller that come after."""
    async with going(at_once=1, one_each=True) as found:
        await found.begin("a1", "b1", "b2", "b3")
        await found.leave("b2", "b3")
        assert not found.turns.n_waiting("b")
        await found.end("b1")
        await found.begin("b4")
        assert found.now == ["a1", "b4"]


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_turn_that_comes_as_its_caller_leaves_is_not_lost(leaves_first: bool) -> None:
    async with going(at_once=1) as found:
        await found.begin("a1", "b1", "c1")
        if leaves_first:
            found.tasks["b1"].cancel()
            await found.end("a1")
        else:
            found._ends["a1"].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            found.tasks["b1"].cancel()
            await _settled()
        assert found.now == ["c1"]


@pytest.mark.parametrize("seed", range(5))
async def test_no_limit_is_passed_and_no_turn_is_lost(seed: int) -> None:
    random, limits = Random(seed), {"at_once": 3, "at_once_per_caller": 2}
    async with going(**limits) as found:
        for i in range(60):
            await found.begin(f"{random.choice('abcd')}{i}")
            name = random.choice(list(found.tasks))
            await (found.end if random.random() < 0.6 else found.leave)(name)
        assert found.most["all"] == 3
        assert max(found.most[caller] for caller in "abcd") == 2
