"""Time: batches of 1 to 64 prompts beside the bare passes, and how soon the device is free after a cancel."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks import subjects
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import require
from scripts.gpu_check.findings import Finding
from scripts.gpu_check.memory import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.engine.decoder import Decoder
    from scripts.gpu_check.device import Device, Served

_TOKENS = 64
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_ROUNDS = 3
_THROUGHPUT = 0.85
_CANCELS = 20
_LAYERS = 1.5


async def throughput(served: Served, seconds: float) -> AsyncIterator[Finding]:
    """Tokens a second of prompts asked at once, answers read, over one bare forward and backward pass of all of them.

    Larger batches are left out once *seconds* are over.
    """
    ends = time.monotonic() + seconds
    async with served.cache.lease(served.registry.model_entry("small")) as lease:
        decoder = lease.model.decoder
        for size in _BATCHES:
            if time.monotonic() > ends:
                yield _left_out(size)
                continue
            requests = _requests(size, _TOKENS, subjects.NEURONS_AND_HEADS)
            bare, ours = [], []
            for round_number in range(_ROUNDS + 1):
                started = time.perf_counter()
                _bare(decoder, served.device, requests)
                between = time.perf_counter()
                await asyncio.gather(*(ask(served, request) for request in requests))
                if round_number:  # the first warms up
                    bare.append(between - started)
                    ours.append(time.perf_counter() - between)
            ratio = statistics.median(bare) / statistics.median(ours)
            rate = size * _TOKENS / statistics.median(ours)
            yield Finding(
                check="throughput",
                what=f"{size} x {_TOKENS} tokens, act x grad, write norm, direct effect, over bare passes",
                got=f"{ratio:.2f} ({rate:,.0f} tokens/s)",
                wanted=f">= {_THROUGHPUT}",
                is_right=ratio >= _THROUGHPUT,
            )


def _left_out(size: int) -> Finding:
    return Finding(
        check="throughput", what=f"{size} x {_TOKENS} tokens", got="left out: no time", wanted="-", is_right=None
    )


def _requests(count: int, n_tokens: int, types: Sequence[DerivedScalarType]) -> list[DeriveRequest]:
    """About *count* prompts that differ in their first token."""
    asked = subjects.request(n_tokens, types)
    return [replace(asked, prompt=Prompt(token_ids=(i, *range(1, n_tokens)))) for i in range(count)]


def _bare(decoder: Decoder, device: Device, requests: Sequence[DeriveRequest]) -> None:
    """One forward pass of all prompts to the logits of the last token, and one backward pass to the embeddings."""
    prompts = [require(require(request.prompt).token_ids) for request in requests]
    subjects.bare_pass(decoder, prompts, lambda logits: (logits[:, 5] - logits[:, 7]).sum())
    device.wait()


async def cancelling(served: Served) -> AsyncIterator[Finding]:
    """From a cancel, drawn uniformly over a pass, until a request of one token is answered, less what that takes."""
    n_tokens = 1024 if served.device.is_gpu else 256
    types = (DerivedScalarType.MLP_ACT_TIMES_GRAD, DerivedScalarType.LOGITS)
    tiny = subjects.request(1, (DerivedScalarType.ALWAYS_ONE,))
    count = 8 if served.device.is_gpu else 1
    large = _requests(count, n_tokens, types)

    def start() -> list[asyncio.Task[int]]:
        return [asyncio.create_task(ask(served, request)) for request in large]

    await asyncio.gather(*start())
    whole = [await _seconds_of(asyncio.gather(*start())) for _ in range(_ROUNDS)]
    alone = statistics.median([await _seconds_of(ask(served, tiny)) for _ in range(2 * _ROUNDS)])
    layer = statistics.median(whole) / (2 * subjects.GPT2_SMALL.n_layers)
    chance, waits = random.Random(0), []
    for _ in range(_CANCELS):
        running = start()
        await asyncio.sleep(chance.uniform(0, 0.9 * statistics.median(whole)))
        for task in running:
            task.cancel()
        waits.append(max(await _seconds_of(ask(served, tiny)) - alone, 0.0) / layer)
        await asyncio.gather(*running, return_exceptions=True)
    p95 = sorted(waits)[int(0.95 * _CANCELS)]
    yield Finding(
        check="cancel",
        what=f"{_CANCELS} cancels of {count} x {n_tokens} tokens: wait of the next request, p95",
        got=f"{p95:.2f} layers of {layer * 1e3:.1f} ms",
        wanted=f"<= {_LAYERS}",
        is_right=p95 <= _LAYERS,
    )


async def _seconds_of(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
