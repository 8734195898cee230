"""Threads beside the event loop: callers take turns, and who is gone is passed over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dst_grpc.contexts.threads import ShortThreads, Threads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize("cls", [Threads, ShortThreads])
async def test_callers_take_turns(cls: type[Threads], gate: threading.Event) -> None:
    """Else whoever has much to read or to plan is served before all who ask after."""
    threads, order = cls("test", at_once=1), list[str]()
    first = asyncio.create_task(threads.run(gate.wait, 30, caller="greedy"))
    await asyncio.sleep(0)
    asked = [(name, f"{name} {i}") for name, count in (("greedy", 3), ("polite", 2)) for i in range(count)]
    waiting = [asyncio.create_task(threads.run(order.append, what, caller=name)) for name, what in asked]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *waiting)
    assert order == ["greedy 0", "polite 0", "greedy 1", "polite 1", "greedy 2"]
    assert await threads.run(int, "7") == 7


async def test_who_is_gone_while_waiting_is_passed_over(gate: threading.Event) -> None:
    threads, order = Threads("test", at_once=1), list[str]()
    first = asyncio.create_task(threads.run(gate.wait, 30))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(threads.run(order.append, name, caller=name)) for name in "abc"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[2].cancel()
    gate.set()
    await asyncio.gather(first, waiting[1])
    with suppress(asyncio.CancelledError):
        await waiting[0]
    assert order == ["b"]
    assert await threads.run(int, "7") == 7


async def test_a_turn_that_comes_as_its_caller_leaves_is_not_lost(gate: threading.Event) -> None:
    gate.set()
    threads = Threads("test", at_once=1)
    leaving: list[asyncio.Task[object]] = []

    async def first() -> None:
        await threads.run(gate.wait, 30)
        leaving[0].cancel()  # whose turn this has just become

    begun = asyncio.create_task(first())
    await asyncio.sleep(0)
    leaving.append(asyncio.create_task(threads.run(int, "1", caller="a")))
    last = asyncio.create_task(threads.run(int, "2", caller="b"))
    await begun
    assert await last == 2
    assert await threads.run(int, "7") == 7
