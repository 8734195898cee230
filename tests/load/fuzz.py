"""Messages that are nearly requests, to every method over a socket: each call gets a status, and none is our fault.

FUZZ_MESSAGES and FUZZ_SEED in the environment say how many and which. What goes wrong is printed, to be sent again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from dst_grpc._gen.dst.v1 import graph_pb2, inference_pb2, resolution_pb2
from tests.load import tiny
from tests.load.common import DERIVE_STREAM, LOST, RESOLVE_STREAM, Findings, Target
from tests.load.mutants import Mutant, mutants, whole
from tests.load.seeds import kept_graph, seeds

_GRAPH = "/dst.v1.GraphService/Graph"
_MESSAGES = 20_000
_IN_FLIGHT = 16
_CHUNK = 2000
_DEADLINE = 20.0
"""Longer than anything that is asked takes, with what runs beside it."""
_HANG = 60.0
_SLOW = 2.0
_DRIFT_MIB = 128
"""Plans that are kept take half of it."""
_SHOWN = 20
_NONE = "no status"
_OUR_FAULT = {"INTERNAL", "UNKNOWN", _NONE}
_ITEMS: dict[str, Any] = {
    DERIVE_STREAM: inference_pb2.DeriveStreamResponse,
    RESOLVE_STREAM: resolution_pb2.ResolveStreamResponse,
}


def arguments(folder: Path) -> tuple[str, ...]:
    """No recordings and few graphs are kept: they would take half a gigabyte each, as they may."""
    return (*tiny.arguments(folder), "--store-bytes", "0", "--kept-graph-bytes", str(1 << 20))


@dataclass
class _Seen:
    """What came of the calls."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, Mutant]] = field(default_factory=list)
    slowest: list[tuple[float, Mutant]] = field(default_factory=list)
    """With their seconds."""
    sent: int = 0


async def attack(target: Target, found: Findings) -> None:
    """Send them in chunks, some at a time."""
    wanted, seed = int(os.environ.get("FUZZ_MESSAGES", _MESSAGES)), int(os.environ.get("FUZZ_SEED", "1"))
    async with target.channel() as channel:
        known = seeds(await _kept(channel))
        refused = [call for call in whole(known) if set(await _codes(channel, call)) != {"OK"}]
    _print(("seed refused", call) for call in refused)
    calls, seen, settled = mutants(Random(seed), known), _Seen(), 0
    start, used = time.perf_counter(), target.cpu_seconds
    while seen.sent < wanted and target.memory_mib:
        async with target.channel() as channel:
            gate = asyncio.Semaphore(_IN_FLIGHT)

            async def one(mutant: Mutant, channel: grpc.aio.Channel = channel, gate: Any = gate) -> None:
                async with gate:
                    await _send(channel, mutant, seen)

            await asyncio.gather(*map(one, islice(calls, min(_CHUNK, wanted - seen.sent))))
        settled = settled or target.memory_mib
    seconds = time.perf_counter() - start
    print(f"  {seen.sent} messages, seed {seed}, {seconds:.0f} s, {target.cpu_seconds - used:.0f} s of the server")
    print(f"  {dict(seen.codes)}")
    _print(seen.wrong[:_SHOWN])
    async with target.channel() as channel:
        alone = [(took, await _alone(channel, call), call) for took, call in seen.slowest if took > _SLOW]
    _print((f"{took:.2f} s, alone {again:.2f} s:", call) for took, again, call in alone)
    found.say("seeds that are refused", str(len(refused)), "0", not refused)
    found.say("server alive", str(target.memory_mib > 0), "True", target.memory_mib > 0)
    found.say("INTERNAL, UNKNOWN, or no status", str(len(seen.wrong)), "0", not seen.wrong)
    slowest, again = max(seen.slowest)[0], max((again for _, again, _ in alone), default=0.0)
    measured = f"{again:.2f}; beside others {slowest:.2f}"
    found.say("slowest of those above 2 s, again, alone", measured, f"<= {_SLOW}", again <= _SLOW)
    drift = target.memory_mib - settled
    measured = f"{drift}: {settled}, then {target.memory_mib}"
    found.say("MiB more than after the first chunk", measured, f"<= {_DRIFT_MIB}", drift <= _DRIFT_MIB)


def _print(calls: Iterable[tuple[str, Mutant]]) -> None:
    for what, mutant in calls:
        print(f"  {what} {mutant.method} {' '.join(message.hex() or '-' for message in mutant.messages)[:2000]}")


async def _kept(channel: grpc.aio.Channel) -> str:
    """The handle of a graph that the server keeps."""
    graph: Any = channel.unary_stream(_GRAPH)
    answers = [graph_pb2.GraphResponse.FromString(one) async for one in graph(kept_graph().SerializeToString())]
    return next(frame.kept.handle for answer in answers for frame in answer.frames if frame.HasField("kept"))


async def _send(channel: grpc.aio.Channel, mutant: Mutant, seen: _Seen) -> None:
    start = time.perf_counter()
    try:
        codes = await asyncio.wait_for(_codes(channel, mutant), _HANG)
    except TimeoutError:
        codes = [_NONE]
    seconds = time.perf_counter() - start
    seen.sent += len(mutant.messages)
    seen.codes.update(codes)
    seen.slowest = nlargest(_SHOWN, [*seen.slowest, (seconds, mutant)])
    seen.wrong += [(code, mutant) for code in codes if code in _OUR_FAULT]


async def _alone(channel: grpc.aio.Channel, mutant: Mutant) -> float:
    """How long a call takes beside no other: among others it waits for their work, and on a busy machine for a
    processor."""
    start = time.perf_counter()
    await _codes(channel, mutant)
    return time.perf_counter() - start


async def _codes(channel: grpc.aio.Channel, mutant: Mutant) -> list[str]:
    """The call's status, and those of its items that failed."""

    async def messages() -> AsyncIterator[bytes]:
        for message in mutant.messages:
            yield message

    codes: list[str] = []
    stream: Any = channel.stream_stream(mutant.method)
    try:
        async for answer in stream(messages(), timeout=_DEADLINE):
            codes += _failed_items(mutant.method, answer)
    except grpc.aio.AioRpcError as error:
        if error.details() == LOST:
            return ["asked again", *await _codes(channel, mutant)]
        is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return [*codes, _NONE if is_late else error.code().name]
    return [*codes, "OK"]


def _failed_items(method: str, answer: bytes) -> list[str]:
    if method not in _ITEMS:
        return []
    try:
        frames = _ITEMS[method].FromString(answer).frames
    except DecodeError:
        return [_NONE]
    numbers = {code.value[0]: code.name for code in grpc.StatusCode}
    return [numbers[frame.error.code] for frame in frames if frame.HasField("error")]
