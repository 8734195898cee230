"""Prompts of mixed lengths on one stream, with gradients, beside one bare forward and backward pass of all of them.

Rates are in tokens of prompts by second of the processor, of the server's process and of the bare pass's: others that
use the machine change these little. Both use one thread. The bare pass is of one batch, padded to its longest prompt.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import subjects
from benchmarks.fairness import write_model
from benchmarks.measure import one_thread
from dst_grpc.client import AsyncClient
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DstError
from scripts.serving import SERVE, Server, running

if TYPE_CHECKING:
    from dst_grpc.domain.results import RunStatistics
    from dst_grpc.engine.decoder import Decoder

_T = DerivedScalarType
_ASKED = (
    _T.MLP_ACT_TIMES_GRAD,
    _T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    _T.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    _T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
)
"""Act x grad and direct effect of every neuron and head."""
_LENGTHS = {"8 to 24": (8, 24), "16 to 64": (16, 64), "64": (64, 64)}
_PROMPTS, _ROUNDS = 24, 3
_LAYERS, _D, _HEADS = 12, 768, 12
_TARGET, _DISTRACTOR = 1, 7


def prompts(shortest: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    """Random prompts, of lengths drawn uniformly."""
    chance = random.Random(seed)
    lengths = [chance.randint(shortest, longest) for _ in range(_PROMPTS)]
    return [tuple(chance.randrange(256) for _ in range(length)) for length in lengths]


def _request(tokens: tuple[int, ...]) -> DeriveRequest:
    return DeriveRequest(
        prompt=Prompt(token_ids=tokens),
        loss_fn_config=LossFnConfig(
            name=LossFnName.LOGIT_DIFF, target_token_ids=(_TARGET,), distractor_token_ids=(_DISTRACTOR,)
        ),
        derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in _ASKED),
    )


def bare_cpu_seconds(decoder: Decoder, batch: Sequence[tuple[int, ...]]) -> float:
    """The processor's time of the bare pass of *batch*."""
    started = time.process_time()
    subjects.bare_pass(decoder, batch, lambda logits: (logits[:, _TARGET] - logits[:, _DISTRACTOR]).sum())
    return time.process_time() - started


@dataclass(frozen=True, kw_only=True)
class _Streamed:
    """What one stream of prompts took."""

    cpu_seconds: float
    """Of the server."""
    seconds: float
    padding: float
    """Tokens of its batches, pads included, over those of the prompts."""
    n_batches: int
    passes: float
    """Seconds of its passes."""
    deriving: float
    """Seconds of deriving from what they recorded."""


async def _stream(client: AsyncClient, server: Server, batch: Sequence[tuple[int, ...]]) -> _Streamed:
    ran: list[tuple[int, RunStatistics]] = []
    cpu, started = server.cpu_seconds, time.perf_counter()
    async for name, answer in client.derive_stream(map(_request, batch), max_in_flight=len(batch)):
        if isinstance(answer, DstError):
            raise answer
        ran.append((len(batch[int(name)]), answer.statistics))
    seconds, cpu = time.perf_counter() - started, server.cpu_seconds - cpu
    batches: dict[float, list[int]] = {}
    for length, told in ran:
        batches.setdefault(told.pass_duration, []).append(length)  # those of a batch share its time
    padded = sum(max(lengths) * len(lengths) for lengths in batches.values())
    return _Streamed(
        cpu_seconds=cpu,
        seconds=seconds,
        padding=padded / sum(map(len, batch)),
        n_batches=len(batches),
        passes=sum(batches),
        deriving=sum(told.derive_duration for _, told in ran),
    )


async def _report(server: Server, decoder: Decoder) -> list[str]:
    lines = []
    async with AsyncClient(server.address) as client:
        await _stream(client, server, prompts(8, 8, 0))
        for title, (shortest, longest) in _LENGTHS.items():
            ratios, found = [], []
            for number in range(_ROUNDS):
                batch = prompts(shortest, longest, 1 + number)
                bare = bare_cpu_seconds(decoder, batch)
                found.append(await _stream(client, server, batch))
                ratios.append(bare / found[-1].cpu_seconds)
            padding = statistics.median(one.padding for one in found)
            passes = statistics.median(one.passes / one.seconds for one in found)
            deriving = statistics.median(one.deriving / one.seconds for one in found)
            lines.append(
                f"  {_PROMPTS} prompts of {title} tokens: padding {padding:.2f} in"
                f" {statistics.median(one.n_batches for one in found):.0f} batches; tokens/s"
                f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the bare pass;"
                f" of the time passes {passes:.0%}, deriving {deriving:.0%}, all else {1 - passes - deriving:.0%}"
            )
    return lines


def report() -> Iterator[str]:
    """All of it."""
    yield f"gradients of {_PROMPTS} prompts on one stream, {_LAYERS} layers, d {_D}, {_HEADS} heads:"
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_model(top / "model", _LAYERS, _D, _HEADS)
        registry = Registry.build(models={"m": top / "model"}, device="cpu")
        decoder = FileLoader().load_model(registry.model_entry("m"), lambda _: None).decoder
        model = ("--model", f"m={top / 'model'}", "--default-model", "m", "--preload", "m")
        with running(*SERVE, *model, log=top / "log", OMP_NUM_THREADS="1") as server:
            yield from asyncio.run(_report(server, decoder))
