"""The worker: one job at a time, in order, and errors that say what happened."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import torch

from dst_grpc.errors import Exhausted, Reason
from dst_grpc.pipeline.worker import Worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("cpu")
    yield worker
    await worker.close()


class Gate:
    """A job that says when it runs and waits to be let through."""

    def __init__(self) -> None:
        self.is_running, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.is_running.set()
        assert self.may_end.wait(30)
        return "done"

    async def runs(self) -> None:
        assert await asyncio.to_thread(self.is_running.wait, 30)


async def test_jobs_run_in_the_order_in_which_they_came_on_one_thread(worker: Worker) -> None:
    seen: list[int] = []
    threads = set()

    def job(number: int) -> int:
        seen.append(number)
        threads.add(threading.current_thread())
        return number

    found = await asyncio.gather(*(worker.submit(lambda i=i: job(i)) for i in range(50)))  # type: ignore[misc]  # mypy sees no default
    assert found == seen == list(range(50))
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_it_is_busy_while_a_job_runs_and_no_longer(worker: Worker) -> None:
    assert worker.busy_seconds == 0
    gate = Gate()
    job = worker.submit(gate)
    await gate.runs()
    so_far = worker.busy_seconds
    while worker.busy_seconds == so_far:
        pass
    gate.may_end.set()
    await job
    idle = worker.busy_seconds
    assert idle == worker.busy_seconds > so_far


async def test_a_job_s_own_exception_reaches_its_caller(worker: Worker) -> None:
    def fail() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await worker.submit(fail)
    assert await worker.submit(lambda: 1) == 1


def fail_as_a_gpu() -> None:
    raise torch.OutOfMemoryError("tried to allocate, at /secret")


def fail_as_a_cpu() -> None:
    torch.empty(1 << 60)


@pytest.mark.parametrize("fail", [fail_as_a_gpu, fail_as_a_cpu])
async def test_running_out_of_memory_is_exhaustion(worker: Worker, fail: Callable[[], None]) -> None:
    with pytest.raises(Exhausted) as caught:
        await worker.submit(fail)
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert "secret" not in caught.value.message


async def test_a_job_cancelled_while_it_waits_never_runs(worker: Worker) -> None:
    gate, ran = Gate(), []
    first = worker.submit(gate)
    await gate.runs()
    second = worker.submit(lambda: ran.append(2))
    third = worker.submit(lambda: ran.append(3))
    second.cancel()
    await asyncio.sleep(0)  # the executor is told by a callback
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.may_end.set()
    assert await first == "done"
    await third
    assert ran == [3]


async def test_closing_lets_the_running_job_end_and_drops_the_others(worker: Worker) -> None:
    gate = Gate()
    running = worker.submit(gate)
    await gate.runs()
    waiting = worker.submit(lambda: 1)
    closing = asyncio.create_task(worker.close())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.may_end.set()
    assert await running == "done"
    await closing
    assert worker.submit(lambda: 1).cancelled()
