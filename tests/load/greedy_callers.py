"""A caller with many large requests beside one with small ones: the small ones go on, and memory is as estimated."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
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
_UNREAD_MIB = 64
_OF_GRPC_MIB = 2
"""Of each call, the message that waits to be sent, and gRPC's copy of it."""


def arguments(folder: Path) -> tuple[str, ...]:
    """Two callers who may ask; no recordings are kept, as they have a budget of their own."""
    names = tokens.write(folder / "tokens", greedy=Role.ASK, polite=Role.ASK)
    return ("--auth-token-file", str(names), "--max-unread-bytes", str(_UNREAD_MIB << 20), "--store-bytes", "0")


async def attack(target: Target, found: Findings) -> None:
    """Run them for a quarter of a minute, the greedy one in a process whose reading delays nobody else."""
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
        command = [sys.executable, "-m", "tests.load.greedy_callers", target.address]
        asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with watched(target) as peak:
            assert asking.stdout is not None  # asked for above
            await asking.stdout.readline()
            end, beside = time.perf_counter() + _SECONDS, []
            while time.perf_counter() < end:
                beside.append(await small())
                await asyncio.sleep(0.2)
            greedy, _ = await asking.communicate()
    print(f"  {_AT_ONCE} requests of the greedy caller at once: {greedy.decode().strip()}")
    slow = quantile(beside, 0.99)
    found.say("small requests", str(dict(codes)), "all OK", set(codes) == {"OK"})
    found.say("99 % of them within, seconds", f"{slow:.3f} (alone {alone:.3f})", "<= 3x alone", slow <= 3 * alone)
    taken, estimate = peak.mib - before, _UNREAD_MIB + _AT_ONCE * (cost.peak_bytes / 2**20 + _OF_GRPC_MIB)
    found.say("MiB taken at most", f"{taken} (estimated {estimate:.0f})", "<= 1.3x estimated", taken <= 1.3 * estimate)


async def _ask(target: Target) -> Counter[str]:
    """Ask for much, again and again; how often which status was the answer."""
    numbers, codes = itertools.count(), Counter[str]()
    channels = [target.channel() for _ in range(_CONNECTIONS)]
    end = time.perf_counter() + _SECONDS

    async def ask(i: int) -> None:
        while (left := end - time.perf_counter()) > 0:
            request = large(next(numbers), _TOKENS).SerializeToString()
            outcome = await call(channels[i % _CONNECTIONS], DERIVE, request, within=max(0.5, left), metadata=_GREEDY)
            codes[outcome.code] += 1

    await asyncio.gather(*map(ask, range(_AT_ONCE)))
    for each in channels:
        await each.close()
    return codes


if __name__ == "__main__":
    print("ready", flush=True)
    print(json.dumps(asyncio.run(_ask(Target(address=sys.argv[1], pid=0)))))
