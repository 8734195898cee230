"""The process of a server: signals however early, and what a service manager hears of it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import process_of

SLOW_START = """
import sys
from dst_grpc.rpc import process, settings
from tests.fake_parts import FakeParts, FakeRegistry

def wait(stage):
    print(stage, file=sys.stderr, flush=True)
    sys.stdin.readline()

class SlowParts(FakeParts):
    def build_registry(self):
        return FakeRegistry(2)

def build(_settings):
    wait("building")
    parts = SlowParts()
    preload = parts.cache.load
    def load(*arguments, **options):
        wait("preloading now")
        return preload(*arguments, **options)
    parts.cache.load = load
    return parts.parts

process.build_parts = build
process.serve(settings.Settings(port=0, preload=("tiny",)))
"""


@pytest.mark.parametrize("stage", ["building", "preloading now"])
async def test_a_hangup_before_the_server_serves_reloads_once_it_does(stage: str) -> None:
    """However early: when what is to be served is built, when it is preloaded."""
    async with process_of("-c", SLOW_START) as (process, logged):
        assert process.stdin is not None
        for reached in ("building", "preloading now"):
            await logged(reached)
            if reached == stage:
                process.send_signal(signal.SIGHUP)
            process.stdin.write(b"go on\n")
        assert "added=model-000" in await logged(" reloaded ")


EARLY_HANGUP = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class HangUp(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"dst_grpc.cli._app", "dst_grpc.rpc.process", "torch"}:
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, HangUp())
from dst_grpc.cli import main
main()
"""


async def test_a_hangup_while_the_command_is_being_imported_reloads_once_it_serves() -> None:
    async with process_of("-c", EARLY_HANGUP, "serve", "--port", "0") as (_process, logged):
        await logged(" reloaded ")


async def test_a_service_manager_hears_when_it_serves_reloads_lives_and_stops(tmp_path: Path) -> None:
    """And a second signal ends a notice that would be long."""
    messages: asyncio.Queue[bytes] = asyncio.Queue()

    class Manager(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _address: object) -> None:
            messages.put_nowait(data)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Manager, sock=listening)

        async def told() -> bytes:
            """The next message, apart from signs of life."""
            while (message := await messages.get()) == b"WATCHDOG=1":
                pass
            return message

        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        variables["DST_DRAIN_NOTICE_SECONDS"] = "10min"
        async with process_of("-c", SLOW_START, **variables) as (process, logged):
            assert process.stdin is not None
            for reached in ("building", "preloading now"):
                await logged(reached)
                if reached == "preloading now":
                    assert await messages.get() == b"WATCHDOG=1"
                    assert {*iter_now(messages)} <= {b"WATCHDOG=1"}, "it is not ready"
                process.stdin.write(b"go on\n")
            assert await told() == b"READY=1"
            process.send_signal(signal.SIGHUP)
            assert (await told()).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await told() == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert await told() == b"STOPPING=1"
            assert "notice_seconds=600" in await logged("draining")
        transport.close()


def iter_now(messages: asyncio.Queue[bytes]) -> Iterator[bytes]:
    """What came by now."""
    while not messages.empty():
        yield messages.get_nowait()
