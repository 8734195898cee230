"""Ends that nobody planned: an interrupt, a client nobody closed, an iterator nobody finished."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.client import Client, _loop
from dst_grpc.client._loop import BackgroundLoop
from dst_grpc.domain.requests import DeriveRequest
from tests.fake_service import FakeService

ROOT = Path(__file__).resolve().parents[3]
WATCH = """
import sys
from dst_grpc.client import Client
client = Client(sys.argv[1])
print(len(client.models()))
statuses = client.watch_contexts()
print(next(statuses).state, flush=True)
"""
STREAM = """
import sys
from dst_grpc.client import Client, make_request
client = Client(sys.argv[1])
answers = client.derive_stream([make_request("When Mary", ["mlp_post_act"])] * 40)
print(next(answers)[0], flush=True)
"""
TRY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
try:
    print("waiting", flush=True)
    {wait}
except KeyboardInterrupt:
    statuses.close()
    print("interrupted")
"""


def program(code: str, service: FakeService) -> subprocess.Popen[str]:
    """Run *code* in an interpreter of its own, which treats warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, service.target],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("code", "said"), [(WATCH, "3\navailable\n"), (STREAM, "0\n")], ids=["watch", "stream"])
def test_a_program_ends_quietly_though_nobody_closed_the_client(service: FakeService, code: str, said: str) -> None:
    with program(code, service) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, said, "")


@pytest.mark.parametrize("wait", ["next(statuses)", "client.derive('slow', 'logits')"])
def test_an_interrupt_ends_the_wait_and_the_call(service: FakeService, wait: str) -> None:
    code = WATCH + TRY.format(wait=wait)
    service.scripts["slow"] = _never
    with program(code, service) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["3\n", "available\n"]
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert service.cancelled.wait(10)


def test_a_forgotten_client_leaves_no_thread(service: FakeService) -> None:
    before = set(threading.enumerate())
    client = Client(service.target)
    client.models()
    del client
    gc.collect()
    assert [thread for thread in set(threading.enumerate()) - before if "dst-grpc" in thread.name] == []


def test_a_forgotten_iterator_ends_its_call(client: Client, service: FakeService) -> None:
    statuses = client.watch_contexts()
    next(statuses)
    del statuses
    gc.collect()
    assert service.cancelled.wait(10)
    assert len(client.models()) == 3


def test_an_interrupt_anywhere_leaves_nothing_behind() -> None:
    """Not even a warning of a coroutine that was never awaited: warnings are errors here."""
    loop, place = BackgroundLoop(), 0
    while _is_interrupted(loop, place):
        gc.collect()
        place += 1
    assert place > 5
    assert loop.run(_two) == 2
    assert loop.run(_tasks) == 1
    loop.close()


def _is_interrupted(loop: BackgroundLoop, place: int) -> bool:
    """Run something on *loop*, interrupted at the line of its module that is reached after *place* others; whether
    there is such a line."""
    left = place

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != _loop.__file__:
            return None
        if event != "return":
            left -= 1
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return loop.run(_two) != 2
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)


async def _two() -> int:
    return 2


async def _tasks() -> int:
    """How many run, with this one; those that were cancelled have ended first."""
    await asyncio.sleep(0)
    return len(asyncio.all_tasks())


def test_a_closed_loop_runs_nothing() -> None:
    loop = BackgroundLoop()
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(_nothing)


async def _nothing() -> None: ...


async def _never(_: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
    await asyncio.Event().wait()
    yield inference_pb2.DeriveFrame()
