"""What the reference refuses, or answers by accident, and we answer: checked against autograd on the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from tests import models, plain, traces

LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}
BOTH = (T.MLP_POST_ACT, T.RESID_DELTA_ATTN)
N_LAYERS = models.CONFIG.n_layers
V_TO_LATENT = [
    traces.trace(traces.HEAD, 1, 4, 2, 3, through=traces.V, downstream=traces.trace(node_type, 2, 4, 6, post=False))
    for node_type in (traces.MLP_LATENT, traces.ATTENTION_LATENT)
]


def twin(world: models.World, seed: int) -> tuple[plain.Plain, dict[Any, torch.Tensor]]:
    sets = {one.dst: one.by_layer for one in world.sets.values()}
    reference = plain.Plain(models.CONFIG, models.weights(seed), sets, is_spliced=True)
    return reference, reference.run(models.TOKENS)


def near(reference: plain.Plain, taps: plain.Taps, origin: TraceConfig) -> torch.Tensor:
    """The gradient at the residual before the trace, recomputed there."""
    rho = reference.rho(taps, origin)
    return plain.local_gradient(lambda x: reference.value(origin, x, taps, traces.loss), rho)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


ORIGINS = [
    traces.trace(traces.NEURON, 2, 4, 7),
    traces.trace(traces.HEAD, 2, 4, 2, 3, through=traces.QK),
    traces.trace(traces.MLP_LATENT, 2, 4, 6, post=False),
    traces.trace(traces.ATTENTION_LATENT, 2, 4, 3, post=False, detach=True),
    *traces.V_TRACES,
    traces.V_OF_LOSS,
    *V_TO_LATENT,
]


@pytest.mark.parametrize("origin", ORIGINS, ids=traces.name)
def test_local_gradients_are_there_with_two_autoencoders_and_through_v(origin: TraceConfig) -> None:
    """Q7, Q8 and Q9: the reference finds no autoencoder, or no gradient, in these cases."""
    world = models.world(*BOTH, seed=4)
    reference, taps = twin(world, 4)
    gradient = near(reference, taps, origin)
    fields = traces.fields_of(origin, models.LOSS) | {"autoencoders": tuple(world.sets)}
    embedding = world.one(T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, **fields)[None]
    close(embedding, (taps[L.RESID_POST_EMBEDDING, None] * gradient).sum(dim=-1, keepdim=True))
    its_layer = origin.node_index.layer_index or 0
    latents = world.one(T.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, **fields)
    for layer in range(N_LAYERS):
        rows = reference.sets[T.MLP_POST_ACT][layer].decoder.T @ reference.wout(layer)
        expected = taps[L.ONLINE_MLP_AUTOENCODER_LATENT, layer] * (gradient @ rows.T)
        close(latents[layer], expected if layer < its_layer else torch.zeros_like(expected))


@pytest.mark.parametrize("origin", ORIGINS, ids=traces.name)
def test_local_and_backward_gradients_agree_at_the_residual_before_the_trace(origin: TraceConfig) -> None:
    world = models.world(*BOTH, seed=4)
    fields = traces.fields_of(origin, models.LOSS) | {"autoencoders": tuple(world.sets)}
    backward = world.one(T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, **fields)
    local = world.one(T.UNFLATTENED_ATTN_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, **fields)
    for layer in range(N_LAYERS):
        close(local[layer], backward[layer])


@pytest.mark.parametrize("origin", V_TO_LATENT, ids=traces.name)
def test_a_v_trace_may_lead_to_a_latent(origin: TraceConfig) -> None:
    """Q9, as the origin of a backward pass."""
    world = models.world(*BOTH, seed=4)
    reference, taps = twin(world, 4)

    def scalar(given: plain.Taps) -> torch.Tensor:
        return reference.value(origin, reference.rho(given, origin), given, None)

    gradients = plain.gradients(reference, models.TOKENS, scalar)
    given = models.request(
        T.RESID_POST_MLP, config=DstConfig(derive_gradients=True), trace_config=origin, autoencoders=tuple(world.sets)
    )
    (outcome,) = world.outcomes(given)
    assert outcome.activation_value == pytest.approx(float(scalar(taps)))
    assert gradients[L.RESID_POST_MLP, 0].any()
    for layer in range(N_LAYERS):
        found = models.tensors(outcome)[T.RESID_POST_MLP, PassType.BACKWARD, layer]
        close(found, gradients[L.RESID_POST_MLP, layer])


def test_a_neuron_s_direct_effects_need_no_autoencoder_and_suffer_none() -> None:
    """With autoencoders spliced in but not ablated, every number stays what it was."""
    origin = traces.trace(traces.NEURON, 2, 4, 7)
    with_both, without = models.world(*BOTH, seed=4), models.world(seed=4)
    dst = T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD
    found = with_both.one(dst, trace_config=origin, autoencoders=tuple(with_both.sets))
    for layer, expected in without.one(dst, trace_config=origin).items():
        torch.testing.assert_close(found[layer], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kinds", [(T.RESID_DELTA_ATTN,), BOTH], ids=["attention only", "both"])
def test_the_specific_types_tell_two_autoencoders_apart(kinds: tuple[T, ...]) -> None:
    world = models.world(*kinds, seed=4)
    reference, taps = twin(world, 4)
    fields: dict[str, Any] = {"autoencoders": tuple(world.sets)}
    for layer, found in world.one(T.ONLINE_ATTENTION_AUTOENCODER_LATENT, **fields).items():
        assert layer is not None
        close(found, plain.encode(reference.sets[T.RESID_DELTA_ATTN][layer], taps[L.RESID_DELTA_ATTN, layer]))


@pytest.mark.parametrize("origin", [traces.trace(traces.HEAD, 0, 4, 2, 3, through=traces.QK), traces.V_OF_LOSS])
def test_where_the_origin_does_not_reach_gradients_are_zeros_in_full_shape(origin: TraceConfig) -> None:
    """Q12: the reference gives 0-d zeros."""
    world, raw = models.world(), (T.LOGITS, T.RESID_FINAL_LAYER_NORM_SCALE, T.ATTN_QK_PROBS, T.MLP_PRE_ACT)
    fields = traces.fields_of(origin, models.LOSS)
    found = world.derive(models.request(*raw, config=DstConfig(derive_gradients=True), **fields))
    its_layer = origin.node_index.layer_index or 0
    for (dst, pass_type, layer), tensor in found.items():
        if pass_type is PassType.BACKWARD:
            assert tensor.shape == found[dst, PassType.FORWARD, layer].shape
            assert bool(tensor.any()) == (layer is not None and layer < its_layer), (dst, layer)
