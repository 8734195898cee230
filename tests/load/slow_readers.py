"""Callers that ask for much and read nothing: others are served meanwhile, and memory stays bounded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from tests.load.common import DERIVE, Findings, Target, call, estimated, large, simple, watched

_READERS = 4
_SECONDS = 15.0
_TOKENS = 128
_KEPT_MIB = 1024


async def attack(target: Target, found: Findings) -> None:
    """Open large answers on connections of their own, and ask for small ones beside them."""
    small = simple().SerializeToString()
    async with target.channel() as honest, watched(target) as peak:
        await call(honest, DERIVE, small)
        before = target.memory_mib
        cost = await estimated(honest, large(0, _TOKENS))
        print(f"  each of {_READERS} readers asks for {cost.output_bytes >> 20} MiB")
        channels = [target.channel() for _ in range(_READERS)]
        calls = []
        for i, channel in enumerate(channels):
            derive: Any = channel.unary_stream(DERIVE)
            calls.append(derive(large(i, _TOKENS).SerializeToString()))
        codes: Counter[str] = Counter()
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            codes[(await call(honest, DERIVE, small, within=5.0)).code] += 1
            await asyncio.sleep(0.2)
        found.say("small requests beside them", str(dict(codes)), "all OK", set(codes) == {"OK"})
        taken = peak.mib - before
        found.say("MiB taken at most", str(taken), f"<= {_KEPT_MIB}", taken <= _KEPT_MIB)
        for each in calls:
            each.cancel()
        for channel in channels:
            await channel.close()
        outcome = await call(honest, DERIVE, small)
        found.say("a small request after them", outcome.code, "OK", outcome.code == "OK")
