"""Laws that tie derived scalars to one another, and the tests' own formulas to the model: parts add up to the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests import models, traces
from tests.explained import N_LAYERS, N_TOKENS, Explained, derivative
from tests.unit.scalars.formulas import DOWNSTREAM, UPSTREAM

if TYPE_CHECKING:
    from dst_grpc.engine.taps import Site

every_architecture = pytest.mark.parametrize("architecture", models.ARCHITECTURES)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@every_architecture
def test_writes_and_biases_add_up_to_what_a_layer_adds(architecture: str) -> None:
    x = Explained(architecture)
    heads, neurons = x.one(T.ATTN_WRITE), x.one(T.MLP_WRITE)
    for layer in range(N_LAYERS):
        attn, mlp = (x.plain.biases(layer, part, x.value) for part in ("attn", "mlp"))
        close(heads[layer].sum(dim=(1, 2)) + attn, x.value[L.RESID_DELTA_ATTN, layer])
        close(neurons[layer].sum(dim=1) + mlp, x.value[L.RESID_DELTA_MLP, layer])


@every_architecture
def test_direct_effects_and_biases_add_up_to_that_of_the_final_residual(architecture: str) -> None:
    x = Explained(architecture)
    final = x.before_origin.vector
    total = x.one(T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD)[None].sum()
    heads, neurons = (
        x.one(dst) for dst in (T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD)
    )
    for layer in range(N_LAYERS):
        biases = x.plain.biases(layer, "mlp", x.value) + x.plain.biases(layer, "attn", x.value)
        total += heads[layer].sum() + neurons[layer].sum() + (final * biases).sum()
    close(total, (x.value[L.RESID_POST_MLP, N_LAYERS - 1] * final).sum())


def test_latents_bias_and_error_add_up_to_the_residual_that_they_are_of() -> None:
    x, last = Explained(kinds=(T.RESID_POST_MLP,)), N_LAYERS - 1
    effects = x.one(T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD)[last]
    gradient, residual = x.gradient[L.RESID_POST_MLP, last], x.value[L.RESID_POST_MLP, last]
    rest = residual - x.latents(T.RESID_POST_MLP, last) @ x.autoencoder(T.RESID_POST_MLP, last).decoder.T
    close(effects.sum(dim=1) + (rest * gradient).sum(dim=1), (residual * gradient).sum(dim=1))


@every_architecture
def test_edges_from_everything_upstream_add_up(architecture: str) -> None:
    """The writes of the embedding, all heads and neurons and the biases are the residual, and edges are linear."""
    x, layer = Explained(architecture), 1
    end, rho = x.far_end(traces.NEURON, None, layer, detach=True, attribution=False)
    written = x.value[L.RESID_POST_EMBEDDING, None]
    for upstream in range(layer + 1):
        if upstream < layer or not x.config.parallel:
            written = written + x.pair_writes(upstream).sum(dim=(1, 2)) + x.plain.biases(upstream, "attn", x.value)
        if upstream < layer:
            written = written + x.neuron_writes(upstream).sum(dim=1) + x.plain.biases(upstream, "mlp", x.value)
    effect = derivative(end, rho.vector)
    close(effect(written), effect(rho.vector))


@every_architecture
def test_the_edge_out_of_a_node_is_the_edge_into_the_other(architecture: str) -> None:
    """One edge, seen from both of its ends."""
    x = Explained(architecture, (T.RESID_DELTA_MLP,))
    types_in = (
        T.ATTN_QUERY_IN_EDGE_ATTRIBUTION,
        T.ATTN_KEY_IN_EDGE_ATTRIBUTION,
        T.ATTN_VALUE_IN_EDGE_ATTRIBUTION,
        T.MLP_IN_EDGE_ATTRIBUTION,
        T.ONLINE_AUTOENCODER_IN_EDGE_ATTRIBUTION,
    )
    types_out = (T.ATTN_OUT_EDGE_ATTRIBUTION, T.MLP_OUT_EDGE_ATTRIBUTION, T.ONLINE_AUTOENCODER_OUT_EDGE_ATTRIBUTION)
    for below, dst_out in zip(UPSTREAM, types_out, strict=True):
        upstream = traces.node(below.node_type, 0, *below.tensor_indices)
        for downstream, dst_in in zip(DOWNSTREAM, types_in, strict=True):
            out = x.one(dst_out, DstConfig(node_index_for_attribution=downstream))[0][upstream.tensor_indices]
            into = x.one(dst_in, DstConfig(node_index_for_attribution=upstream))[1][downstream.tensor_indices]
            close(out, into)


def test_edges_out_take_one_backward_pass() -> None:
    x = Explained()
    config = DstConfig(node_index_for_attribution=DOWNSTREAM[0])
    types = (T.ATTN_OUT_EDGE_ATTRIBUTION, T.MLP_OUT_EDGE_ATTRIBUTION)
    (result,) = x.world.results(models.request(*types, config=config, **x.fields))
    assert (result.statistics.forward_passes, result.statistics.backward_passes) == (1, 1)


def test_where_no_gradient_reaches_edges_are_zero_in_full_shape() -> None:
    """Q12: a trace at layer 0 leaves the layers after it without gradients."""
    x = Explained(origin=traces.trace(traces.NEURON, 0, 4, 7))
    node = traces.node(traces.HEAD, 0, 4, 3, 3)
    for found in x.one(T.MLP_IN_EDGE_ATTRIBUTION, DstConfig(node_index_for_attribution=node)).values():
        assert torch.equal(found, torch.zeros(N_TOKENS, x.config.d_mlp, dtype=torch.float64))


def test_token_attributions_add_up_to_what_growing_all_embeddings_does() -> None:
    """To the derivative of the loss, taken as a difference."""
    x = Explained()

    def grown(by: float) -> float:
        def edit(site: Site, tap: torch.Tensor) -> torch.Tensor:
            return tap * (1 + by) if site[0] is L.RESID_POST_EMBEDDING else tap

        return float(traces.loss(x.plain.run(models.TOKENS, edit)[L.LOGITS, None][-1]))

    attribution = x.one(T.TOKEN_ATTRIBUTION)[None]
    assert float(attribution.sum()) == pytest.approx((grown(1e-5) - grown(-1e-5)) / 2e-5, rel=1e-6)


def test_write_norms_of_neurons_have_both_signs() -> None:
    """Q6: or the formula's sign would never have been looked at."""
    norms = Explained().one(T.MLP_WRITE_NORM)[0]
    assert (norms < 0).any()
    assert (norms > 0).any()


def test_layer_indices_keep_what_they_name_and_change_no_number() -> None:
    x = Explained()
    whole = x.one(T.PREVIOUS_LAYER_RESID_POST_MLP)
    some = x.one(T.PREVIOUS_LAYER_RESID_POST_MLP, DstConfig(layer_indices=(2, 1)))
    assert list(some) == [1, 2]
    assert all(torch.equal(some[layer], whole[layer]) for layer in some)
