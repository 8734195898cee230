"""Autoencoders of other inputs: transcoders, the residual stream, the embedding; and what they cannot do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dst_grpc.domain.architecture import NormKind
from dst_grpc.domain.autoencoders import InputNormalization, ModelNorm
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, PreconditionFailed
from tests import models, plain, traces
from tests.explained import N_LAYERS, Explained, entering

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.taps import Site

RESIDUALS = (T.RESID_POST_ATTN, T.RESID_POST_MLP)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "gemma"])
@pytest.mark.parametrize("norm", [ModelNorm.MLP_NORM, ModelNorm.MLP_NORM_WITHOUT_GAIN])
def test_transcoders_read_what_the_mlp_reads(norm: ModelNorm, architecture: str) -> None:
    x, name = Explained(architecture), "tiny/transcoders"
    context = models.autoencoders(T.RESID_POST_ATTN, config=x.config, name=name)
    by_layer = {layer: replace(one, input_norm=norm) for layer, one in context.by_layer.items()}
    world = replace(x.world, sets={name: replace(context, by_layer=by_layer)})

    def read(residual: torch.Tensor, layer: int) -> torch.Tensor:
        if norm is ModelNorm.MLP_NORM:
            return x.plain.norm(residual, x.plain.scale(residual), f"layers.{layer}.mlp_norm")
        is_centred = x.config.norm is NormKind.LAYER_NORM
        return (residual - residual.mean(-1, keepdim=True) * is_centred) / x.plain.scale(residual)

    offline = DstConfig(autoencoder_context=name)
    latents, norms = (world.one(dst, offline) for dst in (T.AUTOENCODER_LATENT, T.AUTOENCODER_WRITE_NORM))
    traced = replace(offline, trace_config=traces.trace(traces.LATENT, 1, None, 6))
    reads = world.one(T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT, traced)
    for layer, one in by_layer.items():
        assert layer is not None
        residual = x.value[entering(layer) if x.config.parallel else (L.RESID_POST_ATTN, layer)]
        h = plain.encode(one, read(residual, layer))
        close(latents[layer], h)
        close(norms[layer], h * one.decoder.norm(dim=0))
        close(reads[layer], plain.local_gradient(partial(sixth, one, partial(read, layer=layer)), residual))


def sixth(one: Autoencoder, read: Callable[[torch.Tensor], torch.Tensor], residual: torch.Tensor) -> torch.Tensor:
    """Latent 6, over all tokens."""
    return plain.encode(one, read(residual))[:, 6].sum()


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


# What they cannot do is refused


def refused(kind: T, dst: T, match: str, config: DstConfig | None = None, **fields: Any) -> None:
    x = Explained(kinds=(kind,))
    with pytest.raises((InvalidRequest, PreconditionFailed), match=match):
        x.one(dst, config, **fields)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_latents_of_the_residual_are_no_ends_of_traces_and_edges(kind: T) -> None:
    reads = "reads mlp_post_act or resid_delta_mlp or resid_delta_attn"
    refused(kind, T.MLP_ACT_TIMES_GRAD, reads, trace_config=traces.trace(traces.LATENT, 1, 2, 3))
    latent, neuron = traces.node(traces.LATENT, 1, 2, 3), traces.node(traces.NEURON, 1, 2, 3)
    refused(kind, T.SINGLE_NODE_WRITE, reads, DstConfig(node_index_for_attribution=latent))
    edge = DstConfig(node_index_for_attribution=neuron)
    refused(kind, T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION, f"not {kind}", edge)


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
    refused(kind, T.ONLINE_AUTOENCODER_LATENT, "can only be read offline", autoencoders=(f"tiny/{kind}",))


def test_rows_of_the_encoder_are_not_what_normalised_latents_read() -> None:
    x = Explained(kinds=(T.RESID_DELTA_ATTN,), normalization=InputNormalization.LAYER_NORM)
    config = DstConfig(autoencoder_context="tiny/resid_delta_attn", layer_indices=(1,))
    with pytest.raises(InvalidRequest, match="of raw inputs; tiny/resid_delta_attn"):
        x.one(T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED, config)
