"""Callers that share a server of two models and room for one: none learns of another, or disturbs it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio

from dst_grpc import embedded
from dst_grpc._gen.dst.v1 import context_service_pb2, inference_pb2
from dst_grpc.domain.callers import Role
from tests import tokens
from tests.load.common import DERIVE, Findings, Outcome, Target, call, quantile, simple

_FIRST, _SECOND = tokens.bearer("first-token"), tokens.bearer("second-token")
_CONTEXTS = "/dst.v1.ContextService/"
_TRIES = 8


class _Caller(NamedTuple):
    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]]

    async def call(self, name: str, message: bytes) -> Outcome:
        """Send *message* to a method for operators."""
        return await call(self.channel, f"{_CONTEXTS}{name}", message, within=60.0, metadata=self.metadata)


class _Derived(NamedTuple):
    code: str
    seconds: float
    passes: int


def arguments(folder_of_files: Path) -> tuple[str, ...]:
    """Two names for the embedded model, a budget that one of them fills (loaded, it takes twice its file), and two
    callers who may ask."""
    known = tokens.write(folder_of_files / "tokens", first=Role.ASK, second=Role.ASK)
    folder = embedded.MODEL_FOLDER
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    models = ("--model", f"a={folder}", "--model", f"b={folder}", "--budget-bytes", str(3 * weights))
    return (*models, "--auth-token-file", str(known))


async def attack(target: Target, found: Findings) -> None:
    """Have one caller guess at another's prompts, and hinder it."""
    async with target.channel() as channel, target.channel() as other:
        first, second = _Caller(channel, _FIRST), _Caller(other, _SECOND)
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
        pinned = await first.call("LoadContext", pin)
        code = (await _derive(second, "x")).code
        found.say(f"the other model after a pin ({pinned.code})", code, "OK", code == "OK")
        for name in ("UnpinContext", "UnloadContext"):
            request = context_service_pb2.UnloadContextRequest(context="b").SerializeToString()
            outcome = await second.call(name, request)
            found.say(
                f"{name} by another caller", outcome.code, "PERMISSION_DENIED", outcome.code == "PERMISSION_DENIED"
            )
        outcome = await second.call("ReloadRegistry", b"")
        found.say("ReloadRegistry by anyone", outcome.code, "PERMISSION_DENIED", outcome.code == "PERMISSION_DENIED")


async def _derive(caller: _Caller, text: str, model: str = "a") -> _Derived:
    """Derive a little of *text*, and tell what it took."""
    request = simple(text, model=model)
    request.ClearField("loss_fn_config")
    derive: Any = caller.channel.unary_stream(DERIVE)
    start, passes = time.perf_counter(), -1
    try:
        async for answer in derive(request.SerializeToString(), timeout=30.0, metadata=caller.metadata):
            for frame in inference_pb2.DeriveResponse.FromString(answer).frames:
                if frame.HasField("trailer"):
                    passes = frame.trailer.statistics.forward_passes
    except grpc.aio.AioRpcError as error:
        return _Derived(error.code().name, time.perf_counter() - start, passes)
    return _Derived("OK", time.perf_counter() - start, passes)
