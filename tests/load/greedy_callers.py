"""A caller with many large requests beside one with small ones: the small ones go on, and memory is as estimated."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path

from dst_grpc.domain.callers import Role
from tests import tokens
from tests.load.common import DERIVE, Findings, Target, call, estimated, large, quantile, simple, watched

_AT_ONCE = 12
_CONNECTIONS = 4
_GREEDY, _POLITE = tokens.bearer("greedy-token"), tokens.bearer("polite-token")
_SECONDS = 15.0
_TOKENS = 128


def arguments(folder: Path) -> tuple[str, ...]:
    """Two callers who may ask."""
    return ("--auth-token-file", str(tokens.write(folder / "tokens", greedy=Role.ASK, polite=Role.ASK)))


async def attack(target: Target, found: Findings) -> None:
    """Run them for a quarter of a minute."""
    numbers = itertools.count()
    async with target.channel() as channel:

        async def small() -> float:
            request = simple(text=f"a b c {next(numbers)}")
            outcome = await call(channel, DERIVE, request.SerializeToString(), within=10.0, metadata=_POLITE)
            codes[outcome.code] += 1
            return outcome.seconds

        codes: Counter[str] = Counter()
        await small()
        alone = quantile([await small() for _ in range(20)], 0.99)
        cost = await estimated(channel, large(1, _TOKENS), _POLITE)
        before = target.memory_mib
        codes.clear()
        channels = [target.channel() for _ in range(_CONNECTIONS)]
        greedy: Counter[str] = Counter()
        end = time.perf_counter() + _SECONDS

        async def ask(i: int) -> None:
            while (left := end - time.perf_counter()) > 0:
                request = large(next(numbers), _TOKENS).SerializeToString()
                channel = channels[i % _CONNECTIONS]
                outcome = await call(channel, DERIVE, request, within=max(0.5, left), metadata=_GREEDY)
                greedy[outcome.code] += 1

        async with watched(target) as peak:
            asking = [asyncio.create_task(ask(i)) for i in range(_AT_ONCE)]
            beside = []
            while time.perf_counter() < end:
                beside.append(await small())
                await asyncio.sleep(0.2)
            await asyncio.gather(*asking)
        for each in channels:
            await each.close()
    print(f"  {_AT_ONCE} requests of the greedy caller at once: {dict(greedy)}")
    slow = quantile(beside, 0.99)
    found.say("small requests", str(dict(codes)), "all OK", set(codes) == {"OK"})
    found.say("99 % of them within, seconds", f"{slow:.3f} (alone {alone:.3f})", "<= 3x alone", slow <= 3 * alone)
    taken, estimate = peak.mib - before, _AT_ONCE * cost.peak_bytes / 2**20
    found.say("MiB taken at most", f"{taken} (estimated {estimate:.0f})", "<= 1.3x estimated", taken <= 1.3 * estimate)
