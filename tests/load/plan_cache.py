"""Many different large requests that only ask what they would cost: what the server keeps of them is bounded."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import resolution_pb2
from tests.load.common import RESOLVE, Findings, Target, call, health_checked, simple

_REQUESTS = 40
_TOKENS = 400_000
_KEPT_MIB = 64


async def attack(target: Target, found: Findings) -> None:
    """Resolve 40 requests of 400 KB, each with another list of target tokens."""
    async with target.channel() as channel:
        await call(channel, RESOLVE, resolution_pb2.ResolveRequest(request=simple()).SerializeToString())
        before = target.memory_mib
        seconds = []
        async with health_checked(target) as waits:
            for i in range(_REQUESTS):
                request = simple()
                request.loss_fn_config.target_token_ids.extend([i % 128, *[5] * _TOKENS])
                message = resolution_pb2.ResolveRequest(request=request).SerializeToString()
                seconds.append((await call(channel, RESOLVE, message, within=60.0)).seconds)
        kept = target.memory_mib - before
        found.say(f"MiB kept of {_REQUESTS} requests", f"{kept}", f"<= {_KEPT_MIB}", kept <= _KEPT_MIB)
        found.say("slowest, seconds", f"{max(seconds):.2f}", "<= 1", max(seconds) <= 1)
        found.say("slowest health check, seconds", f"{max(waits):.3f}", "<= 0.05", max(waits) <= 0.05)
