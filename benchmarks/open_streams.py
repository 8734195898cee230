"""Thousands of open streams on one process: what each takes of its memory, and how long others wait beside them.

Over sockets, against a server of its own with the embedded model. Each stream has had one small request answered, and
waits for its client to send another.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

from dst_grpc._gen.dst.v1 import inference_pb2
from tests.load.common import DERIVE, DERIVE_STREAM, Target, quantile, serving, simple

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

_STREAMS, _CONNECTIONS = 2000, 20
_CALLS = 400
_AT_ONCE = 50
_MEMORY_KB, _RATIO = 200, 1.5


async def _latencies(channel: Any, numbers: Iterator[int], count: int) -> list[float]:
    """Seconds of small requests, one after the other; no recording answers them."""
    seconds = []
    for _ in range(count):
        request = simple(text=f"a b c {next(numbers)}").SerializeToString()
        started = time.perf_counter()
        async for _message in channel.unary_stream(DERIVE)(request):
            pass
        seconds.append(time.perf_counter() - started)
    return seconds


async def _opened(channel: Any, over: asyncio.Event) -> Any:
    """A stream whose first item is answered, and which its client holds open until *over*."""
    item = inference_pb2.DeriveStreamRequest(request=simple(request_id="0"))

    async def messages() -> AsyncGenerator[bytes, None]:
        yield item.SerializeToString()
        await over.wait()

    call = channel.stream_stream(DERIVE_STREAM)(messages())
    async for answer in call:
        frames = inference_pb2.DeriveStreamResponse.FromString(answer).frames
        if frames[-1].HasField("trailer"):
            return call
    raise RuntimeError("a stream ended before its first answer")


async def _measure(target: Target, other: Target) -> tuple[float, list[float], list[float]]:
    """Kilobytes of memory a stream; seconds of requests to a server without streams, and to *target* beside them."""
    numbers = itertools.count()
    async with target.channel() as beside, other.channel() as alone:
        for channel in (alone, beside):
            await _latencies(channel, numbers, _CALLS)
        channels = [target.channel() for _ in range(_CONNECTIONS)]
        over = asyncio.Event()
        before = target.status("VmRSS", unit=1)
        calls: list[Any] = []
        while len(calls) < _STREAMS:
            calls += await asyncio.gather(
                *(_opened(channels[i % _CONNECTIONS], over) for i in range(len(calls), len(calls) + _AT_ONCE))
            )
        kilobytes = (target.status("VmRSS", unit=1) - before) / _STREAMS
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(_CALLS):
            # One after the other, so that a slow moment of the machine slows both.
            for channel, its in zip((alone, beside), seconds, strict=True):
                its.extend(await _latencies(channel, numbers, 1))
        over.set()
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
    return kilobytes, *seconds


def report() -> Iterator[str]:
    """Memory a stream, and the 99th percentile of another's requests beside them over that of a server without."""
    with serving() as target, serving() as other:
        kilobytes, alone, beside = asyncio.run(_measure(target, other))
    yield f"{_STREAMS} open streams over {_CONNECTIONS} connections on one process, each answered once"
    yield f"  memory a stream: {kilobytes:.0f} kB ({_MEMORY_KB} is right)"
    for share in (0.5, 0.99):
        with_them, without = quantile(beside, share), quantile(alone, share)
        yield (
            f"  {100 * share:.0f} % of another's small requests within {1000 * with_them:.1f} ms, "
            f"{1000 * without:.1f} ms on a server without streams: x {with_them / without:.2f} ({_RATIO} is right)"
        )
