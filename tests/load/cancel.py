"""Cancels and deadlines in the middle of a pass: the work stops with them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc.aio

from tests.load.common import DERIVE, Findings, Target, call, large, quantile, simple

_TRIES = 10
_TOKENS = 128
_TYPES = ("MLP_ACT_TIMES_GRAD", "UNFLATTENED_ATTN_ACT_TIMES_GRAD")
_DEADLINES = (0.001, 0.05)


async def attack(target: Target, found: Findings) -> None:
    """Cancel requests after a while, and give others too little time."""
    numbers = itertools.count()

    def request() -> bytes:
        return large(next(numbers), _TOKENS, _TYPES).SerializeToString()

    async with target.channel() as channel:
        await call(channel, DERIVE, request(), within=120.0)
        used = target.cpu_seconds
        whole = await call(channel, DERIVE, request(), within=120.0)
        full = target.cpu_seconds - used
        print(f"  a whole request takes {whole.seconds:.2f} s, {full:.2f} s of processors")
        burnt = []
        for _ in range(_TRIES):
            derive: Any = channel.unary_stream(DERIVE)
            running = derive(request())
            reading = asyncio.create_task(running.read())
            await asyncio.sleep(random.uniform(0.1, 0.6) * whole.seconds)
            running.cancel()
            used = target.cpu_seconds
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await reading
            burnt.append(await _until_idle(target) - used)
        half, right = quantile(burnt, 0.5), max(0.05, full / 6)
        found.say("processor seconds after a cancel, median", f"{half:.2f}", f"<= {right:.2f}", half <= right)
        for deadline in _DEADLINES:
            used = target.cpu_seconds
            ended = [await call(channel, DERIVE, request(), within=deadline) for _ in range(_TRIES)]
            late = max(outcome.seconds for outcome in ended) - deadline
            found.say(f"end after a deadline of {deadline} s", f"{late:.3f} s late", "<= 0.05", late <= 0.05)
            small = await call(channel, DERIVE, simple(text=f"x {deadline}").SerializeToString(), within=60.0)
            found.say("a small request after them", f"{small.code} {small.seconds:.2f} s", "OK", small.code == "OK")
            spent, right = target.cpu_seconds - used, _TRIES * (deadline + full / 6)
            codes = dict(Counter(outcome.code for outcome in ended))
            found.say(f"processor seconds for {codes}", f"{spent:.2f}", f"<= {right:.2f}", spent <= right)


async def _until_idle(target: Target) -> float:
    """The processor seconds at which the server stood still for 0.3 s."""
    last, since = target.cpu_seconds, time.perf_counter()
    while time.perf_counter() - since < 0.3:
        await asyncio.sleep(0.05)
        now = target.cpu_seconds
        if now > last + 0.01:
            last, since = now, time.perf_counter()
    return last
