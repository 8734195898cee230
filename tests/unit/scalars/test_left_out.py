"""What latents leave out: with it, and the biases, direct effects sum up to what is explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.components import ComponentTypeForAttention, ComponentTypeForMlp
from dst_grpc.domain.explain import TopKGroup, TopKRequest
from dst_grpc.domain.explanations import Completeness
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.stored_transcoder import StoredTranscoder
from tests import explaining, models, traces
from tests.plain import Kind, Transcoder

LATENTS = {
    "component_type_for_mlp": ComponentTypeForMlp.AUTOENCODER_LATENT,
    "component_type_for_attention": ComponentTypeForAttention.AUTOENCODER_LATENT,
}


def world(config: str, *sets: tuple[Kind, Sequence[int]]) -> models.World:
    """A model without biases, the final norm's apart, with autoencoders that have none where they decode."""
    built = models.ARCHITECTURES[config]
    weights = models.weights(config=built)
    for name, weight in weights.items():
        if name.endswith("bias") and name.startswith("layers"):
            weight.zero_()
    found = [models.autoencoders(dst, i, config=built, layers=layers) for i, (dst, layers) in enumerate(sets)]
    for one in found:
        for autoencoder in one.by_layer.values():
            autoencoder.pre_bias.zero_()
            if autoencoder.decoder_bias is not None:
                autoencoder.decoder_bias.zero_()
        for stored in one.coders.values():
            if isinstance(stored, StoredTranscoder):
                stored.decoder_bias.zero_()
    return models.World(Decoder(built, weights), {one.name: one for one in found})


def completeness(of: models.World, group_id: str = "direction_write", **fields: Any) -> Completeness:
    """What is said of how complete a group is."""
    (found,) = explaining.explain(of, explaining.request(autoencoders=tuple(of.sets), **fields)).runs
    assert found.node_table is not None
    told = found.node_table.group(group_id).completeness
    assert told is not None
    return told


def constant(of: models.World) -> float:
    """What the final norm's bias adds to the loss."""
    bias = of.decoder.final_norm.bias
    return 0.0 if bias is None else traces.loss(bias @ of.decoder.unembedding).item()


ALL, SOME = (0, 1, 2), (0, 2)
CASES = {
    "latents of both parts": ((T.RESID_DELTA_MLP, ALL), (T.RESID_DELTA_ATTN, ALL)),
    "latents of neurons": ((T.MLP_POST_ACT, ALL), (T.RESID_DELTA_ATTN, ALL)),
    "layers without them": ((T.MLP_POST_ACT, SOME), (T.RESID_DELTA_ATTN, (1,))),
}


@pytest.mark.parametrize("config", ["gpt2", "llama", "neox", "layer norms"])
@pytest.mark.parametrize("sets", CASES.values(), ids=CASES)
def test_nothing_is_left_that_belongs_to_no_node(config: str, sets: Sequence[tuple[T, Sequence[int]]]) -> None:
    of = world(config, *sets)
    told = completeness(of, **LATENTS)
    assert told.reconstruction_error is not None
    assert abs(told.reconstruction_error) > 1e-3
    assert told.uncovered_layers is not None
    assert (abs(told.uncovered_layers) > 1e-3) is (len(sets[0][1]) < len(ALL))
    assert told.unaccounted == pytest.approx(constant(of), abs=1e-7)


@pytest.mark.parametrize("config", ["gpt2", "neox", "layer norms"])
@pytest.mark.parametrize("kind", Transcoder)
def test_skip_connections_of_transcoders_are_told_apart(config: str, kind: Transcoder) -> None:
    of = world(config, (kind, ALL), (T.RESID_DELTA_ATTN, SOME))
    told = completeness(of, **LATENTS)
    if kind.input_norm is ModelNorm.MLP_NORM:
        assert told.skip_connections is not None
        assert abs(told.skip_connections) > 1e-3
    else:
        assert told.skip_connections is None
    assert told.unaccounted == pytest.approx(constant(of), abs=1e-7)


def test_latents_of_one_part_leave_out_its_own() -> None:
    of = world("gpt2", (T.RESID_DELTA_MLP, ALL))
    told = completeness(of, component_type_for_mlp=ComponentTypeForMlp.AUTOENCODER_LATENT)
    assert told.unaccounted == pytest.approx(constant(of), abs=1e-7)


def test_where_no_latents_stand_nothing_is_left_out() -> None:
    told = completeness(world("gpt2", *CASES["latents of both parts"]))
    assert (told.reconstruction_error, told.uncovered_layers) == (None, None)
    for group in ("act_times_grad", "write_norm"):
        told = completeness(world("gpt2", *CASES["latents of both parts"]), group, **LATENTS)
        assert (told.reconstruction_error, told.uncovered_layers) == (None, None)


def test_latents_of_the_residual_stand_for_no_part() -> None:
    of = world("gpt2", (T.RESID_POST_MLP, ALL))
    group = TopKGroup(group_id="g", dsts=(T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,))
    request = models.request(loss_fn_config=models.LOSS, autoencoders=tuple(of.sets))
    (found,) = explaining.explain(of, TopKRequest(runs=(request,), groups=(group,))).runs
    assert found.node_table is not None
    told = found.node_table.group("g").completeness
    assert told is not None
    assert (told.reconstruction_error, told.uncovered_layers) == (None, None)


@pytest.mark.parametrize("token", [None, -1])
def test_top_k_tells_it_too(token: int | None) -> None:
    of = world("gpt2", *CASES["layers without them"])
    types = (
        T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
        T.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        T.ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
    )
    request = models.request(
        loss_fn_config=models.LOSS, autoencoders=tuple(of.sets), detach_final_layer_norm_scale=True
    )
    asked = TopKRequest(runs=(request,), groups=(TopKGroup(group_id="g", dsts=types),), token_index=token)
    (found,) = explaining.explain(of, asked).runs
    assert found.node_table is not None
    told = found.node_table.group("g").completeness
    assert told is not None
    assert told.unaccounted == pytest.approx(constant(of), abs=1e-7)
