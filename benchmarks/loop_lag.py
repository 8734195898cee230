"""By how much the worst requests make the event loop late: `python -m benchmarks loop_lag`.

Each is sent alone, several times, to a server in a process of its own that measures its event loop. Other processes
make it late too: what it waited for a processor is taken off, and the smallest of the largest lags of each time
counts; that of an idle server stands beside them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from benchmarks.worst_requests import worst_requests
from dst_grpc.observability.event_loop import measure_lag
from dst_grpc.rpc.interpreter import favour_event_loop
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from scripts.serving import queued_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from multiprocessing.connection import Connection

    from benchmarks.worst_requests import WorstRequest

RIGHT_SECONDS = 0.05
_TRIES = 3
_CALL_SECONDS = 10.0
_INTERVAL_SECONDS = 0.002
_IDLE_SECONDS = 0.2


async def _serve(connection: Connection) -> None:
    """Serve; answer each message of the pipe with the largest lag since the one before; until the pipe closes."""
    worst, queued = [0.0], [0.0]

    def observe(seconds: float) -> None:
        before, queued[0] = queued[0], queued_seconds(os.getpid())
        worst[0] = max(worst[0], seconds - (queued[0] - before))

    def answer() -> None:
        with suppress(EOFError):
            connection.recv()
            connection.send(worst[0])
            worst[0] = 0.0
            return
        loop.remove_reader(connection.fileno())
        ended.set()

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    async with running_server(Settings(port=0, log_level="ERROR", preload=("embedded",))) as server:
        favour_event_loop()
        connection.send(server.address)
        measuring = asyncio.create_task(measure_lag(observe, _INTERVAL_SECONDS))
        loop.add_reader(connection.fileno(), answer)
        await ended.wait()
        measuring.cancel()


def _serve_in_process(connection: Connection) -> None:
    asyncio.run(_serve(connection))


class LagServer:
    """A server in a process of its own, and how late its event loop was."""

    def __init__(self, address: str, connection: Connection) -> None:
        """Ask over *connection*."""
        self.address = address
        self._connection = connection

    async def worst_lag(self) -> float:
        """The largest lag, in seconds, since this was asked before."""
        self._connection.send(None)
        lag: float = await asyncio.to_thread(self._connection.recv)
        return lag


@contextmanager
def lag_server() -> Iterator[LagServer]:
    """Start it, and stop it at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_in_process, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield LagServer(ours.recv(), ours)
    finally:
        ours.close()
        process.join(30)
        if process.is_alive():
            process.kill()


async def lag_of(server: LagServer, channel: grpc.aio.Channel, request: WorstRequest, tries: int) -> tuple[float, str]:
    """The smallest, over *tries*, of the largest lags while *request* is sent and answered; and the call's code."""
    lags, code = [], ""
    for _ in range(tries):
        await server.worst_lag()
        code = await _called(channel, request)
        lags.append(await server.worst_lag())
        if lags[-1] < RIGHT_SECONDS / 10:
            break
    return min(lags), code


async def _called(channel: grpc.aio.Channel, request: WorstRequest) -> str:
    async def messages() -> AsyncIterator[bytes]:
        for message in request.messages:
            yield message

    stream: Any = channel.stream_stream(request.method)
    try:
        async for _ in stream(messages(), timeout=_CALL_SECONDS, metadata=request.metadata):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def _report(server: LagServer, only: str) -> list[str]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        await server.worst_lag()
        await asyncio.sleep(_IDLE_SECONDS)
        idle = await server.worst_lag()
        found = [
            (*await lag_of(server, channel, request, _TRIES), request)
            for request in worst_requests()
            if only in request.name
        ]
    found.sort(key=lambda each: -each[0])
    late = sum(lag > RIGHT_SECONDS for lag, *_ in found)
    limit = f"{RIGHT_SECONDS * 1e3:.0f} ms"
    lines = [f"{len(found)} of the worst requests: event loop late by > {limit} in {late} (idle: {idle * 1e3:.1f} ms)"]
    for lag, code, request in found:
        size = sum(map(len, request.messages)) / 1e6
        lines.append(f"  {lag * 1e3:7.1f} ms  {size:5.2f} MB  {code:18} {request.name}")
    return lines


def report(only: str = "") -> Iterator[str]:
    """All of it, or the requests whose names hold *only*."""
    with lag_server() as server:
        yield from asyncio.run(_report(server, only))
