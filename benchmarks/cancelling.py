"""Cancelling: how long a device goes on with a batch that nobody waits for any more, in units of a layer's time.

Time is the processor's, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import subjects
from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.taps import Taps
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.scheduler import Scheduler
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.pipeline.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.run import RunResult

_PROMPTS, _TOKENS = 2, 512
_CANCELS = 40
_TYPES = (DerivedScalarType.MLP_ACT_TIMES_GRAD, DerivedScalarType.LOGITS)


def _layer_seconds(decoder: Decoder) -> float:
    """What a layer takes forward and backward, halved: the mean over those of a pass both ways."""
    tokens = torch.zeros(_PROMPTS, _TOKENS, dtype=torch.long)
    site = ActivationLocationType.RESID_POST_EMBEDDING, None
    taps = Taps(gradients=[site])
    started = time.process_time()
    decoder.forward(tokens, taps, stop_after_layer=-1)
    embedded = time.process_time()
    taps = Taps(gradients=[site, (ActivationLocationType.RESID_POST_MLP, 0)])
    decoder.forward(tokens, taps, stop_after_layer=0)
    taps.gradients(taps.attached[ActivationLocationType.RESID_POST_MLP, 0].sum())
    ended = time.process_time()
    return ((ended - embedded) - (embedded - started)) / 2


class _Device:
    """A worker and its batcher, asked for the same batch again and again, which keeps nothing of it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.worker = Worker("cpu")
        self._batcher = Batcher(self.worker, RecordingStore(0), Scheduler(DeviceLimits(), time.monotonic))
        self._plans = [subjects.plan(_TOKENS - i, _TYPES) for i in range(_PROMPTS)]

    def start(self) -> asyncio.Task[list[float]]:
        """Run the batch; gives the loss of each prompt."""

        async def both() -> list[float]:
            return await asyncio.gather(*(self._run(plan) for plan in self._plans))

        return asyncio.create_task(both())

    async def _run(self, plan: Plan) -> float:
        def loss(result: RunResult) -> float:
            assert result.loss is not None
            return result.loss

        return await self._batcher.run(Ticket(LOCAL), plan, self._decoder, {}, loss)


async def _ratios(decoder: Decoder) -> list[float]:
    """Seconds from each cancel until the device is free for the next, over a layer's at that time."""
    device, chance = _Device(decoder), random.Random(0)
    operations = 1 << 40  # with all threads, like the batch
    try:
        await device.start()
        started = time.perf_counter()
        await device.start()
        whole = time.perf_counter() - started
        ratios = []
        for _ in range(_CANCELS):
            running = device.start()
            await asyncio.sleep(chance.uniform(0, whole))
            started = time.process_time()
            running.cancel()
            await device.worker.submit(list, operations=operations)
            seconds = time.process_time() - started
            layer = await device.worker.submit(partial(_layer_seconds, decoder), operations=operations)
            ratios.append(seconds / layer)
        return ratios
    finally:
        await device.worker.close()


def report() -> Iterator[str]:
    """The median, p95 and maximum of cancels drawn uniformly over a pass."""
    ratios = sorted(asyncio.run(_ratios(subjects.gpt2_small())))
    yield (
        f"from cancel to idle, in layers: {_CANCELS} cancels within a pass both ways with logits, GPT-2-small shape,"
        f" {_PROMPTS} x {_TOKENS} tokens"
    )
    p95 = ratios[int(0.95 * len(ratios))]
    yield f"  p50 {statistics.median(ratios):.2f}, p95 {p95:.2f}, largest {ratios[-1]:.2f}"
