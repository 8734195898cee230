"""Running plans: what a batch gives each prompt is what it gets alone, and one pass each way serves everything."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec, AddVector, Intervention, ScaleValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest
from dst_grpc.domain.scalar_facts import Backward, Direction
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.selections import TapSelection
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import RunResult
from tests import interventions, models, traces

WORLDS = {
    name: models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, T.RESID_POST_MLP, seed=6, config=config)
    for name, config in models.ARCHITECTURES.items()
}
WORLD = WORLDS["gpt2"]
SETS = tuple(WORLD.sets)
GRADIENTS = DstConfig(derive_gradients=True)
ABSENT = {L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR}
"""Taps that need other autoencoders than WORLD's three."""


def ablation(chance: random.Random, world: models.World, n_tokens: int) -> AblationSpec:
    """Any tap, some axes whole, forward or backward."""
    architecture = world.decoder.config.architecture
    there = [location for location in L if location not in ABSENT]
    location = chance.choice([location for location in there if architecture.why_without(location) is None])
    sizes = {"sequence_tokens": n_tokens, "attended_to_sequence_tokens": n_tokens, "attn_heads": 5, "singleton": 1}
    indices = tuple(
        None if chance.random() < 0.5 else chance.randrange(min(sizes.get(axis.value, 2), 8))
        for axis in location.dimensions
    )
    index = ActivationIndex(
        activation_location_type=location,
        tensor_indices=indices,
        layer_index=None if location.has_no_layers else chance.choice([None, 0, 1, 2]),
        pass_type=chance.choice(list(PassType)),
    )
    return AblationSpec(index=index, value=chance.uniform(-1, 1))


def intervention(chance: random.Random, world: models.World, n_tokens: int) -> Intervention:
    """Any action on any entries of any tap without autoencoder."""
    location, layer = chance.choice(models.sites(world.decoder.config))
    shape = interventions.sizes(location, world.decoder.config, n_tokens)
    return interventions.anything(chance, location, layer, shape)


def anything(chance: random.Random, world: models.World) -> DeriveRequest:
    """A prompt of any length with any origin, ablations and types."""
    tokens = tuple(chance.randrange(19) for _ in range(chance.randrange(1, 13)))
    t = len(tokens) - 1
    origins = [
        traces.trace(traces.NEURON, chance.randrange(3), t, 7),
        traces.trace(traces.HEAD, chance.randrange(3), t, chance.randrange(t + 1), 3, through=traces.QK),
        traces.trace(traces.HEAD, 1, t, chance.randrange(t + 1), 2, through=traces.V),
        traces.trace(traces.MLP_LATENT, chance.randrange(3), t, 6, post=False),
        traces.trace(traces.LATENT, chance.randrange(3), t, 6, post=False),
        None,
    ]
    node = chance.choice([origin for origin in origins if traces.is_seen(world.decoder.config, origin)])
    tokens_of_loss = tuple(chance.randrange(19) for _ in range(2))
    loss = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=tokens_of_loss, distractor_token_ids=(3,))
    types = [
        *(facts.type for facts in FACTS.values() if facts.is_raw and facts.type not in world.unsupported),
        T.MLP_ACT_TIMES_GRAD,
        T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
        T.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
        T.ONLINE_ATTENTION_AUTOENCODER_LATENT,
        T.ONLINE_AUTOENCODER_ACT_TIMES_GRAD,
        T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD,
        T.ATTN_WRITE_NORM,
    ]
    specs = [
        DerivedScalarSpec(dst=dst, config=GRADIENTS if FACTS[dst].is_raw and chance.random() < 0.7 else None)
        for dst in chance.sample(types, 5)
    ]
    return models.request(
        tokens=tokens,
        derived_scalars=tuple(specs),
        trace_config=node,
        loss_fn_config=loss,
        autoencoders=SETS,
        ablation_specs=tuple(ablation(chance, world, len(tokens)) for _ in range(chance.randrange(3))),
        interventions=tuple(intervention(chance, world, len(tokens)) for _ in range(chance.randrange(3))),
        detach_final_layer_norm_scale=chance.choice([None, False, True]),
    )


BATCHES = [(name, seed) for name in models.ARCHITECTURES for seed in range(6)]


@pytest.mark.parametrize(("architecture", "seed"), BATCHES)
def test_a_padded_batch_of_anything_gives_each_what_it_gets_alone(architecture: str, seed: int) -> None:
    """Losses, traces, ablations, lengths and types differ; numbers are equal up to rounding of float64."""
    chance, world = random.Random(seed), WORLDS[architecture]
    requests = [anything(chance, world) for _ in range(4)]
    for request, together in zip(requests, world.results(*requests), strict=True):
        (alone,) = world.results(request)
        assert together.batch_size == 4
        for name in ("loss", "activation_value"):
            one, other = getattr(together, name), getattr(alone, name)
            assert one == (None if other is None else pytest.approx(other, rel=1e-9, abs=1e-9))
        expected = models.tensors(alone)
        found = models.tensors(together)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-7, atol=1e-8, equal_nan=True, msg=str(key))


def test_direct_effects_of_a_batch_are_read_from_weights_at_once() -> None:
    """Of losses and traces, of prompts of any length, on all that writes; a batch's tensors are not kept for it."""
    world = WORLD
    effects = [facts for facts in FACTS.values() if facts.direction is Direction.FINAL_RESIDUAL_GRAD]
    types = [one.type for one in effects if not one.needs_attribution_node]
    specs = tuple(DerivedScalarSpec(dst=dst) for dst in types)
    head = traces.trace(traces.HEAD, 2, 4, 1, 3, through=traces.QK)
    origins = [None, traces.trace(traces.NEURON, 1, 2, 7), head, None, None]
    requests = [
        models.request(
            tokens=(3, 1, 4, 1, 5, 9, 2, 6)[:n_tokens],
            derived_scalars=specs,
            autoencoders=tuple(world.sets),
            **traces.fields_of(origin, models.LOSS),
        )
        for n_tokens, origin in zip((8, 3, 5, 1, 6), origins, strict=True)
    ]
    for request, result in zip(requests, world.results(*requests), strict=True):
        (alone,) = world.results(request)
        (vectors,) = result.together.values()
        assert (vectors.stack is None) == (len(vectors.tokens) > 2)  # those of a softmax, which all tokens are in
        assert vectors.vectors.untyped_storage().nbytes() == vectors.vectors.nbytes
        found, expected = models.tensors(result), models.tensors(alone)
        assert len(found) >= len(specs)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12, msg=str(key))


def test_a_prompt_without_origin_may_be_in_a_batch_with_others() -> None:
    with_loss = models.request(T.MLP_ACT_TIMES_GRAD, loss_fn_config=models.LOSS)
    without = models.request(T.MLP_POST_ACT, tokens=(3, 1))
    first, second = WORLD.results(with_loss, without)
    assert (first.loss is None, second.loss is None) == (False, True)
    assert models.tensors(second)[T.MLP_POST_ACT, PassType.FORWARD, 0].shape == (2, 13)
    assert second.recording.taps.gradients == {}


def spec_of(dst: T) -> DerivedScalarSpec:
    facts = FACTS[dst]
    config = DstConfig(derive_gradients=facts.backward in {Backward.GRADIENT, Backward.RATIO})
    if facts.single_layer:
        config = replace(config, layer_indices=(1,))
    if facts.direction is Direction.LATENT_READ:
        config = replace(config, trace_config=traces.trace(traces.LATENT, 1, None, 3))
    if facts.needs_attribution_node:
        node = traces.subnode(traces.node(traces.HEAD, 1, 4, 2, 3), L.ATTN_QUERY)
        config = replace(config, node_index_for_attribution=node)
    if facts.needs_fake_grad_index:
        index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, layer_index=1, tensor_indices=(None, 2))
        config = replace(config, activation_index_for_fake_grad=index)
    return DerivedScalarSpec(dst=dst, config=config)


@pytest.mark.parametrize("origin", [None, traces.trace(traces.NEURON, 2, 4, 7)], ids=traces.name)
def test_one_pass_each_way_serves_every_type_that_can_go_together(origin: Any) -> None:
    world = models.world(T.RESID_DELTA_ATTN, T.RESID_POST_MLP, seed=6)
    refused = {
        facts.type
        for facts in FACTS.values()
        if (facts.needs_trace and origin is None and facts.direction is not Direction.LATENT_READ)
        or "MLP_AUTOENCODER" in facts.type.name
        or facts.type is T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT
    }
    specs = tuple(spec_of(dst) for dst in FACTS if dst not in refused)
    assert len(specs) > 80
    request = models.request(
        derived_scalars=specs, autoencoders=tuple(world.sets), **traces.fields_of(origin, models.LOSS)
    )
    (result,) = world.results(request)
    statistics = result.statistics
    assert (statistics.forward_passes, statistics.backward_passes) == (1, 1)
    assert (result.plan.cost.forward_passes, result.plan.cost.backward_passes) == (1, 1)
    assert {dst for dst, _, _ in models.tensors(result)} == {spec.dst for spec in specs}


@pytest.mark.parametrize(
    ("dst", "config", "fields", "backward"),
    [
        (T.MLP_POST_ACT, None, {}, 0),
        (T.MLP_POST_ACT, None, {"loss_fn_config": models.LOSS}, 0),
        (T.MLP_POST_ACT, GRADIENTS, {"loss_fn_config": models.LOSS}, 1),
        (T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, None, {"trace_config": traces.PLAIN_TRACES[0]}, 0),
        (T.MLP_ACT_TIMES_GRAD, None, {"trace_config": traces.PLAIN_TRACES[0]}, 1),
    ],
)
def test_a_backward_pass_runs_only_for_who_reads_gradients(
    dst: T, config: DstConfig | None, fields: dict[str, Any], backward: int
) -> None:
    (result,) = WORLD.results(models.request(derived_scalars=(DerivedScalarSpec(dst=dst, config=config),), **fields))
    assert result.statistics.backward_passes == result.plan.cost.backward_passes == backward


@pytest.mark.parametrize(
    ("fields", "stop"),
    [
        ({}, -1),
        ({"types": (T.RESID_POST_EMBEDDING,)}, -1),
        ({"types": (T.MLP_POST_ACT,), "config": DstConfig(layer_indices=(1,))}, 1),
        ({"types": (T.LOGITS,)}, None),
        ({"types": (T.RESID_FINAL_LAYER_NORM_SCALE,)}, None),
        ({"loss_fn_config": models.LOSS}, None),
        ({"trace_config": traces.trace(traces.NEURON, 1, 4, 7)}, 1),
        ({"trace_config": traces.trace(traces.HEAD, 1, 4, 2, 3, through=traces.QK)}, 0),
        ({"trace_config": traces.V_TRACES[0]}, 2),
    ],
)
def test_a_run_stops_after_the_last_layer_that_is_needed(fields: dict[str, Any], stop: int | None) -> None:
    types = fields.get("types", ())
    rest = {name: value for name, value in fields.items() if name != "types"}
    plan = make_plan(models.request(*types, **rest), WORLD.registry)
    assert plan.stop_after_layer == stop


def test_a_trace_beats_a_loss_which_is_still_reported() -> None:
    origin = traces.trace(traces.NEURON, 1, 4, 7)
    both = models.request(T.MLP_ACT_TIMES_GRAD, trace_config=origin, loss_fn_config=models.LOSS)
    trace = models.request(T.MLP_ACT_TIMES_GRAD, trace_config=origin)
    found, expected = WORLD.results(both)[0], WORLD.results(trace)[0]
    assert found.loss is not None
    assert found.activation_value == expected.activation_value
    for key, tensor in models.tensors(expected).items():
        assert torch.equal(models.tensors(found)[key], tensor)


def test_a_loss_that_is_not_a_number_differs_from_none() -> None:
    index = ActivationIndex(activation_location_type=L.RESID_POST_MLP, layer_index=2, tensor_indices=(None, 0))
    enormous = AblationSpec(index=index, value=3e38)
    decoder = models.decoder(dtype=torch.float32)
    (result,) = models.World(decoder).results(models.request(loss_fn_config=models.LOSS, ablation_specs=(enormous,)))
    assert result.loss is not None
    assert math.isnan(result.loss)


def test_the_traced_latent_is_that_of_the_shared_config_whatever_sets_a_type_names_itself() -> None:
    """Without autoencoders in the graph, a generic latent is looked up in the shared config's only set."""
    mlp, attention, _ = SETS
    origin = traces.trace(traces.LATENT, 2, 4, 6, post=False)
    specs = (
        DerivedScalarSpec(dst=T.ATTENTION_AUTOENCODER_LATENT, config=DstConfig(autoencoder_context=attention)),
        DerivedScalarSpec(dst=T.RESID_POST_MLP),
    )
    config = DstConfig(autoencoder_context=mlp)
    (found,) = WORLD.results(models.request(derived_scalars=specs, config=config, trace_config=origin))
    (expected,) = WORLD.results(models.request(config=config, trace_config=origin))
    assert found.activation_value == expected.activation_value


def result_of(**fields: Any) -> RunResult:
    (found,) = WORLD.results(models.request(**fields))
    return found


ONE_NEURON = ActivationIndex(activation_location_type=L.MLP_POST_ACT, layer_index=1, tensor_indices=(0, 3))
AT_NEURONS = TapSelection(activation_location_type=L.MLP_POST_ACT)


def digest(plan: Plan) -> str:
    return plan.digest("tiny@1", ["set@1"])


def test_the_digest_and_the_run_s_key_tell_runs_apart() -> None:
    plain = result_of().plan
    same = result_of(request_id="another").plan
    assert (digest(same), same.run_key) == (digest(plain), plain.run_key)
    changed: list[dict[str, Any]] = [
        {"tokens": (1, 2)},
        {"loss_fn_config": models.LOSS},
        {"trace_config": traces.PLAIN_TRACES[0]},
        {"autoencoders": SETS[:1]},
        {"ablation_specs": (AblationSpec(index=ONE_NEURON, value=0.5),)},
        {"interventions": (Intervention(at=AT_NEURONS, action=ScaleValue(factor=0.5)),)},
        {"interventions": (Intervention(at=AT_NEURONS, action=AddVector(vector=RequestTensor(tensor=np.ones(1)))),)},
        {"interventions": (Intervention(at=AT_NEURONS, action=AddVector(vector=RequestTensor(tensor=np.zeros(1)))),)},
    ]
    others = [plain, *(result_of(**fields).plan for fields in changed)]
    assert len({digest(one) for one in others}) == len(others)
    assert len({one.run_key for one in others}) == len(others)
    derived = make_plan(models.request(T.MLP_WRITE), WORLD.registry)
    assert (digest(derived) != digest(plain), derived.run_key == plain.run_key) == (True, True)


# Cost


def cost(*types: T, n_tokens: int = 6, **fields: Any) -> Any:
    return make_plan(models.request(*types, tokens=(1,) * n_tokens, **fields), WORLD.registry).cost


@pytest.mark.parametrize("field", ["floating_point_operations", "peak_bytes", "output_bytes"])
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"types": (T.MLP_POST_ACT,), "n_tokens": 3}, {"types": (T.MLP_POST_ACT,), "n_tokens": 4}),
        ({"types": (T.ATTN_WRITE,), "n_tokens": 3}, {"types": (T.ATTN_WRITE,), "n_tokens": 12}),
        ({"types": (T.MLP_POST_ACT,)}, {"types": (T.MLP_POST_ACT, T.ATTN_QK_PROBS)}),
        (
            {"types": (T.MLP_POST_ACT,), "config": DstConfig(layer_indices=(1,))},
            {"types": (T.MLP_POST_ACT,), "config": DstConfig(layer_indices=(0, 1))},
        ),
        (
            {"types": (T.MLP_POST_ACT,), "loss_fn_config": models.LOSS},
            {"types": (T.MLP_POST_ACT,), "loss_fn_config": models.LOSS, "config": GRADIENTS},
        ),
        (
            {"types": (T.ONLINE_MLP_AUTOENCODER_LATENT,), "autoencoders": SETS},
            {"types": (T.ONLINE_MLP_AUTOENCODER_WRITE,), "autoencoders": SETS},
        ),
    ],
)
def test_more_work_never_costs_less(field: str, less: dict[str, Any], more: dict[str, Any]) -> None:
    costs = [cost(*case["types"], **{k: v for k, v in case.items() if k != "types"}) for case in (less, more)]
    assert getattr(costs[0], field) < getattr(costs[1], field)


def heads_and_neurons(**fields: Any) -> Any:
    """Cost of a gradient in a model of some architecture."""
    config = replace(models.CONFIG, **fields)
    world = models.World(models.decoder(config=config))
    request = models.request(T.MLP_ACT_TIMES_GRAD, loss_fn_config=models.LOSS)
    return make_plan(request, world.registry).cost


def test_operations_are_two_for_each_weight_each_way_and_one_for_each_output() -> None:
    """Of blocks for every token, of the unembedding for the one token whose logits the loss reads."""
    d, c, f, v = 8, 2, 13, 19
    outputs, head = 3 * 6 * f, 2 * 2 * v * d

    def operations(attention: int, mlp: int) -> int:
        return 2 * 2 * 6 * 3 * (attention + mlp) + head + outputs

    plain = operations(4 * d * 5 * c, 2 * d * f)
    assert heads_and_neurons().floating_point_operations == plain
    assert heads_and_neurons(gated=True).floating_point_operations == operations(4 * d * 5 * c, 3 * d * f)
    grouped = heads_and_neurons(n_heads=6, n_key_value_heads=2, d_head=3)
    assert grouped.floating_point_operations == operations((2 * 6 + 2 * 2) * d * 3, 2 * d * f)


@pytest.mark.parametrize(
    "fields",
    [{"gated": True}, {"d_head": 3}, {"post_norms": True}, {"attn_softcap": 1.0}],
)
def test_a_graph_of_more_tensors_takes_more_memory(fields: dict[str, Any]) -> None:
    assert heads_and_neurons(**fields).peak_bytes > heads_and_neurons().peak_bytes


def test_output_bytes_are_those_of_the_tensors() -> None:
    (result,) = WORLD.results(models.request(T.ATTN_WRITE, T.MLP_POST_ACT, T.ATTN_WRITE_NORM, T.LOGITS))
    assert result.plan.cost.output_bytes == 4 * sum(one.numel() for one in models.tensors(result).values())
