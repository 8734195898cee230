"""Autoencoders of other inputs: transcoders, the residual stream, the embedding; and what they cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig, TapSum
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import InvalidRequest, PreconditionFailed
from tests import models, plain, traces
from tests.explained import N_LAYERS, Explained

if TYPE_CHECKING:
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Site

RESIDUALS = (T.RESID_POST_ATTN, T.RESID_POST_MLP)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_a_splice_into_the_residual_stream_changes_nothing_by_itself(kind: T) -> None:
    x = Explained(kinds=(kind,))
    close(x.one(T.LOGITS)[None], x.one(T.LOGITS, autoencoders=())[None])


@pytest.mark.parametrize("kind", RESIDUALS)
def test_ablating_a_latent_of_the_residual_reaches_what_follows(kind: T) -> None:
    x, location = Explained(kinds=(kind,)), L.ONLINE_AUTOENCODER_LATENT
    token, latent = (x.latents(kind, 1) > 0).nonzero()[3].tolist()

    def edit(site: Site, tap: torch.Tensor) -> torch.Tensor:
        if site == (location, 1):
            tap = tap.clone()
            tap[token, latent] = 0.0
        return tap

    index = ActivationIndex(activation_location_type=location, layer_index=1, tensor_indices=(token, latent))
    found = x.one(T.LOGITS, ablation_specs=(AblationSpec(index=index, value=0.0),))[None]
    close(found, x.plain.run(models.TOKENS, edit)[L.LOGITS, None])
    assert not torch.allclose(found, x.value[L.LOGITS, None])


READERS = {
    "a head of the next layer": traces.trace(traces.HEAD, 2, 5, 3, 3, through=traces.QK),
    "a neuron": traces.trace(traces.NEURON, 2, 5, 7, post=False),
    "a latent of the next layer": traces.trace(traces.LATENT, 2, 5, 3, post=False),
}


@pytest.mark.parametrize("kind", RESIDUALS)
@pytest.mark.parametrize("origin", READERS.values(), ids=READERS)
def test_traces_and_edges_read_the_residual_as_latents_leave_it(kind: T, origin: TraceConfig) -> None:
    """An ablated latent changes a traced value, its gradients and its edges as in the plain model."""
    x, location = Explained(kinds=(kind,), origin=origin), L.ONLINE_AUTOENCODER_LATENT
    token, latent = 5, int(x.latents(kind, 1)[5].argmax())

    probe = torch.zeros_like(x.latents(kind, 1), requires_grad=True)

    def edit(site: Site, tap: torch.Tensor) -> torch.Tensor:
        if site == (location, 1):
            tap = tap.clone()
            tap[token, latent] = 2.0
            tap = tap + probe
        return tap

    index = ActivationIndex(activation_location_type=location, layer_index=1, tensor_indices=(token, latent))
    ablated = (AblationSpec(index=index, value=2.0),)
    taps = x.plain.run(models.TOKENS, edit)
    changed = {site: tap.detach() for site, tap in taps.items()}
    value = x.scalar(taps)
    spec = DerivedScalarSpec(dst=T.ONLINE_AUTOENCODER_ACT_TIMES_GRAD)
    result = x.run(spec, ablation_specs=ablated)
    assert result.activation_value == pytest.approx(value.item(), rel=1e-9)
    assert result.activation_value != pytest.approx(x.scalar(x.value).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, probe)
    found = result.derivation(result.plan.scalars[0]).at(1)[PassType.FORWARD]
    close(found, changed[location, 1] * gradient)
    # The upstream node of an edge writes into the residual that its reader is computed from.
    site = x.plain.rho_site(origin)
    near = plain.local_gradient(lambda rho: x.plain.value(origin, rho, changed, None), changed[site])
    projected = x.one(T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, ablation_specs=ablated)
    _, scale = plain.mean_and_scale(x.autoencoder(kind, 1), changed[L[kind.name], 1])
    rows = scale.unsqueeze(-1) * x.autoencoder(kind, 1).decoder.T
    close(projected[1], torch.einsum("tz,tzd,td->tz", changed[location, 1], rows.expand(6, -1, -1), near))


def test_a_change_of_the_residual_reaches_the_latents_that_read_it() -> None:
    """The autoencoder reads the tap as interventions leave it; what it makes of that is a tap of its own."""
    kind = T.RESID_POST_MLP
    x = Explained(kinds=(kind,))
    index = ActivationIndex(activation_location_type=L.RESID_POST_MLP, layer_index=1, tensor_indices=(4, 2))
    found = x.one(T.ONLINE_AUTOENCODER_LATENT, ablation_specs=(AblationSpec(index=index, value=3.0),))[1]
    residual = x.value[L.RESID_POST_MLP, 1].clone()
    residual[4, 2] = 3.0
    close(found, plain.encode(x.autoencoder(kind, 1), residual))


@pytest.mark.parametrize("tap", [L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT])
def test_errors_and_output_of_the_residual_can_be_changed(tap: L) -> None:
    x = Explained(kinds=(T.RESID_POST_ATTN,))
    index = ActivationIndex(activation_location_type=tap, layer_index=1, tensor_indices=(5, None))

    def edit(site: Site, value: torch.Tensor) -> torch.Tensor:
        return torch.cat((value[:5], torch.full_like(value[5:], 0.25))) if site == (tap, 1) else value

    found = x.one(T.LOGITS, ablation_specs=(AblationSpec(index=index, value=0.25),))[None]
    close(found, x.plain.run(models.TOKENS, edit)[L.LOGITS, None])


def test_the_generic_latents_beside_others_are_those_of_the_residual() -> None:
    x = Explained(kinds=(T.MLP_POST_ACT, T.RESID_POST_MLP))
    close(x.one(T.ONLINE_AUTOENCODER_LATENT)[1], x.latents(T.RESID_POST_MLP, 1))
    close(x.one(T.ONLINE_MLP_AUTOENCODER_LATENT)[1], x.latents(T.MLP_POST_ACT, 1))
    location = L.ONLINE_AUTOENCODER_LATENT
    index = ActivationIndex(activation_location_type=location, layer_index=1, tensor_indices=(None, 3))

    def edit(site: Site, value: torch.Tensor) -> torch.Tensor:
        return value.index_fill(1, torch.tensor(3), 0.0) if site == (location, 1) else value

    found = x.one(T.LOGITS, ablation_specs=(AblationSpec(index=index, value=0.0),))[None]
    close(found, x.plain.run(models.TOKENS, edit)[L.LOGITS, None])


@pytest.mark.parametrize("kind", RESIDUALS)
def test_gradients_at_taps_of_a_splice_are_changed_for_what_comes_later(kind: T) -> None:
    """A backward ablation at latents counts for a loss of a tap of the same layer exactly if that is computed later."""
    location = L.ONLINE_AUTOENCODER_LATENT
    for tap in (L.MLP_POST_ACT, L.RESID_DELTA_MLP, L.ATTN_QK_PROBS):
        x = Explained(kinds=(kind,))
        loss = LossFnConfig(
            name=LossFnName.TAP, tap=TapSum(at=TapSelection(activation_location_type=tap, layer_index=1))
        )
        index = ActivationIndex(
            activation_location_type=location, layer_index=1, tensor_indices=(None, None), pass_type=PassType.BACKWARD
        )
        spec = DerivedScalarSpec(dst=T.TOKEN_ATTRIBUTION)
        result = x.run(spec, loss_fn_config=loss, ablation_specs=(AblationSpec(index=index, value=1.0),))
        (passed,) = result.plan.run.passes
        is_later = kind is T.RESID_POST_ATTN and tap is not L.ATTN_QK_PROBS
        assert bool(passed.interventions) is is_later


# What they cannot do is refused


def refused(kind: T, dst: T, match: str, config: DstConfig | None = None, **fields: Any) -> None:
    x = Explained(kinds=(kind,))
    with pytest.raises((InvalidRequest, PreconditionFailed), match=match):
        x.one(dst, config, **fields)


def test_latents_of_the_residual_are_none_of_attention() -> None:
    """What heads of other layers write along what they read is asked of the trace, whatever the head's layer."""
    config = DstConfig(trace_config=traces.trace(traces.LATENT, 1, None, 3), layer_indices=(1,))
    match = "needs an autoencoder of attention, and the request has tiny/resid_post_mlp"
    refused(T.RESID_POST_MLP, T.ATTN_WRITE_TO_LATENT, match, config)


def test_errors_of_the_residual_need_an_autoencoder_of_it() -> None:
    dst = T.ONLINE_RESIDUAL_AUTOENCODER_ERROR
    refused(
        T.RESID_POST_MLP, dst, "needs an autoencoder of the residual stream, and the request has none", autoencoders=()
    )
    both = Explained(kinds=(T.MLP_POST_ACT, T.RESID_DELTA_ATTN))
    with pytest.raises(
        PreconditionFailed, match="needs an autoencoder of the residual stream, and the request has tiny/"
    ):
        both.one(dst)
    refused(T.MLP_POST_ACT, dst, "needs an autoencoder of the residual stream, and the request has tiny/mlp_post_act")


def test_two_autoencoders_of_the_residual_are_too_many() -> None:
    x = Explained(kinds=RESIDUALS)
    with pytest.raises(InvalidRequest, match="both have latents of autoencoder_latent"):
        x.one(T.LOGITS)


def test_an_autoencoder_of_the_embedding_has_no_layers() -> None:
    kind = T.RESID_POST_EMBEDDING
    config = DstConfig(autoencoder_context=f"tiny/{kind}")
    assert list(Explained(kinds=(kind,)).one(T.AUTOENCODER_LATENT, config)) == [None]
    match = "must be empty: tiny/resid_post_embedding reads resid_post_embedding"
    refused(kind, T.AUTOENCODER_LATENT, match, replace(config, layer_indices=(0,)))


def test_what_is_not_written_to_the_residual_stream_has_latents_but_no_write() -> None:
    config = DstConfig(autoencoder_context="tiny/mlp_pre_act")
    assert len(Explained(kinds=(T.MLP_PRE_ACT,)).one(T.AUTOENCODER_LATENT, config)) == N_LAYERS
    match = "mlp_pre_act, is not written to the residual stream"
    refused(T.MLP_PRE_ACT, T.AUTOENCODER_WRITE_NORM, match, config)


def test_the_heads_values_are_only_read_offline() -> None:
    kind = T.ATTN_WEIGHTED_SUM_OF_VALUES
    refused(kind, T.ONLINE_AUTOENCODER_LATENT, "is only read offline", autoencoders=(f"tiny/{kind}",))


def test_rows_of_the_encoder_are_not_what_normalised_latents_read() -> None:
    x = Explained(kinds=(T.RESID_DELTA_ATTN,), normalization=InputNormalization.LAYER_NORM)
    config = DstConfig(autoencoder_context="tiny/resid_delta_attn", layer_indices=(1,))
    with pytest.raises(InvalidRequest, match="of raw inputs; tiny/resid_delta_attn"):
        x.one(T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED, config)
