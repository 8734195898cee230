"""A few bytes that ask for much: what they cost is known before, streams, and stops when it is cancelled."""

from __future__ import annotations

import time
from typing import Any

from dst_grpc._gen.dst.v1 import component_pb2, explain_pb2
from tests.load.common import EXPLAIN, Findings, Target, call, health_checked

_TOKENS = (123, 313, 3718, 414, 3271, 1479, 2214, 3738, 3679)
_SECONDS = 60.0
_MESSAGE = 1 << 20


async def attack(target: Target, found: Findings) -> None:
    """Ask for the scored tokens of every node."""
    request = explain_pb2.ExplainRequest(k=127, scored_token_count=592, token_pair_count=255)
    run = request.runs.add()
    run.prompt.token_ids.token_ids.extend(_TOKENS)
    run.loss_fn_config.name = component_pb2.LOSS_FN_NAME_LOGIT_DIFF
    run.loss_fn_config.target_token_ids.append(308)
    run.loss_fn_config.distractor_token_ids.append(269)
    data = request.SerializeToString()
    async with target.channel() as channel:
        await call(channel, EXPLAIN, explain_pb2.ExplainRequest(runs=[run], k=1).SerializeToString(), within=_SECONDS)
        used = target.cpu_seconds
        explain: Any = channel.unary_stream(EXPLAIN)
        sizes, first, start = [], 0.0, time.perf_counter()
        async with health_checked(target) as waits:
            async for answer in explain(data, timeout=_SECONDS):
                first = first or time.perf_counter() - start
                sizes.append(len(answer))
        whole, cost = time.perf_counter() - start, target.cpu_seconds - used
        print(f"  {len(data)} bytes: {sum(sizes) / 1e6:.1f} MB in {whole:.1f} s, {cost:.1f} s of processors")
        found.say("largest message, bytes", str(max(sizes)), f"<= {_MESSAGE}", max(sizes) <= _MESSAGE)
        found.say("first message after, seconds", f"{first:.2f}", f"<= {whole / 4:.2f}", first <= whole / 4)
        found.say("slowest health check, seconds", f"{max(waits):.3f}", "<= 0.05", max(waits) <= 0.05)
        running = explain(data, timeout=_SECONDS)
        await running.read()
        running.cancel()
        used = target.cpu_seconds
        outcome = await call(channel, EXPLAIN, explain_pb2.ExplainRequest(runs=[run], k=1).SerializeToString())
        spent = target.cpu_seconds - used
        found.say(f"processor seconds after a cancel ({outcome.code})", f"{spent:.2f}", "<= 1", spent <= 1)
