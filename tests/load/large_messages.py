"""Many calls whose messages are as large as may be, at once: memory is bounded before any of them can be judged. And
calls that send none."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.domain.callers import Role
from tests import tokens
from tests.load.common import DERIVE, DERIVE_STREAM, Findings, Outcome, Target, call, health_checked, simple, watched

_CALLS, _CONNECTIONS = 300, 4
_SILENT = 40
_WITHIN = 60.0
_PADDING_BYTES = 3_900_000
_HEALTHY_SECONDS = 0.5
_ODD = {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"}
_GREEDY, _POLITE = tokens.bearer("greedy-token"), tokens.bearer("polite-token")
_HEALTH = "/grpc.health.v1.Health/Check"
_KINDS = {
    "requests": (DERIVE, _GREEDY, 400),
    "items of streams": (DERIVE_STREAM, _GREEDY, 1600),
    "requests of strangers": (DERIVE, (), 400),
    "health checks": (_HEALTH, (), 400),
    "calls of unknown methods": ("/dst.v1.OtherService/Call", _GREEDY, 200),
}
"""Of each kind the method, the metadata, and the MiB that all may take: messages that are read, and those that wait."""


def arguments(folder: Path) -> tuple[str, ...]:
    """Two callers who may ask."""
    return ("--auth-token-file", str(tokens.write(folder / "tokens", greedy=Role.ASK, polite=Role.ASK)))


def padded(message: bytes = b"") -> bytes:
    """*message* with a field that nobody knows, as large as a message may be."""
    n, size = _PADDING_BYTES, bytearray()
    while n:
        size.append((n & 0x7F) | (0x80 if n > 0x7F else 0))
        n >>= 7
    return message + b"\xc2\x3e" + bytes(size) + bytes(_PADDING_BYTES)  # field 1000


async def attack(target: Target, found: Findings) -> None:
    """Send each kind, and then begin calls without ever sending their message; small requests go on."""
    async with target.channel() as channel:
        small = simple().SerializeToString()

        async def asked() -> Outcome:
            return await call(channel, DERIVE, small, within=_WITHIN, metadata=_POLITE)

        await asked()
        for what, (method, metadata, most) in _KINDS.items():
            before = target.memory_mib
            async with watched(target) as peak, health_checked(target) as waits:
                codes, outcome = await asyncio.gather(_sent(target, method, metadata), asked())
            taken, wait = peak.mib - before, max(waits)
            found.say(f"{what}: MiB", f"{taken} ({codes})", f"<= {most}", taken <= most)
            found.say("  their statuses", str(sorted(codes)), f"none of {sorted(_ODD)}", not _ODD & {*codes})
            found.say(
                "  a health check waits at most, seconds",
                f"{wait:.3f}",
                f"<= {_HEALTHY_SECONDS}",
                wait <= _HEALTHY_SECONDS,
            )
            found.say("  a small request of another", outcome.code, "OK", outcome.code == "OK")
        for what, metadata in {"of a caller": _GREEDY, "of strangers": (), "health checks": ()}.items():
            method = _HEALTH if what == "health checks" else DERIVE
            async with target.channel() as other:
                silent: Any = other.stream_unary(method)
                calls = [silent(metadata=metadata) for _ in range(_SILENT)]
                await asyncio.gather(*(each.wait_for_connection() for each in calls))
                small_one, check = await asked(), await call(channel, _HEALTH, b"", within=_WITHIN)
                seconds, statuses = max(small_one.seconds, check.seconds), {small_one.code, check.code}
                found.say(
                    f"beside {_SILENT} {what} that send nothing",
                    f"{seconds:.3f} s {statuses}",
                    f"<= {_HEALTHY_SECONDS} s OK",
                    seconds <= _HEALTHY_SECONDS and statuses == {"OK"},
                )
                for each in calls:
                    each.cancel()


async def _sent(target: Target, method: str, metadata: Sequence[tuple[str, str]]) -> dict[str, int]:
    """What `_send` says, in a process of its own, whose memory and time are not the server's."""
    command = [sys.executable, "-m", "tests.load.large_messages", target.address, method, *map("=".join, metadata)]
    sending = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await sending.communicate()
    codes: dict[str, int] = json.loads(said)
    return codes


async def _send(target: Target, method: str, metadata: Sequence[tuple[str, str]]) -> Counter[str]:
    """Send all at once; how often which status was the answer."""
    item = inference_pb2.DeriveStreamRequest(request=simple(request_id="a"))
    requests = {DERIVE: simple().SerializeToString(), DERIVE_STREAM: item.SerializeToString()}
    message = padded(requests.get(method, b""))
    channels = [target.channel() for _ in range(_CONNECTIONS)]
    outcomes = await asyncio.gather(
        *(call(channels[i % _CONNECTIONS], method, message, within=_WITHIN, metadata=metadata) for i in range(_CALLS))
    )
    return Counter(outcome.code for outcome in outcomes)


if __name__ == "__main__":
    address, method, *pairs = sys.argv[1:]
    metadata = [(key, value) for key, _, value in (pair.partition("=") for pair in pairs)]
    print(json.dumps(asyncio.run(_send(Target(address=address, pid=0), method, metadata))))
