"""A small message in which nearly everything is wrong: finding all of it must not take longer than reading it."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import inference_pb2
from tests.load.common import DERIVE, Findings, Target, call, health_checked

_EACH = 8000


async def attack(target: Target, found: Findings) -> None:
    """Send 40 KB of empty ablations and of autoencoders that are no names."""
    request = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text="a"), autoencoders=["@"] * _EACH)
    for _ in range(_EACH):
        request.ablation_specs.add()
    data = request.SerializeToString()
    async with target.channel() as channel:
        await call(channel, DERIVE, b"")
        async with health_checked(target) as waits:
            outcome = await call(channel, DERIVE, data, within=60.0)
        slowest = max(waits)
        found.say("status", outcome.code, "INVALID_ARGUMENT", outcome.code == "INVALID_ARGUMENT")
        found.say(f"seconds for {len(data)} bytes", f"{outcome.seconds:.3f}", "<= 0.1", outcome.seconds <= 0.1)
        found.say("slowest health check, seconds", f"{slowest:.3f}", "<= 0.05", slowest <= 0.05)
