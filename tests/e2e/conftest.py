"""Servers over real sockets on 127.0.0.1: one on fakes per test, and one on the embedded model for the session."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc.status_pb2 import Status

from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceStub
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.errors import DstError
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.errors import error_from_status
from tests import graph_goldens
from tests.causal_goldens import MODELS, model_folder
from tests.fake_parts import FakeParts

CALL_SECONDS = 30.0
READY = re.compile(r"listening on (127\.0\.0\.1:\d+)")


class Rig(NamedTuple):
    """A server, what is behind it, and a channel to it."""

    server: Server
    parts: FakeParts
    channel: grpc.aio.Channel

    @property
    def scalars(self) -> Any:
        return DerivedScalarServiceStub(self.channel)

    @property
    def catalog(self) -> Any:
        return CatalogServiceStub(self.channel)

    @property
    def contexts(self) -> Any:
        return ContextServiceStub(self.channel)


@asynccontextmanager
async def rigged(parts: FakeParts | None = None, /, **settings: Any) -> AsyncGenerator[Rig, None]:
    """A server on fakes with *settings*, and a channel to it."""
    fakes = parts or FakeParts()
    async with (
        running_server(Settings(**{"port": 0} | settings), fakes.parts) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Rig(server, fakes, channel)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as ready:
        yield ready


def status_of(error: grpc.aio.AioRpcError) -> Status:
    """The details that came with *error*."""
    (raw,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status


def error_of(error: grpc.aio.AioRpcError) -> DstError:
    """Our error, rebuilt from what came."""
    return error_from_status(status_of(error))


@pytest.fixture(scope="session")
def embedded_address() -> Iterator[str]:
    """HOST:PORT of a server with the embedded model, a process of its own; DST_TEST_ADDRESS names one that runs."""
    if given := os.environ.get("DST_TEST_ADDRESS"):
        yield given
        return
    with served() as address:
        yield address


@pytest.fixture(scope="session")
def golden_address() -> Iterator[str]:
    """HOST:PORT of a server with the models of causal golden data, a process of its own."""
    with served(models={model: str(model_folder(model)) for model in MODELS}) as address:
        yield address


@pytest.fixture(scope="session")
def graphs_address() -> Iterator[str]:
    """HOST:PORT of a server with the models of golden graphs, a process of its own."""
    models = {model: str(graph_goldens.model_folder(model)) for model in ("gpt2", "llama", "qwen3", "gemma2")}
    with served(models=models, allow_failed_checks=True) as address:  # the transcoders are random
        yield address


@contextmanager
def served(**settings: Any) -> Iterator[str]:
    """HOST:PORT of a server with *settings*, a process of its own."""
    serve = f"process.serve(settings.Settings(**{ {'port': 0} | settings!r}))"
    code = f"from dst_grpc.rpc import process, settings; {serve}"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield ready_address(process)  # nobody reads the rest of the log
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


def ready_address(process: subprocess.Popen[str]) -> str:
    """Read the log of a server until it says where it listens."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := READY.search(line):
            return found[1]
    pytest.fail(f"the server did not start:\n{''.join(seen)}")


def stopped(process: subprocess.Popen[str]) -> str:
    """Have a server stop, which must end well; the rest of its log."""
    process.terminate()
    assert process.stderr is not None
    log = process.stderr.read()  # not communicate(), which would lose what was read ahead
    assert process.wait(CALL_SECONDS) == 0
    return log


def environment_with(**more: str) -> dict[str, str]:
    """The environment of a process that imports what this one does, with *more*."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


@asynccontextmanager
async def process_of(
    *command: str, **variables: str
) -> AsyncGenerator[tuple[Process, Callable[[str], Awaitable[str]]], None]:
    """A Python process that serves, and what waits for a line of its log; it is ended by SIGTERM."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment_with(**variables), stdin=pipe, stderr=pipe, stdout=pipe
    )

    async def logged(part: str) -> str:
        assert process.stderr is not None
        while True:
            line = (await process.stderr.readline()).decode()
            assert line, f"the log ended without {part!r}"
            if part in line:
                return line

    try:
        yield process, logged
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0


@pytest.fixture
async def embedded(embedded_address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the server with the embedded model."""
    async with grpc.aio.insecure_channel(embedded_address) as channel:
        yield channel
