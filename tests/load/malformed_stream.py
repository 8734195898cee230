"""Bytes that are no message, on streams whose answers are being written: each call still gets its status."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.load.common import DERIVE_STREAM, RESOLVE_STREAM, Findings, Target, call

_CALLS = 40
_SECONDS = 8.0
_MESSAGES = ([b"", b"\xff"], [b"", b"", b"", b"\xff"], [b"\x0a\x00"] * 3 + [b"\xff"])


async def attack(target: Target, found: Findings) -> None:
    """Send such streams, many at once on one connection."""
    for method in (DERIVE_STREAM, RESOLVE_STREAM):
        for messages in _MESSAGES:
            async with target.channel() as channel:
                calls = [call(channel, method, *messages, within=_SECONDS) for _ in range(_CALLS)]
                codes = Counter(outcome.code for outcome in await asyncio.gather(*calls))
            sent = " ".join(message.hex() or "-" for message in messages)
            name = method.rpartition("/")[2]
            found.say(f"{name} {sent}", str(dict(codes)), "INVALID_ARGUMENT", set(codes) == {"INVALID_ARGUMENT"})
