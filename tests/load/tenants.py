"""Callers that share a server of two models and room for one: none learns of another, or disturbs it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

import grpc.aio

from dst_grpc import embedded
from dst_grpc._gen.dst.v1 import context_service_pb2, inference_pb2
from tests.load.common import DERIVE, Findings, Target, call, quantile, simple

_CONTEXTS = "/dst.v1.ContextService/"
_TRIES = 8


class _Derived(NamedTuple):
    code: str
    seconds: float
    passes: int


def arguments() -> tuple[str, ...]:
    """Two names for the embedded model, and a budget that one of them fills: loaded, it takes twice its file."""
    folder = embedded.MODEL_FOLDER
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return ("--model", f"a={folder}", "--model", f"b={folder}", "--budget-bytes", str(3 * weights))


async def attack(target: Target, found: Findings) -> None:
    """Have one caller guess at another's prompts, and hinder it."""
    async with target.channel() as first, target.channel() as second:
        await _derive(second, "warm")
        secret = "the secret prompt of the second caller"
        await _derive(second, secret)
        asked = [await _derive(first, secret)] + [await _derive(first, f"another prompt {i}") for i in range(_TRIES)]
        told = asked[0].passes == 0
        found.say("passes for another caller's prompt", str(asked[0].passes), "1: it is not told apart", not told)
        others = quantile([each.seconds for each in asked[1:]], 0.5)
        ratio = asked[0].seconds / others
        found.say("time for it / for a new one", f"{ratio:.2f}", ">= 0.5", ratio >= 0.5)
        start = time.perf_counter()
        codes = Counter([(await _derive((first, second)[i % 2], f"turn {i}", "ab"[i % 2])).code for i in range(_TRIES)])
        seconds = (time.perf_counter() - start) / _TRIES
        found.say("models taking turns", f"{dict(codes)}, {seconds:.2f} s each", "all OK", set(codes) == {"OK"})
        pin = context_service_pb2.LoadContextRequest(context="b", pin=True).SerializeToString()
        pinned = await call(first, f"{_CONTEXTS}LoadContext", pin, within=60.0)
        code = (await _derive(second, "x")).code
        found.say(f"the other model after a pin ({pinned.code})", code, "OK", code == "OK")
        for name in ("UnpinContext", "UnloadContext"):
            request = context_service_pb2.UnloadContextRequest(context="b").SerializeToString()
            outcome = await call(second, f"{_CONTEXTS}{name}", request)
            found.say(
                f"{name} by another caller", outcome.code, "PERMISSION_DENIED", outcome.code == "PERMISSION_DENIED"
            )
        outcome = await call(second, f"{_CONTEXTS}ReloadRegistry", b"")
        found.say("ReloadRegistry by anyone", outcome.code, "PERMISSION_DENIED", outcome.code == "PERMISSION_DENIED")


async def _derive(channel: grpc.aio.Channel, text: str, model: str = "a") -> _Derived:
    """Derive a little of *text*, and tell what it took."""
    request = simple(text, model=model)
    request.ClearField("loss_fn_config")
    derive: Any = channel.unary_stream(DERIVE)
    start, passes = time.perf_counter(), -1
    try:
        async for answer in derive(request.SerializeToString(), timeout=30.0):
            for frame in inference_pb2.DeriveResponse.FromString(answer).frames:
                if frame.HasField("trailer"):
                    passes = frame.trailer.statistics.forward_passes
    except grpc.aio.AioRpcError as error:
        return _Derived(error.code().name, time.perf_counter() - start, passes)
    return _Derived("OK", time.perf_counter() - start, passes)
