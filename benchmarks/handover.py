"""What a call costs between socket and worker, beside a bare server that sends the same bytes in the same shape.

Both are processes of their own; ours logs, measures and knows its callers by token, as by default in production. The
processor's time of a server is that of all its threads. Rounds are interleaved, and ratios are those of one round: on
a machine that others use too, they say more than rates do.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.serving import small_request
from dst_grpc.domain.requests import ResolveRequest
from dst_grpc.wire.codec import to_wire
from scripts.serving import READY, SERVE, Server, running, write_tokens

_SERVICE = "/dst.v1.DerivedScalarService"
_TOKEN = "token-of-benchmark"
_ROUNDS, _CALLS = 9, 320
_IN_FLIGHT = (1, 64)


def serve_bytes() -> None:
    """A bare server: the first call of a method says what it answers to all others, each message of a stream."""
    asyncio.run(_serve_bytes())


async def _serve_bytes() -> None:
    answers: dict[str, list[bytes]] = {}

    def handler(method: str) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(_request: bytes, _context: object) -> AsyncIterator[bytes]:
            for message in answers[method]:
                yield message

        async def learn(messages: AsyncIterator[bytes], _context: object) -> bytes:
            answers[method.removesuffix("Learn")] = [message async for message in messages]
            return b""

        if method.endswith("Learn"):
            return grpc.stream_unary_rpc_method_handler(learn)
        return grpc.unary_stream_rpc_method_handler(answer)

    class Methods(grpc.GenericRpcHandler):
        def __init__(self) -> None:
            self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            method = handler_call_details.method
            if method not in self._handlers:
                self._handlers[method] = handler(method)
            return self._handlers[method]

    server = grpc.aio.server(handlers=(Methods(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextmanager
def _servers() -> Iterator[tuple[Server, Server]]:
    """Ours and the bare one."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        top = Path(folder)
        write_tokens(top / "tokens", {"benchmark": _TOKEN})
        ours = (*SERVE, "--metrics-port", "0", "--preload", "embedded", "--auth-token-file", str(top / "tokens"))
        bare = ("-c", "from benchmarks.handover import serve_bytes; serve_bytes()")
        first = stack.enter_context(running(*ours, log=top / "ours"))
        yield first, stack.enter_context(running(*bare, log=top / "bare"))


@dataclass
class _Found:
    """What rounds measured of one server."""

    seconds: list[float] = field(default_factory=list)
    """Seconds a call."""
    cpu: list[float] = field(default_factory=list)
    """The processor's seconds a call."""


async def _round(call: Any, request: bytes, server: Server, in_flight: int, found: _Found) -> None:
    metadata = (("authorization", f"Bearer {_TOKEN}"),)

    async def caller() -> None:
        for _ in range(_CALLS // in_flight):
            async for _message in call(request, metadata=metadata):
                pass

    cpu, started = server.cpu_seconds, time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    found.seconds.append((time.perf_counter() - started) / _CALLS)
    found.cpu.append((server.cpu_seconds - cpu) / _CALLS)


def _told(values: Sequence[float], pattern: str) -> str:
    """The median, and between which values the middle half lies."""
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{pattern}} ({first:{pattern}} to {third:{pattern}})"


async def _report(ours: Server, bare: Server) -> AsyncIterator[str]:
    small = small_request()
    requests = {"Resolve": to_wire(ResolveRequest(request=small)), "Derive": to_wire(small)}
    titles = {"Resolve": "Resolve, warm", "Derive": "Derive, small, from the store"}
    async with grpc.aio.insecure_channel(ours.address) as channel, grpc.aio.insecure_channel(bare.address) as other:
        for method, message in requests.items():
            request, full_name = message.SerializeToString(), f"{_SERVICE}/{method}"
            call: Any = channel.unary_stream(full_name)
            same: Any = other.unary_stream(full_name)
            learn: Any = other.stream_unary(full_name + "Learn")
            answer = [each async for each in call(request, metadata=(("authorization", f"Bearer {_TOKEN}"),))]
            await learn(iter(answer))
            for in_flight in _IN_FLIGHT:
                found, echo = _Found(), _Found()
                for number in range(_ROUNDS + 1):
                    await _round(call, request, ours, in_flight, found)
                    await _round(same, request, bare, in_flight, echo)
                    if not number:
                        found, echo = _Found(), _Found()  # the first warms up
                rates = [a / b for a, b in zip(echo.seconds, found.seconds, strict=True)]
                cpu = [a / b for a, b in zip(found.cpu, echo.cpu, strict=True)]
                yield (
                    f"  {titles[method]}, {len(request)} bytes in, {len(answer)} messages of {sum(map(len, answer))}"
                    f" bytes out, {in_flight} in flight, {_ROUNDS} rounds of {_CALLS} calls:"
                    f" calls/s {_told(rates, '.2f')} of a bare stream's; server CPU a call {_told(cpu, '.2f')} times,"
                    f" {statistics.median(found.cpu) * 1e3:.2f} and {statistics.median(echo.cpu) * 1e3:.2f} ms"
                )


async def _lines(ours: Server, bare: Server) -> list[str]:
    return [line async for line in _report(ours, bare)]


def report() -> Iterator[str]:
    """All of it."""
    yield "calls beside a bare grpc.aio stream of the same bytes; medians, and the middle half of the rounds:"
    with _servers() as (ours, bare):
        yield from asyncio.run(_lines(ours, bare))
