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


# Interruptions


class Interruptible:
    """A job that says when it runs, and gives way once it is told to."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._gate = Gate()
        self.runs, self.may_go_on = self._gate.runs, self._gate.may_end
        self.states: list[tuple[bool, int]] = []
        """Whether gradients were on, and how many threads there were, before and after it gave way."""

    def __call__(self) -> str:
        with torch.no_grad():
            torch.set_num_threads(2)
            self.states.append(state())
            done = self._gate()
            self._worker.give_way()
            self.states.append(state())
        return done


def state() -> tuple[bool, int]:
    return torch.is_grad_enabled(), torch.get_num_threads()


async def test_another_job_runs_where_the_running_one_gives_way(worker: Worker) -> None:
    """As if it had begun by itself: on the thread, with gradients, and with threads of its own."""
    job, seen = Interruptible(worker), list[tuple[bool, int]]()
    running = worker.submit(job)
    await job.runs()
    behind = worker.submit(lambda: len(seen))
    interrupting = worker.interrupt(lambda: seen.append(state()))
    job.may_go_on.set()
    await interrupting
    assert await running == "done"
    assert seen == [(True, 1)]
    assert job.states == [(False, 2)] * 2
    assert await behind == 1


async def test_what_interrupts_runs_at_the_latest_once_the_running_job_is_over(worker: Worker) -> None:
    gate = Gate()
    running = worker.submit(gate)
    await gate.runs()
    interrupting = worker.interrupt(lambda: running.done() or gate.may_end.is_set())
    gate.may_end.set()
    assert await interrupting
    assert await worker.interrupt(lambda: "an idle worker runs it at once") == "an idle worker runs it at once"


async def test_errors_of_what_interrupts_are_its_own(worker: Worker) -> None:
    job = Interruptible(worker)
    running = worker.submit(job)
    await job.runs()
    interrupting = worker.interrupt(fail_as_a_cpu)
    job.may_go_on.set()
    with pytest.raises(Exhausted):
        await interrupting
    assert await running == "done"


async def test_no_other_thread_gives_way(worker: Worker) -> None:
    gate = Gate()
    running = worker.submit(gate)
    await gate.runs()
    interrupting = worker.interrupt(threading.current_thread)
    await asyncio.to_thread(worker.give_way)
    assert not interrupting.done()
    gate.may_end.set()
    await running
    assert (await interrupting).name.startswith("dst-cpu")


async def test_closing_drops_what_would_interrupt(worker: Worker) -> None:
    job = Interruptible(worker)
    running = worker.submit(job)
    await job.runs()
    waiting = worker.interrupt(lambda: 1)
    closing = asyncio.create_task(worker.close())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    job.may_go_on.set()
    assert await running == "done"
    await closing
    with pytest.raises(asyncio.CancelledError):
        await worker.interrupt(lambda: 1)
