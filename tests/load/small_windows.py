"""Calls whose answers a client lets nobody send: what is kept for it is bounded, however many they are."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from tests.load.common import DERIVE, Findings, Target, call, large, watched

_CALLS, _AT_ONCE = 600, 150
_SLOW_READER_SECONDS = 2
_TOKENS = 120
_WINDOW = 1024
_KEPT_MIB = 512
_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW),
    ("grpc.use_local_subchannel_pool", 1),
)


def arguments(_folder: object) -> tuple[str, ...]:
    """Clients are given up soon, so that it is seen what is kept of them then."""
    return ("--slow-reader-seconds", str(_SLOW_READER_SECONDS))


async def attack(target: Target, found: Findings) -> None:
    """Ask for the same 0.9 MiB again and again, through a window of 1 KiB, and read nothing; then cancel all."""
    request = large(1, _TOKENS, types=("MLP_POST_ACT",)).SerializeToString()
    async with (
        grpc.aio.insecure_channel(target.address, options=_OPTIONS) as channel,
        target.channel() as other,
        watched(target) as peak,
    ):
        await call(other, DERIVE, request)
        before = target.memory_mib
        derive: Any = channel.unary_stream(DERIVE)
        calls = []
        for _ in range(_CALLS // _AT_ONCE):
            calls += [derive(request) for _ in range(_AT_ONCE)]
            await asyncio.sleep(2 * _SLOW_READER_SECONDS)
        taken = peak.mib - before
        found.say(f"MiB kept of {_CALLS} calls", str(taken), f"<= {_KEPT_MIB}", taken <= _KEPT_MIB)
        for each in calls:
            each.cancel()
        await asyncio.sleep(_SLOW_READER_SECONDS)
        outcome = await call(other, DERIVE, request)
        found.say("a request after them", outcome.code, "OK", outcome.code == "OK")
