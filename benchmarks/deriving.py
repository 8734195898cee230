"""Deriving, beside the bare forward and backward pass of the same decoder to the activations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import subjects
from benchmarks.measure import conditions, interleaved, peak_bytes
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require
from dst_grpc.pipeline.run import RunResult, run
from dst_grpc.pipeline.store import RecordingStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.plan import Plan

ROUNDS = 15
_MIB = 1 << 20


def bare(decoder: Decoder, plan: Plan) -> object:
    """The bare pass of the plan's prompt."""
    return subjects.bare_pass(decoder, [plan.token_ids], lambda logits: require(plan.loss)(logits[0]))


def bare_all_logits(decoder: Decoder, plan: Plan) -> object:
    """The same with the logits of every token, which a request for LOGITS needs."""
    taps = Taps(gradients=[(ActivationLocationType.RESID_POST_EMBEDDING, None)])
    logits = decoder.forward(torch.tensor([plan.token_ids]), taps)
    assert logits is not None
    assert plan.loss is not None
    return taps.gradients(plan.loss(logits[0, -1]))


def derive(result: RunResult) -> None:
    """Derive everything of the plan, letting go of each tensor as a stream would."""
    for scalar in result.plan.scalars:
        derivation = result.derivation(scalar)
        for layer in scalar.layers:
            derivation.at(layer)


def ours(decoder: Decoder, plan: Plan) -> None:
    """Run a plan and derive all of it, recording sideways as the server does."""
    (result,) = run([RecordingStore().widened(plan)], decoder, {})
    derive(result)


def from_store(result: RunResult) -> None:
    """Derive a second question from what the first recorded."""
    derive(result)


def ratios(decoder: Decoder, name_of_model: str) -> Iterator[str]:
    """Time and memory over the bare pass."""
    for name, types, reference, logits in (
        (
            "neurons and heads: act x grad, write norm, direct effect",
            subjects.NEURONS_AND_HEADS,
            bare,
            "the last token",
        ),
        ("the debugging request's groups", subjects.DEBUGGING_REQUEST, bare_all_logits, "every token"),
    ):
        yield (
            f"{name}, {name_of_model}, over the bare forward + backward with the logits of {logits},"
            f" {conditions(ROUNDS)}"
        )
        for n_tokens in (16, 64):
            plan = subjects.plan(n_tokens, types, decoder.config)
            passes: dict[str, Callable[[], object]] = {
                "bare": partial(reference, decoder, plan),
                "ours": partial(ours, decoder, plan),
            }
            found = interleaved(passes, ROUNDS)
            memory = {which: peak_bytes(one) for which, one in passes.items()}
            yield (
                f"  {n_tokens:3} tokens: time x {found.over('ours', 'bare')},"
                f" {found.milliseconds('ours'):.0f} ms / {found.milliseconds('bare'):.0f} ms;"
                f" peak memory x {memory['ours'] / memory['bare']:.2f}"
                f" ({memory['ours'] / _MIB:.0f} MiB / {memory['bare'] / _MIB:.0f} MiB)"
            )


def second_question(decoder: Decoder) -> Iterator[str]:
    """A second question about the same run, over the first."""
    yield f"a second question about the same run, over the first, {conditions(ROUNDS)}"
    for n_tokens in (16, 64):
        first = subjects.plan(n_tokens, subjects.NEURONS_AND_HEADS, decoder.config)
        second = subjects.plan(
            n_tokens,
            (DerivedScalarType.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD, DerivedScalarType.ATTN_WRITE_NORM),
            decoder.config,
        )
        store = RecordingStore()
        (result,) = run([store.widened(first)], decoder, {})
        store.keep(first, result.recording)
        recording = store.find(second)
        assert recording is not None
        again = RunResult(second, decoder, {}, recording, batches=())
        found = interleaved({"first": partial(ours, decoder, first), "second": partial(from_store, again)}, ROUNDS)
        ratio, took = found.over("second", "first"), found.milliseconds("second")
        yield f"  {n_tokens:3} tokens: x {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {took:.1f} ms"


def large_output(decoder: Decoder) -> Iterator[str]:
    """Peak memory of ATTN_WRITE, which is far larger than anything recorded."""
    plan = subjects.plan(64, (DerivedScalarType.ATTN_WRITE,), decoder.config)
    (result,) = run([plan], decoder, {})
    (scalar,) = plan.scalars
    layer_bytes = scalar.output_bytes // len(scalar.layers)
    extra = peak_bytes(partial(derive, result))
    yield "ATTN_WRITE of 64 tokens, all layers, layer by layer"
    yield f"  peak extra memory: {extra / layer_bytes:.2f} layers' worth ({layer_bytes / _MIB:.0f} MiB a layer)"


def report() -> Iterator[str]:
    """All of it, in the shape of GPT-2 small."""
    yield from _report(subjects.gpt2_small(), "GPT-2-small shape")


def report_of_smollm2() -> Iterator[str]:
    """The same of a real model, grouped heads and gated neurons included."""
    yield from _report(subjects.smollm2(), "SmolLM2-135M")


def _report(decoder: Decoder, name: str) -> Iterator[str]:
    yield from ratios(decoder, name)
    yield from second_question(decoder)
    yield from large_output(decoder)
