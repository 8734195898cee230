"""Admission: first come, first served, within a budget, and no byte lost whatever callers do."""

from __future__ import annotations

import asyncio
import random

import pytest

from dst_grpc.errors import Exhausted, Reason, Unavailable
from dst_grpc.pipeline.admission import DEFAULT_RUN_BYTES, Admission, Limits


class Caller:
    """Somebody who asks for bytes and keeps them until told to go."""

    def __init__(self, admission: Admission, wanted_bytes: int) -> None:
        self.is_in = asyncio.Event()
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission, wanted_bytes))

    async def _stay(self, admission: Admission, wanted_bytes: int) -> None:
        async with admission.admitted(wanted_bytes):
            self.is_in.set()
            await self.may_go.wait()

    async def leave(self) -> None:
        self.may_go.set()
        await self.task


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def admission() -> Admission:
    return Admission(Limits(max_run_bytes=10, max_queued_requests=2))


async def test_requests_run_together_while_they_fit(admission: Admission) -> None:
    callers = [Caller(admission, 5), Caller(admission, 5), Caller(admission, 1)]
    await settle()
    assert [caller.is_in.is_set() for caller in callers] == [True, True, False]
    await callers[0].leave()
    await settle()
    assert callers[2].is_in.is_set()
    for caller in callers[1:]:
        await caller.leave()


async def test_a_small_request_does_not_overtake_a_large_one(admission: Admission) -> None:
    first, large, small = Caller(admission, 6), Caller(admission, 8), Caller(admission, 1)
    await settle()
    assert not small.is_in.is_set(), "it would fit, but it came later"
    await first.leave()
    await settle()
    assert large.is_in.is_set()
    assert small.is_in.is_set()
    await large.leave()
    await small.leave()


async def test_what_can_never_fit_is_refused_at_once(admission: Admission) -> None:
    with pytest.raises(Exhausted) as caught:
        async with admission.admitted(11):
            pass
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert caught.value.metadata == {"estimated_bytes": "11", "limit_bytes": "10"}
    assert caught.value.retry_after_seconds is None, "waiting does not help"


async def test_one_more_than_may_wait_is_refused(admission: Admission) -> None:
    callers = [Caller(admission, 10) for _ in range(3)]
    await settle()
    with pytest.raises(Exhausted) as caught:
        async with admission.admitted(1):
            pass
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_seconds
    for caller in callers:
        await caller.leave()
    async with admission.admitted(10):
        pass


async def test_one_who_stops_waiting_lets_the_next_in(admission: Admission) -> None:
    first, large, small = Caller(admission, 6), Caller(admission, 8), Caller(admission, 4)
    await settle()
    large.task.cancel()
    await settle()
    assert small.is_in.is_set()
    await first.leave()
    await small.leave()
    async with admission.admitted(10):
        pass


async def test_one_cancelled_just_as_it_is_admitted_gives_its_bytes_back(admission: Admission) -> None:
    first, second = Caller(admission, 10), Caller(admission, 10)
    await settle()
    first.may_go.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second.task.cancel()
    await asyncio.gather(first.task, second.task, return_exceptions=True)
    assert not first.task.exception()
    async with asyncio.timeout(5), admission.admitted(10):
        pass


async def test_one_cancelled_just_before_its_turn_harms_nobody(admission: Admission) -> None:
    """The one who leaves finds it in the queue still, already gone."""
    async with admission.admitted(10):
        gone, next_in_line = Caller(admission, 10), Caller(admission, 10)
        await settle()
        gone.task.cancel()
    await settle()
    assert gone.task.cancelled()
    assert next_in_line.is_in.is_set()
    await next_in_line.leave()
    async with asyncio.timeout(5), admission.admitted(10):
        pass


async def test_an_error_inside_gives_the_bytes_back(admission: Admission) -> None:
    async def fail() -> None:
        async with admission.admitted(10):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  its own
        await fail()
    async with asyncio.timeout(5), admission.admitted(10):
        pass


async def test_closing_refuses_who_waits_and_who_comes_but_not_who_is_in(admission: Admission) -> None:
    inside, waiting, leaving = Caller(admission, 10), Caller(admission, 1), Caller(admission, 1)
    await settle()
    leaving.task.cancel()
    admission.close()
    with pytest.raises(Unavailable) as caught:
        await waiting.task
    assert caught.value.reason is Reason.DRAINING
    with pytest.raises(Unavailable):
        async with admission.admitted(0):
            pass
    await inside.leave()
    assert leaving.task.cancelled()


async def test_no_byte_is_lost_however_callers_come_and_go() -> None:
    chance = random.Random(7)
    admission = Admission(Limits(max_run_bytes=10, max_queued_requests=1000))
    callers: list[Caller] = []
    for _ in range(300):
        callers.append(Caller(admission, chance.randrange(11)))
        one = chance.choice(callers)
        if chance.random() < 0.5:
            one.task.cancel()
        else:
            one.may_go.set()
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
    for caller in callers:
        caller.may_go.set()
    results = await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert admission._used_bytes == 0
    assert not admission._waiting


def test_without_a_limit_four_gigabytes_are_the_budget() -> None:
    assert Admission(Limits())._max_bytes == DEFAULT_RUN_BYTES == 4 * 2**30
