"""Time: batches of 1 to 64 prompts beside the bare passes; how soon a large pass gives the device to others."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import subjects
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.sender import HERE, Sender
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
_TRIALS = 20
_LAYERS = 1.5
_PART, _PART_OF_BACKWARD = 0.15, 0.3
_TINY = subjects.request(1, (DerivedScalarType.ALWAYS_ONE,))


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


@dataclass(frozen=True)
class _Large:
    """A large pass, in whose midst a request of one token comes."""

    served: Served
    requests: Sequence[DeriveRequest]
    n_tokens: int
    whole: float
    """Seconds that it takes."""
    alone: float
    """Seconds that the small request takes."""

    @classmethod
    async def of(cls, served: Served) -> _Large:
        """One that takes the device long enough."""
        n_tokens = 1024 if served.device.is_gpu else 256
        types = (DerivedScalarType.MLP_ACT_TIMES_GRAD, DerivedScalarType.LOGITS)
        large = cls(served, _requests(8 if served.device.is_gpu else 1, n_tokens, types), n_tokens, 0.0, 0.0)
        await asyncio.gather(*large.start())
        whole = [await _seconds_of(asyncio.gather(*large.start())) for _ in range(_ROUNDS)]
        alone = [await _seconds_of(ask(served, _TINY)) for _ in range(2 * _ROUNDS)]
        return replace(large, whole=statistics.median(whole), alone=statistics.median(alone))

    @property
    def name(self) -> str:
        """What it is."""
        return f"{len(self.requests)} x {self.n_tokens} tokens"

    def start(self) -> list[asyncio.Task[int]]:
        """Ask for it."""
        return [asyncio.create_task(ask(self.served, request)) for request in self.requests]

    async def waits(self, sender: Sender = HERE, *, cancels: bool) -> list[float]:
        """Seconds that small requests of *sender*, at times drawn uniformly over the pass, take longer than alone."""
        chance, waits = random.Random(0), []
        for _ in range(_TRIALS):
            running = self.start()
            await asyncio.sleep(chance.uniform(0, 0.9 * self.whole))
            if cancels:
                for task in running:
                    task.cancel()
            waits.append(max(await _seconds_of(ask(self.served, _TINY, sender)) - self.alone, 0.0))
            await asyncio.gather(*running, return_exceptions=True)
        return sorted(waits)


async def interrupting(served: Served) -> AsyncIterator[Finding]:
    """How long a cancelled pass keeps the device from the next request, and a running one from another caller's.

    Torch runs the backward pass of a GPU on a thread of its own, where nothing interrupts it: a pass in three parts, of
    which the last two are backward, then keeps a request for 2/3 x 1/3 of itself on average.
    """
    large = await _Large.of(served)
    layer = large.whole / (2 * subjects.GPT2_SMALL.n_layers)
    p95 = (await large.waits(cancels=True))[int(0.95 * _TRIALS)] / layer
    yield Finding(
        check="cancel",
        what=f"{_TRIALS} cancels of {large.name}: wait of the next request, p95",
        got=f"{p95:.2f} layers of {layer * 1e3:.1f} ms",
        wanted=f"<= {_LAYERS}",
        is_right=p95 <= _LAYERS,
    )
    mean = statistics.mean(await large.waits(Sender(caller=Caller(name="another")), cancels=False)) / large.whole
    wanted = _PART_OF_BACKWARD if served.device.is_gpu else _PART
    yield Finding(
        check="interrupt",
        what=f"{_TRIALS} requests of another caller beside {large.name}: wait, mean",
        got=f"{mean:.2f} of the pass",
        wanted=f"<= {wanted}",
        is_right=mean <= wanted,
    )


async def _seconds_of(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
