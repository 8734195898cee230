"""Autoencoders of the residual stream, of the heads' values, of the embedding; those that normalise; transcoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from dst_grpc.domain.architecture import NormKind
from dst_grpc.domain.autoencoders import InputNormalization, ModelNorm
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest, PreconditionFailed
from tests import models, plain, traces

N_LAYERS = models.CONFIG.n_layers
RESIDUALS = (T.RESID_POST_ATTN, T.RESID_POST_MLP)
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}
NORMALIZED = [(kind, norm) for kind in (*RESIDUALS, T.RESID_DELTA_MLP) for norm in InputNormalization]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def reference(world: models.World, *, is_spliced: bool = False) -> plain.Plain:
    sets = {one.dst: one.by_layer for one in world.sets.values()}
    config = world.decoder.config
    return plain.Plain(config, models.weights(2, config), sets, is_spliced=is_spliced)


def offline(world: models.World, dst: T, **fields: Any) -> dict[int | None, torch.Tensor]:
    return world.one(dst, DstConfig(autoencoder_context=next(iter(world.sets)), **fields))


# Offline


@pytest.mark.parametrize("normalization", InputNormalization)
@pytest.mark.parametrize("kind", RESIDUALS)
def test_offline_latents_of_the_residual_stream(kind: T, normalization: InputNormalization) -> None:
    world = models.world(kind, seed=2, normalization=normalization)
    taps = reference(world).run(models.TOKENS)
    latents, norms = offline(world, T.AUTOENCODER_LATENT), offline(world, T.AUTOENCODER_WRITE_NORM)
    for layer in range(N_LAYERS):
        one, x = world.sets[f"tiny/{kind}"].by_layer[layer], taps[L[kind.name], layer]
        h, (_, scale) = plain.encode(one, x), plain.mean_and_scale(one, x)
        close(latents[layer], h)
        close(norms[layer], h * scale * one.decoder.norm(dim=0))


@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_offline_latents_of_the_heads_values_write_through_wo(architecture: str) -> None:
    kind, config = T.ATTN_WEIGHTED_SUM_OF_VALUES, models.GPT2_AND_OTHERS[architecture]
    world = models.world(kind, seed=2, config=config)
    model = reference(world)
    taps = model.run(models.TOKENS)
    latents, norms = offline(world, T.AUTOENCODER_LATENT), offline(world, T.AUTOENCODER_WRITE_NORM)
    for layer in range(N_LAYERS):
        one, mixed = world.sets[f"tiny/{kind}"].by_layer[layer], taps[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer]
        side_by_side = torch.cat([mixed[:, head] for head in range(config.n_heads)], dim=1)
        h = plain.encode(one, side_by_side)
        by_head = one.decoder.T.reshape(one.n_latents, config.n_heads, config.d_head)
        rows = torch.einsum("zhc,hcd->zd", by_head, model.wo(layer)).expand(len(h), -1, -1)
        close(latents[layer], h)
        close(norms[layer], h * model.written(layer, "attn", rows, taps).norm(dim=-1))


def test_an_autoencoder_of_the_embedding_has_no_layers() -> None:
    kind = T.RESID_POST_EMBEDDING
    world = models.world(kind, seed=2, layers=(None,))
    taps = reference(world).run(models.TOKENS)
    one = world.sets[f"tiny/{kind}"].by_layer[None]
    h = plain.encode(one, taps[L.RESID_POST_EMBEDDING, None])
    (found,) = offline(world, T.AUTOENCODER_LATENT).items()
    assert found[0] is None
    close(found[1], h)
    close(offline(world, T.AUTOENCODER_WRITE_NORM)[None], h * one.decoder.norm(dim=0))
    with pytest.raises(InvalidRequest, match="must be empty: tiny/resid_post_embedding reads resid_post_embedding"):
        offline(world, T.AUTOENCODER_LATENT, layer_indices=(0,))


def test_what_is_not_written_to_the_residual_stream_has_latents_but_no_write() -> None:
    world = models.world(T.MLP_PRE_ACT, seed=2)
    taps = reference(world).run(models.TOKENS)
    for layer, found in offline(world, T.AUTOENCODER_LATENT).items():
        close(found, plain.encode(world.sets["tiny/mlp_pre_act"].by_layer[layer], taps[L.MLP_PRE_ACT, layer]))
    with pytest.raises(InvalidRequest, match="mlp_pre_act, is not written to the residual stream"):
        offline(world, T.AUTOENCODER_WRITE_NORM)


@pytest.mark.parametrize("architecture", ["gpt2", "parallel", "llama", "gemma"])
@pytest.mark.parametrize("norm", [ModelNorm.MLP_NORM, ModelNorm.MLP_NORM_WITHOUT_GAIN])
def test_transcoders_read_what_the_mlp_reads(norm: ModelNorm, architecture: str) -> None:
    config_of_model = models.GPT2_AND_OTHERS[architecture]
    world = transcoders(norm, config_of_model)
    model = reference(world)
    taps = model.run(models.TOKENS)
    latents, norms = offline(world, T.AUTOENCODER_LATENT), offline(world, T.AUTOENCODER_WRITE_NORM)
    config = DstConfig(autoencoder_context="tiny/transcoders", trace_config=traces.trace(traces.LATENT, 1, None, 6))
    reads = world.one(T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT, config)
    for layer in range(N_LAYERS):
        x = taps[L.RESID_POST_ATTN, layer] if not config_of_model.parallel else taps[entering(layer)]
        one = world.sets["tiny/transcoders"].by_layer[layer]

        def read(x: torch.Tensor, layer: int = layer) -> torch.Tensor:
            if norm is ModelNorm.MLP_NORM:
                return model.norm(x, model.scale(x), f"layers.{layer}.mlp_norm")
            is_centred = config_of_model.norm is NormKind.LAYER_NORM
            return (x - x.mean(-1, keepdim=True) * is_centred) / model.scale(x)

        h = plain.encode(one, read(x))
        close(latents[layer], h)
        close(norms[layer], h * one.decoder.norm(dim=0))
        close(reads[layer], plain.local_gradient(partial(sixth, one, read), x))


def sixth(one: Autoencoder, read: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The sixth latent of inputs *x*, over all tokens."""
    return plain.encode(one, read(x))[:, 6].sum()


def entering(layer: int) -> Site:
    """The residual that enters a layer."""
    return (L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)


def transcoders(norm: ModelNorm, config: DecoderConfig) -> models.World:
    """A world whose autoencoders of RESID_POST_ATTN are transcoders of the MLP."""
    world = models.world(T.RESID_POST_ATTN, seed=2, config=config)
    (context,) = world.sets.values()
    by_layer = {layer: replace(one, input_norm=norm) for layer, one in context.by_layer.items()}
    return replace(world, sets={"tiny/transcoders": replace(context, name="tiny/transcoders", by_layer=by_layer)})


# Spliced


@pytest.mark.parametrize(("kind", "normalization"), NORMALIZED)
def test_spliced_latents_write_at_their_token_s_scale(kind: T, normalization: InputNormalization) -> None:
    world = models.world(kind, seed=2, normalization=normalization)
    model = reference(world, is_spliced=True)
    taps = model.run(models.TOKENS)
    fields: dict[str, Any] = {"autoencoders": tuple(world.sets)}
    gradients = plain.gradients(model, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))
    final = gradients[L.RESID_POST_MLP, N_LAYERS - 1]
    found = {
        name: world.one(T[f"ONLINE_AUTOENCODER_{name}"], **fields, **LOSS)
        for name in ("LATENT", "WRITE", "WRITE_NORM", "ACT_TIMES_GRAD", "WRITE_TO_FINAL_RESIDUAL_GRAD")
    }
    for layer in range(N_LAYERS):
        one = world.sets[f"tiny/{kind}"].by_layer[layer]
        h = taps[plain.LATENT[kind], layer]
        _, scale = plain.mean_and_scale(one, taps[L[kind.name], layer])
        writes = torch.einsum("tz,dz->tzd", h * scale, one.decoder)
        close(found["LATENT"][layer], h)
        close(found["WRITE"][layer], writes)
        close(found["WRITE_NORM"][layer], h * scale * one.decoder.norm(dim=0))
        close(found["ACT_TIMES_GRAD"][layer], h * gradients[plain.LATENT[kind], layer])
        close(found["WRITE_TO_FINAL_RESIDUAL_GRAD"][layer], torch.einsum("tzd,td->tz", writes, final))


def test_latents_and_error_of_the_residual_make_up_the_residual() -> None:
    """At the last layer, direct effects of all latents, the bias and the error sum to that of the residual itself."""
    world = models.world(T.RESID_POST_MLP, seed=2)
    fields: dict[str, Any] = {"autoencoders": tuple(world.sets)}
    effects = world.one(T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD, **fields, **LOSS)[N_LAYERS - 1]
    model = reference(world, is_spliced=True)
    taps = model.run(models.TOKENS)
    final = plain.gradients(model, models.TOKENS, lambda t: traces.loss(t[L.LOGITS, None][-1]))
    gradient, x = final[L.RESID_POST_MLP, N_LAYERS - 1], taps[L.RESID_POST_MLP, N_LAYERS - 1]
    one = world.sets["tiny/resid_post_mlp"].by_layer[N_LAYERS - 1]
    rest = x - plain.encode(one, x) @ one.decoder.T
    close(effects.sum(dim=1) + (rest * gradient).sum(dim=1), (x * gradient).sum(dim=1))


@pytest.mark.parametrize("kind", RESIDUALS)
def test_a_splice_into_the_residual_stream_changes_nothing_by_itself(kind: T) -> None:
    world = models.world(kind, seed=2)
    without, spliced = (world.one(T.LOGITS, autoencoders=sets)[None] for sets in ((), tuple(world.sets)))
    close(spliced, without)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_ablating_a_latent_of_the_residual_reaches_what_follows(kind: T) -> None:
    world = models.world(kind, seed=2)
    model = reference(world, is_spliced=True)
    taps = model.run(models.TOKENS)
    token, latent = (taps[L.ONLINE_AUTOENCODER_LATENT, 1] > 0).nonzero()[3].tolist()
    index = ActivationIndex(
        activation_location_type=L.ONLINE_AUTOENCODER_LATENT, layer_index=1, tensor_indices=(token, latent)
    )
    found = world.one(T.LOGITS, autoencoders=tuple(world.sets), ablation_specs=(AblationSpec(index=index, value=0.0),))[
        None
    ]

    def edit(site: Any, x: torch.Tensor) -> torch.Tensor:
        if site == (L.ONLINE_AUTOENCODER_LATENT, 1):
            x = x.clone()
            x[token, latent] = 0.0
        return x

    expected = model.run(models.TOKENS, edit)[L.LOGITS, None]
    close(found, expected)
    assert not torch.allclose(expected, taps[L.LOGITS, None])


def test_a_trace_reaches_latents_of_the_residual_before_it() -> None:
    for kind in RESIDUALS:
        world = models.world(kind, seed=2)
        model = reference(world, is_spliced=True)
        taps = model.run(models.TOKENS)
        trace = traces.trace(traces.NEURON, 1, 4, 7)
        near = plain.local_gradient(lambda rho: model.value(trace, rho, taps, None), taps[L.RESID_POST_ATTN, 1])  # noqa: B023
        dst = T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD
        found = world.one(dst, DstConfig(trace_config=trace), autoencoders=tuple(world.sets))
        for layer in range(N_LAYERS):
            one = world.sets[f"tiny/{kind}"].by_layer[layer]
            precedes = layer < 1 or (layer == 1 and kind is T.RESID_POST_ATTN)
            h = taps[L.ONLINE_AUTOENCODER_LATENT, layer]
            close(found[layer], h * (near @ one.decoder) * precedes)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_what_a_latent_of_the_residual_reads(kind: T) -> None:
    world = models.world(kind, seed=2, normalization=InputNormalization.LAYER_NORM)
    taps = reference(world).run(models.TOKENS)
    config = DstConfig(autoencoder_context=f"tiny/{kind}", trace_config=traces.trace(traces.LATENT, 1, None, 6))
    for layer, found in world.one(T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT, config).items():
        one, x = world.sets[f"tiny/{kind}"].by_layer[layer], taps[L[kind.name], layer]
        close(found, plain.local_gradient(lambda leaf, one=one: plain.encode(one, leaf)[:, 6].sum(), x))  # type: ignore[misc]


def test_one_node_writes_at_its_token_s_scale() -> None:
    world = models.world(T.RESID_DELTA_MLP, seed=2, normalization=InputNormalization.LAYER_NORM)
    model = reference(world, is_spliced=True)
    taps = model.run(models.TOKENS)
    token, latent = (taps[L.ONLINE_MLP_AUTOENCODER_LATENT, 1] > 0).nonzero()[2].tolist()
    node = traces.trace(traces.LATENT, 1, token, latent).node_index
    found = world.one(T.SINGLE_NODE_WRITE, DstConfig(node_index_for_attribution=node), autoencoders=tuple(world.sets))[
        1
    ]
    one = world.sets["tiny/resid_delta_mlp"].by_layer[1]
    _, scale = plain.mean_and_scale(one, taps[L.RESID_DELTA_MLP, 1])
    expected = torch.zeros_like(found)
    expected[token] = taps[L.ONLINE_MLP_AUTOENCODER_LATENT, 1][token, latent] * scale[token] * one.decoder[:, latent]
    close(found, expected)


@pytest.mark.parametrize("normalization", InputNormalization)
@pytest.mark.parametrize("architecture", ["post norm", "post layer norm", "gemma"])
def test_latents_of_neurons_write_at_their_token_s_scale_through_the_norm_on_the_write(
    architecture: str, normalization: InputNormalization
) -> None:
    config = models.GPT2_AND_OTHERS[architecture]
    world = models.world(T.MLP_POST_ACT, seed=2, config=config, normalization=normalization)
    model = reference(world, is_spliced=True)
    fields: dict[str, Any] = {"autoencoders": tuple(world.sets)}
    taps = model.run(models.TOKENS)
    one, h = world.sets["tiny/mlp_post_act"].by_layer[1], taps[L.ONLINE_MLP_AUTOENCODER_LATENT, 1]
    _, scale = plain.mean_and_scale(one, taps[L.MLP_POST_ACT, 1])
    rows = torch.einsum("tz,nz,nd->tzd", h * scale, one.decoder, model.wout(1))
    writes = model.written(1, "mlp", rows, taps)
    close(world.one(T.ONLINE_AUTOENCODER_WRITE, **fields)[1], writes)
    close(world.one(T.ONLINE_AUTOENCODER_WRITE_NORM, **fields)[1], writes.norm(dim=-1))
    close(offline(world, T.AUTOENCODER_WRITE_NORM)[1], writes.norm(dim=-1))
    token, latent = (h > 0).nonzero()[2].tolist()
    node = DstConfig(node_index_for_attribution=traces.trace(traces.LATENT, 1, token, latent).node_index)
    expected = torch.zeros_like(writes[:, 0])
    expected[token] = writes[token, latent]
    close(world.one(T.SINGLE_NODE_WRITE, node, **fields)[1], expected)


# What they cannot do is refused


@pytest.mark.parametrize("kind", RESIDUALS)
def test_latents_of_the_residual_are_no_ends_of_traces_and_edges(kind: T) -> None:
    world = models.world(kind, seed=2)
    fields: dict[str, Any] = {"autoencoders": tuple(world.sets)}
    reads = "reads mlp_post_act or resid_delta_mlp or resid_delta_attn"
    with pytest.raises(PreconditionFailed, match=reads):
        world.one(T.MLP_ACT_TIMES_GRAD, trace_config=traces.trace(traces.LATENT, 1, 2, 3), **fields)
    node = traces.trace(traces.LATENT, 1, 2, 3).node_index
    with pytest.raises(PreconditionFailed, match=reads):
        world.one(T.SINGLE_NODE_WRITE, DstConfig(node_index_for_attribution=node), **fields)
    neuron = traces.trace(traces.NEURON, 1, 2, 3).node_index
    with pytest.raises(PreconditionFailed, match=f"not {kind}"):
        world.one(T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION, DstConfig(node_index_for_attribution=neuron), **fields)


def test_rows_of_the_encoder_are_not_what_normalised_latents_read() -> None:
    world = models.world(T.RESID_DELTA_ATTN, seed=2, normalization=InputNormalization.LAYER_NORM)
    with pytest.raises(
        InvalidRequest, match="of raw inputs; tiny/resid_delta_attn is ReLU, with the normalization layer"
    ):
        world.one(
            T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED,
            DstConfig(autoencoder_context="tiny/resid_delta_attn", layer_indices=(1,)),
        )


def test_the_heads_values_are_only_read_offline() -> None:
    world = models.world(T.ATTN_WEIGHTED_SUM_OF_VALUES, seed=2)
    with pytest.raises(InvalidRequest, match="can only be read offline"):
        world.one(T.ONLINE_AUTOENCODER_LATENT, autoencoders=tuple(world.sets))
