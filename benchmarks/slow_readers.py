"""Readers that never read: how long others wait beside them, and what the server keeps for them.

Over sockets, against a server of its own with the embedded model. The readers are one caller, the others another.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.serving import write_tokens
from tests.load.common import DERIVE, Target, estimated, large, quantile, serving, simple, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

_READERS = 50
_READER, _OTHER = "readers", "others"
"""Names of the callers, and their tokens."""
_TOKENS = 128
_CALLS = 200
_SLOW_READER_SECONDS = 30.0
_IDLE_SECONDS = 0.05
_UNREAD_MIB = 64
_OF_GRPC_MIB = 2
"""Of each call, the message that waits to be sent, and gRPC's copy of it; a bare grpc.aio server takes as much."""


def _derive(channel: Any, request: Any, token: str) -> Any:
    """A call of the caller with *token*."""
    return channel.unary_stream(DERIVE)(request.SerializeToString(), metadata=(("authorization", f"Bearer {token}"),))


async def _latencies(channel: Any, numbers: Iterator[int]) -> list[float]:
    """Seconds of small requests, one after the other."""
    seconds = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        async for _message in _derive(channel, simple(text=f"a b c {next(numbers)}"), _OTHER):
            pass
        seconds.append(time.perf_counter() - started)
    return seconds


async def _until_idle(target: Target) -> None:
    """Wait until everything that may be made for the readers is made, or for some seconds."""
    for _ in range(20):
        before = target.cpu_seconds
        await asyncio.sleep(0.5)
        if target.cpu_seconds - before < _IDLE_SECONDS:
            return


async def _measure(target: Target) -> tuple[float, float, float, int, float, float]:
    numbers = itertools.count()
    async with target.channel() as channel, watched(target) as peak:
        await _latencies(channel, numbers)
        alone = quantile(await _latencies(channel, numbers), 0.99)
        request = large(0, _TOKENS)
        of_run = (await estimated(channel, request, (("authorization", f"Bearer {_OTHER}"),))).peak_bytes / 2**20
        before = target.memory_mib
        readers = [target.channel() for _ in range(_READERS)]
        calls = []
        for i, reader in enumerate(readers):
            calls.append(_derive(reader, large(i, _TOKENS), _READER))
        started = time.perf_counter()
        while_they_run = quantile(await _latencies(channel, numbers), 0.99)
        await _until_idle(target)
        beside = quantile(await _latencies(channel, numbers), 0.99)
        seconds = time.perf_counter() - started
        taken = peak.mib - before
        for each in calls:
            each.cancel()
        for reader in readers:
            await reader.close()
    return alone, while_they_run, beside, taken, of_run, seconds


def report() -> Iterator[str]:
    """The 99th percentile beside and without them, and memory; without recordings, which have a budget of their own."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(tokens, {token: token for token in (_READER, _OTHER)})
        arguments = ["--slow-reader-seconds", str(_SLOW_READER_SECONDS), "--max-unread-bytes", str(_UNREAD_MIB << 20)]
        arguments += ["--store-bytes", "0", "--auth-token-file", str(tokens)]
        with serving(*arguments) as target:
            alone, while_they_run, beside, taken, of_run, seconds = asyncio.run(_measure(target))
    yield f"{_READERS} readers that never read, of answers of hundreds of MiB, for {seconds:.0f} s"
    yield f"  99 % of another's small requests within {1000 * beside:.0f} ms, {1000 * alone:.0f} ms without readers:"
    yield f"  x {beside / alone:.2f} (1.5 is right); x {while_they_run / alone:.2f} while the readers' passes run"
    bound = _UNREAD_MIB + (of_run + _OF_GRPC_MIB) * _READERS
    yield (
        f"  memory taken at most: {taken} MiB; the outbox budget, and of each reader the estimate of its run and what"
        f" gRPC holds, are {bound:.0f} MiB"
    )
