"""What an architecture rules out is refused with its reason, and what it changes in a plan is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.domain.architecture import Architecture, unsupported_types
from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.tensor_answer import TensorAnswer
from tests import models, traces

WORLDS = {name: models.world(seed=1, config=config) for name, config in models.ARCHITECTURES.items()}
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}


def plan(architecture: str, *types: T, **fields: Any) -> Plan:
    return make_plan(models.request(*types, **fields), WORLDS[architecture].registry)


def refusal(architecture: str, *types: T, **fields: Any) -> tuple[Reason, dict[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        plan(architecture, *types, **fields)
    return caught.value.reason, {violation.field: violation.description for violation in caught.value.violations}


def ablation(location: L, value: float, pass_type: PassType = PassType.FORWARD) -> AblationSpec:
    whole = (None,) * len(location.dimensions)
    index = ActivationIndex(activation_location_type=location, layer_index=1, tensor_indices=whole, pass_type=pass_type)
    return AblationSpec(index=index, value=value)


# What there is not


def test_everything_has_a_meaning_in_gpt2() -> None:
    assert unsupported_types(Architecture()) == ()


@pytest.mark.parametrize(
    ("architecture", "location", "why"),
    [
        ("neox", L.RESID_POST_ATTN, "attention and MLP of its layers read the same residual"),
        ("gpt2", L.ATTN_OUTPUT_LAYER_NORM_SCALE, "its layers add what they write without norming it"),
        ("llama", L.MLP_OUTPUT_LAYER_NORM_SCALE, "its layers add what they write without norming it"),
    ],
)
def test_a_tap_that_is_not_there_cannot_be_ablated(architecture: str, location: L, why: str) -> None:
    reason, found = refusal(architecture, T.RESID_POST_MLP, ablation_specs=(ablation(location, 0.0),))
    assert reason is Reason.UNSUPPORTED_BY_MODEL
    (description,) = found.values()
    assert list(found) == ["ablation_specs[0].index.activation_location_type"]
    assert why in description


def test_a_pair_outside_the_window_is_refused_wherever_it_is_named() -> None:
    """Of "layer norms", the queries of layer 0 see two tokens and those of layer 1 all."""
    hidden = traces.trace(traces.HEAD, 0, 4, 2, 3, through=traces.QK)
    expected = "must lie within 2 tokens of the query token 4: layer 0 sees no further"
    reason, found = refusal("layer norms", T.RESID_POST_EMBEDDING, trace_config=hidden)
    assert (reason, found) == (Reason.INVALID_FIELD, {"trace_config.node_index.tensor_indices[1]": expected})
    downstream = traces.trace(traces.HEAD, 0, 1, 1, 3, through=traces.V, downstream=hidden)
    _, found = refusal("layer norms", T.RESID_POST_EMBEDDING, trace_config=downstream)
    assert found == {"trace_config.downstream_trace_config.node_index.tensor_indices[1]": expected}
    config = DstConfig(node_index_for_attribution=hidden.node_index)
    _, found = refusal("layer norms", T.SINGLE_NODE_WRITE, config=config)
    assert found == {"config.node_index_for_attribution.tensor_indices[1]": expected}
    for layer, u in ((0, 3), (1, 0)):
        seen = traces.trace(traces.HEAD, layer, 4, u, 3, through=traces.QK)
        assert plan("layer norms", T.RESID_POST_EMBEDDING, trace_config=seen).scalars


# Parallel layers


@pytest.mark.parametrize(("architecture", "last"), [("gpt2", 2), ("neox", 1)])
def test_a_traced_neuron_needs_the_attention_of_its_own_layer_only_if_it_reads_it(architecture: str, last: int) -> None:
    origin = traces.trace(traces.NEURON, 2, 4, 7)
    found = plan(architecture, T.RESID_POST_EMBEDDING, trace_config=origin)
    assert found.stop_after_layer == last
    (result,) = WORLDS[architecture].results(models.request(T.RESID_POST_EMBEDDING, trace_config=origin))
    assert result.activation_value is not None


@pytest.mark.parametrize(("architecture", "kept"), [("gpt2", 1), ("neox", 0)])
def test_a_backward_ablation_beside_the_traced_node_does_nothing(architecture: str, kept: int) -> None:
    """It is left out of the plan, so that in a batch it meets no other prompt's gradient."""
    spec = ablation(L.ATTN_VALUE, 0.0, PassType.BACKWARD)
    found = plan(
        architecture, T.RESID_POST_EMBEDDING, trace_config=traces.trace(traces.NEURON, 1, 4, 7), ablation_specs=(spec,)
    )
    assert sum(len(one.interventions) for one in found.run.passes) == kept


def test_heads_write_nothing_to_the_neurons_beside_them() -> None:
    node = traces.node(traces.HEAD, 1, 5, 2, 3)
    config = DstConfig(node_index_for_attribution=node)
    for architecture, is_read in (("gpt2", True), ("neox", False)):
        found = WORLDS[architecture].one(T.MLP_IN_EDGE_ATTRIBUTION, config, **LOSS)
        assert [bool(found[layer].any()) for layer in range(3)] == [False, is_read, True]


# Post-norms


@pytest.mark.parametrize("architecture", ["layer norms", "gemma"])
@pytest.mark.parametrize(
    ("location", "summed", "whole"),
    [
        (L.ATTN_OUTPUT_LAYER_NORM_SCALE, T.ATTN_WRITE_SUM_HEADS, T.RESID_DELTA_ATTN),
        (L.MLP_OUTPUT_LAYER_NORM_SCALE, T.RESID_DELTA_MLP_FROM_MLP_POST_ACT, T.RESID_DELTA_MLP),
    ],
)
def test_writes_go_through_the_scale_as_ablated(architecture: str, location: L, summed: T, whole: T) -> None:
    """At a hundredth of the scale everything written, biases too, is a hundred times as large."""
    config = DstConfig(layer_indices=(1,))
    found = []
    for value in (0.01, 1.0):
        request = models.request(summed, whole, config=config, ablation_specs=(ablation(location, value),))
        found.append(WORLDS[architecture].derive(request))
    for dst in (summed, whole):
        small, large = (tensors[dst, PassType.FORWARD, 1] for tensors in found)
        norm = "attn" if location is L.ATTN_OUTPUT_LAYER_NORM_SCALE else "mlp"
        bias = getattr(WORLDS[architecture].decoder.layers[1], f"{norm}_post_norm").bias
        offset = bias if dst is whole and bias is not None else 0.0
        torch.testing.assert_close(small - offset, 100 * (large - offset))


# What is said of it


@pytest.mark.parametrize(("architecture", "attention"), [("gpt2", "sdpa"), ("layer norms", "sdpa"), ("gemma", "eager")])
def test_provenance_tells_that_capped_scores_are_written_out(architecture: str, attention: str) -> None:
    world = WORLDS[architecture]
    (result,) = world.results(models.request(T.MLP_POST_ACT))
    assert TensorAnswer(result, world.context, {}).summary().provenance.attention == attention
