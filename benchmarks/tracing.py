"""What traces cost: servers that export none, those of one call in a hundred, and all, asked the same in turn.

The processor's time of a server is that of all its threads, so that what makes and sends batches of spans counts too.
Rounds are interleaved, and ratios are those of one round. The collector is a process of its own, which drops what it is
sent. What a server without traces does for them is timed by itself, in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import timeit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.bare import serve_bare
from benchmarks.measure import Spread
from benchmarks.serving import small_request
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.observability.trace_context import trace_parent
from dst_grpc.wire.codec import to_wire
from scripts.serving import SERVE, Server, running

_DERIVE = "/dst.v1.DerivedScalarService/Derive"
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_OFF, _ONE_PERCENT, _ALL = "none", "1 % of calls", "all"
_SAMPLERS: Mapping[str, Mapping[str, str]] = {
    _OFF: {},
    _ONE_PERCENT: {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    _ALL: {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
}
_ROUNDS = 15
_CALLS = {"asked again": 400, "new prompts": 120}
"""Calls of a round."""
_IN_FLIGHT = 8
_METADATA = (("user-agent", "grpc-python/1.85.0"), ("authorization", "Bearer of-somebody"), ("dst-model", "embedded"))
_PARENT = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")


def collect() -> None:
    """A collector that drops what it is sent."""
    asyncio.run(_collect())


async def _collect() -> None:
    async def export(_request: bytes, _context: object) -> bytes:
        return b""

    await serve_bare({_EXPORT: grpc.unary_unary_rpc_method_handler(export)}.get)


@contextmanager
def _servers() -> Iterator[Mapping[str, Server]]:
    """A server for each of the samplers, by its name."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        top = Path(folder)
        collector = stack.enter_context(
            running("-c", "from benchmarks.tracing import collect; collect()", log=top / "collector")
        )
        servers = {}
        for name, sampler in _SAMPLERS.items():
            exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}"} if sampler else {}
            log = top / name.replace(" ", "-")
            servers[name] = stack.enter_context(
                running(*SERVE, "--preload", "embedded", log=log, **exported, **sampler)
            )
        yield servers


async def _ask(call: Any, request: bytes) -> None:
    async for _ in call(request, metadata=_METADATA):
        pass


async def _round(call: Any, server: Server, requests: Sequence[bytes]) -> float:
    """The processor's seconds a call."""
    waiting = iter(requests)

    async def caller() -> None:
        for request in waiting:
            await _ask(call, request)

    before = server.cpu_seconds
    await asyncio.gather(*(caller() for _ in range(_IN_FLIGHT)))
    return (server.cpu_seconds - before) / len(requests)


def _requests(kind: str, targets: Iterator[int]) -> list[bytes]:
    """The requests of a round; new prompts are of runs that no server has seen."""
    of_run = (small_request() if kind == "asked again" else small_request(1 + next(targets)) for _ in itertools.count())
    return [to_wire(request).SerializeToString() for request in itertools.islice(of_run, _CALLS[kind])]


async def _measured(servers: Mapping[str, Server]) -> list[str]:
    lines, targets = [], itertools.count()
    async with AsyncExitStack() as stack:
        calls: dict[str, Any] = {}
        for name, server in servers.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            calls[name] = channel.unary_stream(_DERIVE)
        for kind in _CALLS:
            found: dict[str, list[float]] = {name: [] for name in servers}
            for number in range(_ROUNDS + 1):
                requests = _requests(kind, targets)
                for name, server in servers.items():
                    seconds = await _round(calls[name], server, requests)
                    if number:  # the first fills stores
                        found[name].append(seconds)
            for name in (_ONE_PERCENT, _ALL):
                ratio = Spread.of(one / off for one, off in zip(found[name], found[_OFF], strict=True))
                cpu, off = (statistics.median(found[each]) * 1e6 for each in (name, _OFF))
                lines.append(
                    f"  Derive, small, {kind}, traces of {name}: CPU x {ratio}; {cpu:.0f} us a call, {off:.0f} without"
                )
    return lines


def _us(statement: Any, n: int = 20_000) -> float:
    return min(timeit.repeat(statement, number=n, repeat=5)) / n * 1e6


def _of_server_without_traces() -> Iterator[str]:
    """What is done for traces where there are none: the caller's trace is looked for, and stages are noted."""
    looking = _us(lambda: trace_parent(_METADATA))
    found = _us(lambda: trace_parent((*_METADATA, _PARENT)))
    yield (
        f"  no traces: {looking:.2f} us a call to look for the caller's trace, whose id the log tells;"
        f" {found:.2f} us to read it if there is one"
    )

    def noted() -> None:
        timeline = Timeline()
        for stage in (Stage.QUEUE, Stage.PASS, Stage.DERIVE, Stage.WRITE):
            timeline.note(stage, 0.0, 1.0)

    yield f"  the timeline of a call, which the log tells too, with traces or without: {_us(noted):.2f} us"


def report() -> Iterator[str]:
    """All of it."""
    yield f"traces; {_ROUNDS} rounds, {_IN_FLIGHT} calls in flight, medians and the middle half:"
    yield from _of_server_without_traces()
    with _servers() as servers:
        yield from asyncio.run(_measured(servers))
