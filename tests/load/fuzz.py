"""Messages that are nearly requests, to every method over a socket: each call gets a status, and none is our fault.

FUZZ_MESSAGES and FUZZ_SEED in the environment say how many and which. What goes wrong is printed, to be sent again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from dst_grpc._gen.dst.v1 import inference_pb2, resolution_pb2
from tests.load.common import DERIVE_STREAM, RESOLVE_STREAM, Findings, Target
from tests.load.mutants import Mutant, mutants

_MESSAGES = 20_000
_IN_FLIGHT = 16
_CHUNK = 2000
_DEADLINE = 20.0
_LONG_DEADLINE = 120.0
_HANG = 160.0
_SLOW = 2.0
_DRIFT_MIB = 128
"""Plans that are kept take half of it."""
_NONE = "no status"
_OUR_FAULT = {"INTERNAL", "UNKNOWN", _NONE}
_ITEMS: dict[str, Any] = {
    DERIVE_STREAM: inference_pb2.DeriveStreamResponse,
    RESOLVE_STREAM: resolution_pb2.ResolveStreamResponse,
}


def arguments(folder: Path) -> tuple[str, ...]:
    """No recordings are kept: they would take half a gigabyte, as they may."""
    del folder
    return ("--store-bytes", "0")


@dataclass
class _Seen:
    """What came of the calls."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, Mutant]] = field(default_factory=list)
    slowest: tuple[float, Mutant | None] = (0.0, None)
    sent: int = 0


async def attack(target: Target, found: Findings) -> None:
    """Send them in chunks, some at a time."""
    wanted, seed = int(os.environ.get("FUZZ_MESSAGES", _MESSAGES)), int(os.environ.get("FUZZ_SEED", "1"))
    calls, seen, settled = mutants(Random(seed)), _Seen(), 0
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
    for code, mutant in seen.wrong[:20]:
        print(f"  {code} {mutant.method} {' '.join(message.hex() or '-' for message in mutant.messages)[:2000]}")
    slow, slowest = seen.slowest
    if slowest is not None:
        print(f"  slowest refusal: {slowest.method} {[message.hex() for message in slowest.messages]}")
    found.say("server alive", str(target.memory_mib > 0), "True", target.memory_mib > 0)
    found.say("INTERNAL, UNKNOWN, or no status", str(len(seen.wrong)), "0", not seen.wrong)
    found.say("slowest refusal, seconds", f"{slow:.2f}", f"<= {_SLOW}", slow <= _SLOW)
    drift = target.memory_mib - settled
    found.say("MiB more than after the first chunk", str(drift), f"<= {_DRIFT_MIB}", drift <= _DRIFT_MIB)


async def _send(channel: grpc.aio.Channel, mutant: Mutant, seen: _Seen) -> None:
    start = time.perf_counter()
    try:
        codes = await asyncio.wait_for(_codes(channel, mutant), _HANG)
    except TimeoutError:
        codes = [_NONE]
    seconds = time.perf_counter() - start
    seen.sent += len(mutant.messages)
    seen.codes.update(codes)
    if codes[-1] != "OK":  # how long an answer takes depends on what is asked
        seen.slowest = max(seen.slowest, (seconds, mutant), key=lambda each: each[0])
    seen.wrong += [(code, mutant) for code in codes if code in _OUR_FAULT]


async def _codes(channel: grpc.aio.Channel, mutant: Mutant, deadline: float = _DEADLINE) -> list[str]:
    """The call's status, and those of its items that failed."""

    async def messages() -> AsyncIterator[bytes]:
        for message in mutant.messages:
            yield message

    codes: list[str] = []
    stream: Any = channel.stream_stream(mutant.method)
    try:
        async for answer in stream(messages(), timeout=deadline):
            codes += _failed_items(mutant.method, answer)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return [*codes, error.code().name]
        # It may be hanging, or ask for much: some of them do.
        return [_NONE] if deadline > _DEADLINE else await _codes(channel, mutant, _LONG_DEADLINE)
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
