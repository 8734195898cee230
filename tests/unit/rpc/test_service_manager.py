"""What a service manager hears, over real datagram sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dst_grpc.rpc.service_manager import ServiceManager

SECONDS = 30.0


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(SECONDS)
        manager.bind(address)
        yield manager


@pytest.mark.parametrize("kind", ["a path", "abstract"])
def test_it_hears_of_the_servers_life(kind: str, tmp_path: Path) -> None:
    name = f"dst-test-{os.getpid()}"
    bound, told = (str(tmp_path / name), str(tmp_path / name)) if kind == "a path" else (f"\0{name}", f"@{name}")
    with listening(bound) as manager:
        server = ServiceManager.of({"NOTIFY_SOCKET": told})
        assert server.watchdog_seconds is None
        before = time.monotonic_ns() // 1000
        server.ready()
        server.reloading()
        server.stopping()
        assert manager.recv(100) == b"READY=1"
        reloading, micros = manager.recv(100).decode().split("\n")
        assert reloading == "RELOADING=1"
        name, _, value = micros.partition("=")
        assert name == "MONOTONIC_USEC"
        assert before <= int(value) <= time.monotonic_ns() // 1000
        assert manager.recv(100) == b"STOPPING=1"


async def test_signs_of_life_are_sent_as_long_as_the_loop_runs(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as manager:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())}
        server = ServiceManager.of(environment)
        assert server.watchdog_seconds == 0.002
        living = asyncio.create_task(server.keep_alive())
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}],
)
async def test_nobody_who_listens_is_no_error(environment: dict[str, str]) -> None:
    server = ServiceManager.of(environment)
    server.ready()
    await server.keep_alive()
    assert server.watchdog_seconds is None
