"""Callers who guess at tokens, as many at once as a connection takes, beside one who has a right one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from dst_grpc.domain.callers import Role
from tests import tokens
from tests.load.common import Findings, Target, call, quantile

_LIST = "/dst.v1.CatalogService/ListDerivedScalarTypes"
_GUESSERS, _SECONDS = 32, 6.0
_BURST = 10
_SLACK_MIB = 32


def arguments(folder: Path) -> tuple[str, ...]:
    """One caller who may ask."""
    return ("--auth-token-file", str(tokens.write(folder / "tokens", alice=Role.ASK)))


async def attack(target: Target, found: Findings) -> None:
    """Guess for some seconds, and ask with the right token meanwhile."""
    right, codes = tokens.bearer("alice-token"), Counter[str]()
    end = time.perf_counter() + _SECONDS

    async def guess(number: int) -> None:
        async with target.channel() as channel:
            while time.perf_counter() < end:
                wrong = tokens.bearer(f"guess-{number}-{sum(codes.values())}")
                codes[(await call(channel, _LIST, b"", metadata=wrong)).code] += 1
                await asyncio.sleep(0.01)

    async with target.channel() as channel:
        await call(channel, _LIST, b"", metadata=right)
        before, cpu = target.memory_mib, target.cpu_seconds
        guessing = [asyncio.create_task(guess(i)) for i in range(_GUESSERS)]
        asked = [await call(channel, _LIST, b"", metadata=right) for _ in range(200)]
        await asyncio.gather(*guessing)
        taken, cpu = target.memory_mib - before, target.cpu_seconds - cpu
    answered, most = codes["UNAUTHENTICATED"], _BURST + int(_SECONDS) + 6
    total = sum(codes.values()) + len(asked)
    found.say("guesses answered as wrong", f"{answered} of {sum(codes.values())}", f"<= {most}", answered <= most)
    others = {code for code in codes if code not in {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"}}
    found.say("the others", "RESOURCE_EXHAUSTED" if not others else str(others), "RESOURCE_EXHAUSTED", not others)
    slow = quantile([each.seconds for each in asked], 0.99)
    found.say("a right token, p99 s", f"{slow:.3f}", "all OK, < 0.5", slow < 0.5 and {a.code for a in asked} == {"OK"})
    found.say("CPU a call, ms", f"{1000 * cpu / total:.2f}", "<= 5", cpu / total <= 0.005)
    found.say("MiB taken", str(taken), f"<= {_SLACK_MIB}", taken <= _SLACK_MIB)
