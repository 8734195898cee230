"""Estimates of memory against the allocations that torch reports, on every architecture.

The bound of 20 % is that of what is not counted: the inputs of an operation whose output is counted, small tensors of
one number per token, and what one phase still holds while the next begins. Sizes are large enough for these to be few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.measure import peak_bytes
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.decoder import DecoderConfig
from dst_grpc.engine.splice import Splice
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.pipeline.answer_memory import derive_bytes
from dst_grpc.pipeline.pass_memory import pass_bytes
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.sizes import Sizes
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES, widened
from dst_grpc.pipeline.tensor_answer import TensorAnswer
from tests import models, traces
from tests.plain import Kind, Transcoder

BOUND = 0.2
LATENT = L.ONLINE_MLP_AUTOENCODER_LATENT
MIB = 1 << 20
VOCABULARY = 1000


def enlarged(name: str) -> DecoderConfig:
    """An architecture at sizes at which its activations are what takes memory."""
    config = models.ARCHITECTURES[name]
    group = config.n_heads // config.n_key_value_heads
    larger = replace(config, vocab_size=VOCABULARY, context_window=256, d_model=64, d_head=8, d_mlp=192)
    return replace(larger, n_heads=6, n_key_value_heads=6 // group)


def at_every_layer(config: DecoderConfig, *locations: L) -> list[Site]:
    return [(location, layer) for location in locations for layer in range(config.n_layers)]


def measured(
    config: DecoderConfig,
    values: Iterable[Site],
    gradients: Iterable[Site],
    n_tokens: int,
    splices: Mapping[Site, Splice] | None = None,
) -> int:
    """Most bytes of tensors during the passes."""
    decoder = models.decoder(config=config, dtype=torch.float32)
    tokens, last = torch.arange(n_tokens).unsqueeze(0) % VOCABULARY, torch.tensor([n_tokens - 1])

    def passes() -> object:
        taps = Taps(values=values, gradients=gradients, splices=splices)
        logits = decoder.forward(tokens, taps, logits_at=last)
        assert logits is not None
        row = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(1), last]
        found = taps.gradients(row[0, 3] - row[0, 5])
        taps.attached.clear()
        return taps.values, found

    passes()  # tables that are kept
    return peak_bytes(passes)


@pytest.mark.parametrize("n_tokens", [32, 160])
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize(
    ("of_values", "of_gradients"),
    [
        ((), ()),
        ((L.MLP_POST_ACT,), ()),
        ((L.ATTN_QK_PROBS,), ()),
        ((L.MLP_POST_ACT,), (L.MLP_POST_ACT,)),
        ((L.ATTN_QK_PROBS,), (L.ATTN_QK_PROBS,)),
        ((L.ATTN_VALUE, L.RESID_POST_MLP), (L.ATTN_VALUE,)),
        (
            (L.RESID_DELTA_ATTN, L.RESID_POST_MLP, L.ATTN_QUERY, L.ATTN_KEY, L.MLP_PRE_ACT, L.MLP_POST_ACT),
            (L.RESID_POST_MLP, L.MLP_POST_ACT),
        ),
    ],
    ids=lambda locations: "+".join(location.name.lower() for location in locations) or "nothing",
)
def test_passes_take_what_is_estimated(
    architecture: str, of_values: tuple[L, ...], of_gradients: tuple[L, ...], n_tokens: int
) -> None:
    config = enlarged(architecture)
    values, gradients = at_every_layer(config, *of_values), at_every_layer(config, *of_gradients)
    sizes = Sizes(config.dimensions, n_tokens, config.architecture)
    estimate = pass_bytes(sizes, values, gradients, logit_count=1)
    assert measured(config, values, gradients, n_tokens) == pytest.approx(estimate.peak, rel=BOUND)


@pytest.mark.parametrize("kind", [T.RESID_DELTA_MLP, Transcoder.NORMED, Transcoder.STORED, Transcoder.CROSS_LAYER])
@pytest.mark.parametrize("activation", [AutoencoderActivation.RELU, AutoencoderActivation.JUMP_RELU])
@pytest.mark.parametrize(
    ("of_values", "of_gradients"),
    [((), ()), ((LATENT,), ()), ((), (L.RESID_POST_MLP,)), ((LATENT,), (LATENT,))],
    ids=["nothing", "values", "a gradient before", "gradients"],
)
def test_latents_in_the_graph_are_counted(
    kind: Kind, activation: AutoencoderActivation, of_values: tuple[L, ...], of_gradients: tuple[L, ...]
) -> None:
    """About: a splice takes less at a time than the most that any takes. Rows of latents that are active are extra."""
    config, n_tokens = enlarged("gpt2"), 96
    context = models.autoencoders(kind, 4, config=config, dtype=torch.float32, activation=activation, n_latents=1500)
    values, gradients = at_every_layer(config, *of_values), at_every_layer(config, *of_gradients)
    estimate = pass_bytes(
        Sizes(config.dimensions, n_tokens, config.architecture),
        values,
        gradients,
        logit_count=1,
        spliced=[models.autoencoder_entry(context, models.model_entry("tiny", config))],
    )
    found = measured(config, values, gradients, n_tokens, models.splices(context))
    assert 0.6 * estimate.peak < found < (1 + BOUND) * estimate.peak


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_logits_of_every_token_are_counted(architecture: str, with_gradient: bool) -> None:
    config, n_tokens = enlarged(architecture), 100
    gradients: list[Site] = [(L.RESID_POST_EMBEDDING, None)] if with_gradient else []
    estimate = pass_bytes(
        Sizes(config.dimensions, n_tokens, config.architecture), [(L.LOGITS, None)], gradients, logit_count=1
    )
    assert measured(config, [(L.LOGITS, None)], gradients, n_tokens) == pytest.approx(estimate.peak, rel=BOUND)


WORLD = models.world(T.MLP_POST_ACT, config=enlarged("gpt2"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("dst", "fields"),
    [
        (T.ATTN_QK_LOGITS, {}),
        (T.ATTN_WRITE, {}),
        (T.MLP_WRITE, {}),
        (T.ATTN_WRITE_SUM_HEADS, {}),
        (T.ATTN_WRITE_NORM, {}),
        (T.UNFLATTENED_ATTN_WRITE_NORM, {}),
        (T.MLP_ACT_TIMES_GRAD, {"loss_fn_config": models.LOSS}),
        (T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, {"loss_fn_config": models.LOSS}),
        (T.UNFLATTENED_ATTN_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, {"trace_config": traces.PLAIN_TRACES[0]}),
    ],
)
def test_deriving_takes_no_more_than_is_estimated_and_not_much_less(dst: T, fields: dict[str, Any]) -> None:
    """Steps that are not full are counted as full, and what is filled from one end is counted twice: up to 2 MiB."""
    request = replace(models.request(dst, **fields), prompt=Prompt(token_ids=tuple(range(200))))
    (result,) = WORLD.results(request)

    def derive() -> None:
        """As an answer is sent: one step is held while the next is derived."""
        held = None
        for step in TensorAnswer(result, WORLD.context, WORLD.sets).steps():
            held = step
        assert held

    derive()
    sizes = Sizes.of_prompt(result.plan.model, 200)
    estimate, peak = derive_bytes(sizes, result.plan.scalars), peak_bytes(derive)
    assert estimate - 2 * MIB <= peak < estimate * (1 + BOUND)


def test_what_a_store_keeps_besides_is_counted() -> None:
    request = models.request(T.MLP_POST_ACT)
    plain, kept = (make_plan(request, WORLD.registry, store_bytes=each) for each in (0, DEFAULT_STORE_BYTES))
    more = widened(kept, DEFAULT_STORE_BYTES).values - plain.values
    sizes = Sizes.of_prompt(plain.model, len(plain.token_ids))
    assert more
    assert kept.cost.peak_bytes > plain.cost.peak_bytes + sizes.recorded_bytes(more, 0) / 2
