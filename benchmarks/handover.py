"""What a call costs between socket and worker, beside a bare server that sends the same bytes in the same shape.

Both are processes of their own; ours logs, measures and knows its callers by token, as by default in production. The
processor's time of a server is that of all its threads. Rounds are interleaved, and ratios are those of one round: on
a machine that others use too, they say more than rates do. What is asked again is answered from what is kept; a new
question about a kept run is planned and derived; a new prompt takes a pass too, and is compared with the same in this
process, on one thread as in the server, whose passes take more only where they are large.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.bare import serve_bare
from benchmarks.measure import one_thread
from benchmarks.serving import in_process, small_request
from dst_grpc.domain.requests import DerivedScalarSpec, ResolveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire.codec import to_wire
from scripts.serving import SERVE, Server, running, write_tokens

_SERVICE = "/dst.v1.DerivedScalarService"
_TOKEN = "token-of-benchmark"
_ROUNDS, _CALLS = 9, 320
_IN_FLIGHT = (1, 64)
_NEW = 300
_OTHERS = (
    DerivedScalarType.MLP_POST_ACT,
    DerivedScalarType.MLP_ACT_TIMES_GRAD,
    DerivedScalarType.MLP_WRITE_NORM,
    DerivedScalarType.ATTN_WRITE_NORM,
    DerivedScalarType.RESID_POST_MLP_NORM,
    DerivedScalarType.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
    DerivedScalarType.RESID_POST_MLP,
)


def serve_bytes() -> None:
    """A bare server: the first call of a method says what it answers to all others, each message of a stream."""
    asyncio.run(_serve_bytes())


async def _serve_bytes() -> None:
    answers: dict[str, list[bytes]] = {}

    @cache
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

    await serve_bare(handler)


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


async def _answer(call: Any, request: bytes) -> list[bytes]:
    return [message async for message in call(request, metadata=(("authorization", f"Bearer {_TOKEN}"),))]


async def _round(call: Any, requests: Iterator[bytes], server: Server, in_flight: int, found: _Found) -> None:
    async def caller() -> None:
        for _ in range(_CALLS // in_flight):
            await _answer(call, next(requests))

    cpu, started = server.cpu_seconds, time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    found.seconds.append((time.perf_counter() - started) / _CALLS)
    found.cpu.append((server.cpu_seconds - cpu) / _CALLS)


def _told(values: Sequence[float], pattern: str) -> str:
    """The median, and between which values the middle half lies."""
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{pattern}} ({first:{pattern}} to {third:{pattern}})"


@dataclass(frozen=True)
class _Asked:
    """What is asked again and again."""

    title: str
    method: str
    requests: Iterator[bytes]


def _all_asked() -> Iterator[_Asked]:
    small = small_request()
    resolved = to_wire(ResolveRequest(request=small)).SerializeToString()
    yield _Asked("Resolve, warm", "Resolve", itertools.repeat(resolved))
    yield _Asked("Derive, small, asked again", "Derive", itertools.repeat(to_wire(small).SerializeToString()))
    # In every order, so that each is a question of its own, and all answers are of one size.
    orders = itertools.permutations(DerivedScalarSpec(dst=dst) for dst in _OTHERS)
    others = (to_wire(replace(small, derived_scalars=order)).SerializeToString() for order in orders)
    yield _Asked("Derive, small, new questions about a kept run", "Derive", others)


async def _beside_bare(ours: Server, bare: Server) -> AsyncIterator[str]:
    async with grpc.aio.insecure_channel(ours.address) as channel, grpc.aio.insecure_channel(bare.address) as other:
        for asked in _all_asked():
            full_name = f"{_SERVICE}/{asked.method}"
            call: Any = channel.unary_stream(full_name)
            same: Any = other.unary_stream(full_name)
            learn: Any = other.stream_unary(full_name + "Learn")
            request = next(asked.requests)
            answer = await _answer(call, request)
            await learn(iter(answer))
            for in_flight in _IN_FLIGHT:
                found, echo = _Found(), _Found()
                for number in range(_ROUNDS + 1):
                    await _round(call, asked.requests, ours, in_flight, found)
                    await _round(same, itertools.repeat(request), bare, in_flight, echo)
                    if not number:
                        found, echo = _Found(), _Found()  # the first warms up
                rates = [a / b for a, b in zip(echo.seconds, found.seconds, strict=True)]
                cpu = [a / b for a, b in zip(found.cpu, echo.cpu, strict=True)]
                yield (
                    f"  {asked.title}, {len(request)} bytes in, {len(answer)} messages of {sum(map(len, answer))}"
                    f" bytes out, {in_flight} in flight, {_ROUNDS} rounds of {_CALLS} calls:"
                    f" calls/s {_told(rates, '.2f')} of a bare stream's; server CPU a call {_told(cpu, '.2f')} times,"
                    f" {statistics.median(found.cpu) * 1e3:.2f} and {statistics.median(echo.cpu) * 1e3:.2f} ms"
                )


async def _beside_process(ours: Server) -> str:
    """New prompts, one at a time, in turn with the same in this process."""
    targets, here = itertools.count(), in_process()
    served, direct = _Found(), _Found()
    async with grpc.aio.insecure_channel(ours.address) as channel:
        call: Any = channel.unary_stream(f"{_SERVICE}/Derive")
        for _ in range(_NEW):
            request = to_wire(small_request(1 + next(targets))).SerializeToString()
            cpu, started = ours.cpu_seconds, time.perf_counter()
            await _answer(call, request)
            served.seconds.append(time.perf_counter() - started)
            served.cpu.append(ours.cpu_seconds - cpu)
            cpu, started = time.process_time(), time.perf_counter()
            await here()
            direct.seconds.append(time.perf_counter() - started)
            direct.cpu.append(time.process_time() - cpu)
    p50, p50_here = (statistics.median(each.seconds) * 1e3 for each in (served, direct))
    cpu, cpu_here = (statistics.median(each.cpu) * 1e3 for each in (served, direct))
    return (
        f"  Derive, small, new prompts, one in flight, {_NEW} calls: p50 {p50:.2f} ms, in process {p50_here:.2f} ms:"
        f" + {p50 - p50_here:.2f} ms; CPU a call {cpu:.2f} ms of the server, {cpu_here:.2f} ms in process"
    )


async def _lines(ours: Server, bare: Server) -> list[str]:
    lines = [line async for line in _beside_bare(ours, bare)]
    return [*lines, await _beside_process(ours)]


def report() -> Iterator[str]:
    """All of it."""
    yield "calls beside a bare grpc.aio stream of the same bytes; medians, and the middle half of the rounds:"
    with one_thread(), _servers() as (ours, bare):
        yield from asyncio.run(_lines(ours, bare))
