"""A forked process gets an answer, or is told at once that it gets none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_service import FakeService

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import asyncio, multiprocessing, os, sys
from dst_grpc.client import AsyncClient, Client, make_request

target = sys.argv[1]

def models():
    with Client(target) as client:
        return len(client.models())

def tell(work):
    try:
        print(work(), flush=True)
    except RuntimeError as error:
        print(error, flush=True)

def in_child(work):
    sys.stdout.flush()
    process = multiprocessing.get_context("fork").Process(target=tell, args=(work,))
    process.start()
    process.join()
    print("exit", process.exitcode)

"""
WAS_OPEN = "this process was forked while a client was open"
WAS_MADE = "this client was made before the process was forked"


def run(service: FakeService, code: str, **environment: str) -> list[str]:
    """The lines that *code* prints in an interpreter of its own, which has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + code, service.target],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_client_of_the_child_is_refused_at_once_while_the_parent_s_is_open(service: FakeService) -> None:
    code = """
with Client(target) as client:
    client.models()
    in_child(models)
    print("on", len(client.models()))
"""
    lines = run(service, code)
    assert lines[0].startswith(WAS_OPEN)
    assert lines[1:] == ["exit 0", "on 3"]


def test_a_client_that_is_inherited_is_refused_at_once(service: FakeService) -> None:
    lines = run(service, "client = Client(target)\nclient.models()\nin_child(client.models)\nin_child(client.close)")
    assert lines[0].startswith(WAS_MADE)
    assert lines[1:] == ["exit 0", "None", "exit 0"]


def test_a_child_of_a_process_that_is_in_the_middle_of_an_answer_lives(service: FakeService) -> None:
    code = """
with Client(target) as client:
    answers = client.derive_stream([make_request("When Mary", ["mlp_post_act"])] * 40)
    next(answers)
    in_child(models)
    in_child(lambda: next(answers))
    in_child(answers.close)
    print("on", len(list(answers)))
"""
    lines = run(service, code, GRPC_ENABLE_FORK_SUPPORT="0")
    assert lines[0].startswith(WAS_OPEN)
    assert lines[2].startswith(WAS_MADE)
    assert [*lines[1::2], lines[4], lines[-1]] == ["exit 0"] * 3 + ["None", "on 39"]


def test_an_async_client_that_is_inherited_is_refused_at_once(service: FakeService) -> None:
    code = """
client = AsyncClient(target)
async def ask():
    return len(await client.models())
async def stream():
    return [part async for part in client.derive_stream([])]
asyncio.run(ask())
in_child(lambda: asyncio.run(ask()))
in_child(lambda: asyncio.run(stream()))
"""
    lines = run(service, code)
    assert lines[1::2] == ["exit 0", "exit 0"]
    assert all(line.startswith(WAS_MADE) for line in lines[::2])


@pytest.mark.parametrize(
    "before",
    [
        "client = Client(target)\nclient.models()\nclient.close()",
        "client = Client(target)",
        "asyncio.run(AsyncClient(target).close())",
    ],
    ids=["closed", "never used", "async"],
)
def test_a_client_of_the_child_answers_if_none_was_open(service: FakeService, before: str) -> None:
    assert run(service, f"{before}\nin_child(models)") == ["3", "exit 0"]


def test_a_child_ends_as_it_pleases_though_it_inherited_a_client(service: FakeService) -> None:
    code = """
with Client(target) as client:
    client.models()
    pid = os.fork()
    if pid == 0:
        sys.exit(7)  # leaves the block, and the interpreter, in the ordinary way
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(len(client.models()))
"""
    assert run(service, code) == ["7", "3"]
