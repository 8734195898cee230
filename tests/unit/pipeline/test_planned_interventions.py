"""What planning says of interventions: which entries and tensors there are, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dst_grpc.domain.components import PassType
from dst_grpc.domain.explain import ExplainRun, NodeAblation
from dst_grpc.domain.interventions import (
    FINAL_NORM_DETACHED,
    Action,
    AddVector,
    DetachGradient,
    Intervention,
    ScaleValue,
    SetValue,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.request_tensors import RequestTensor, TensorSource
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionList, PositionRange, TapSelection
from dst_grpc.errors import InvalidRequest, NotFound
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from tests import explaining, interventions, models, traces
from tests.unit.pipeline.planning import ATTN, LOSS, MLP, WORLD, ablate, plan, refusal

BACKWARD = PassType.BACKWARD
DETACH = DetachGradient()


def some(*shape: int) -> RequestTensor:
    return RequestTensor(tensor=np.ones(shape))


def at(location: L, layer: int | None, *axes: Any, action: Action | None = None, **more: Any) -> Intervention:
    selection = TapSelection(activation_location_type=location, layer_index=layer, axes=axes, **more)
    return Intervention(at=selection, action=action or ScaleValue(factor=2.0))


@pytest.mark.parametrize(
    ("intervention", "expected"),
    [
        (at(L.RESID_POST_MLP, 8), ["at.layer_index"]),
        (at(L.RESID_POST_MLP, 1, 6, 8), ["at.axes[0]", "at.axes[1]"]),
        (
            at(L.ATTN_QUERY, 1, PositionList(positions=(5, 6, 0, 9)), PositionRange(start=4, stop=6)),
            ["at.axes[0].list.positions[1]", "at.axes[0].list.positions[3]", "at.axes[1].range.stop"],
        ),
        (at(L.ATTN_OUTPUT_LAYER_NORM_SCALE, 1), ["at.activation_location_type"]),
        (at(L.ONLINE_AUTOENCODER_LATENT, 1, 0, 99), ["at.activation_location_type"]),
        (at(L.ONLINE_ATTENTION_AUTOENCODER_LATENT, 1, 0, 99), ["at.activation_location_type"]),
        (at(L.RESID_POST_MLP, 1, action=SetValue(tensor=some(7, 8))), ["set.tensor.tensor"]),
        (at(L.RESID_POST_MLP, 1, 0, action=AddVector(vector=some(6, 8))), ["add.vector.tensor"]),
        (at(L.RESID_POST_MLP, 1, 0, 0, action=AddVector(vector=some(1))), ["add.vector.tensor"]),
        (at(L.RESID_POST_MLP, 1, 9, action=AddVector(vector=some(3))), ["at.axes[0]"]),
    ],
)
def test_what_is_not_there_is_refused_at_its_field(intervention: Intervention, expected: list[str]) -> None:
    given = (at(L.LOGITS, None), intervention)
    assert list(refusal(interventions=given)) == [f"interventions[1].{field}" for field in expected]


def test_latents_are_those_of_the_autoencoder_in_the_graph() -> None:
    wide = (at(L.ONLINE_MLP_AUTOENCODER_LATENT, 1, 0, 14), at(L.ONLINE_MLP_AUTOENCODER_LATENT, 1, 0, 15))
    assert list(refusal(interventions=wide, autoencoders=(MLP,))) == ["interventions[1].at.axes[1]"]
    generic = plan(interventions=(at(L.ONLINE_AUTOENCODER_LATENT, 2, 0),), autoencoders=(ATTN,))
    (found,) = generic.run.interventions
    assert found.at.activation_location_type is L.ONLINE_ATTENTION_AUTOENCODER_LATENT


@pytest.mark.parametrize(
    "tensor", [some(), some(1), some(8), some(6, 8), some(1, 8), some(6, 1)], ids=lambda one: str(one.tensor.shape)
)
def test_a_tensor_that_stretches_is_taken(tensor: RequestTensor) -> None:
    assert plan(interventions=(at(L.RESID_POST_MLP, 1, action=SetValue(tensor=tensor)),)).run.interventions


def test_without_a_prompt_no_tensor_is_too_short() -> None:
    """What is selected is then a full window, which no real prompt has to be."""
    change = at(L.RESID_POST_MLP, 1, action=SetValue(tensor=some(6, 8)))
    planned = make_plan(replace(models.request(interventions=(change,)), prompt=None), WORLD.registry)
    assert planned.run.interventions == (change,)


def test_gradients_are_changed_at_the_layers_that_a_trace_sends_them_to() -> None:
    cut = at(L.RESID_DELTA_ATTN, None, pass_type=BACKWARD, action=DETACH)
    once = at(L.LOGITS, None, pass_type=BACKWARD, action=DETACH)
    traced = plan(trace_config=traces.trace(traces.NEURON, 1, 4, 7), interventions=(cut, once))
    expected = tuple(replace(cut, at=replace(cut.at, layer_index=layer)) for layer in range(2))
    assert [one.interventions for one in traced.run.passes] == [expected]
    assert [one.interventions for one in plan(interventions=(cut, once), **LOSS).run.passes] == [(cut, once)]


def test_ablations_come_first_and_the_final_norm_last() -> None:
    forward = at(L.RESID_POST_MLP, 1)
    cut = at(L.RESID_POST_ATTN, 0, 1, pass_type=BACKWARD, action=DETACH)
    found = plan(
        ablation_specs=(ablate(L.LOGITS, None, 0, 0),),
        interventions=(cut, forward),
        detach_final_layer_norm_scale=True,
        **LOSS,
    ).run
    assert [one.action for one in found.interventions] == [SetValue(scalar=0.0), forward.action]
    assert [one.interventions for one in found.passes] == [(cut, FINAL_NORM_DETACHED)]
    assert [one.interventions for one in plan(**LOSS).run.passes] == [()]


def test_gradients_that_a_trace_sends_nowhere_are_not_changed() -> None:
    cuts = tuple(at(L.RESID_POST_MLP, layer, pass_type=BACKWARD, action=DETACH) for layer in range(3))
    traced = plan(trace_config=traces.trace(traces.NEURON, 1, 4, 7), interventions=cuts)
    assert [one.interventions for one in traced.run.passes] == [cuts[:1]]
    assert not plan(interventions=cuts).run.passes


def test_an_explained_run_is_changed_in_the_same_way() -> None:
    change = at(L.RESID_POST_MLP, 1)
    node = NodeAblation(node_index=traces.node(traces.NEURON, 0, 3, 7))
    request = explaining.request(interventions=(change,), node_ablations=(node,))
    (found,) = explaining.plan(WORLD, request).plans
    assert [one.at.activation_location_type for one in found.run.interventions] == [L.MLP_POST_ACT, L.RESID_POST_MLP]
    bad = ExplainRun(prompt=Prompt(token_ids=(1,)), interventions=(at(L.RESID_POST_MLP, 1, 5),))
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, replace(request, runs=(*request.runs, bad)))
    assert [one.field for one in caught.value.violations] == ["runs[1].interventions[0].at.axes[0]"]


# Tensors that were put before


def filled(planned: Plan, source: TensorSource | None) -> Plan:
    (found,) = with_tensors([planned], source, ["request"])
    return found


PUT = RequestTensor(handle="v")
STEER = at(L.RESID_POST_MLP, None, action=AddVector(vector=PUT, factor=2.0))


def test_a_handle_stands_for_the_numbers_that_were_put() -> None:
    put = plan(interventions=(STEER,), autoencoders=(MLP,))
    inline = plan(interventions=(replace(STEER, action=AddVector(vector=some(8), factor=2.0)),), autoencoders=(MLP,))
    found, other = (
        filled(put, interventions.Shelf(v=tensor)) for tensor in (some(8), RequestTensor(tensor=np.zeros(8)))
    )
    assert found.run == inline.run
    assert (found.digest("m", ()), found.run_key) == (inline.digest("m", ()), inline.run_key)
    assert other.digest("m", ()) != found.digest("m", ())
    assert other.run_key != found.run_key


def test_a_plan_without_handles_stays_as_it_is() -> None:
    planned = plan(interventions=(at(L.LOGITS, None), at(L.LOGITS, None, action=AddVector(vector=some(1)))))
    assert filled(planned, interventions.Shelf()) is planned
    assert filled(planned, None) is planned


def test_tensors_that_do_not_stretch_are_all_refused_at_their_handles() -> None:
    changes = (STEER, at(L.RESID_POST_MLP, 1, 0, action=SetValue(tensor=PUT)), at(L.LOGITS, None, action=STEER.action))
    with pytest.raises(InvalidRequest) as caught:
        filled(plan(interventions=changes), interventions.Shelf(v=some(6, 8)))
    fields = [one.field for one in caught.value.violations]
    assert fields == ["request.interventions[1].set.tensor.handle", "request.interventions[2].add.vector.handle"]


def test_an_unknown_handle_is_not_found() -> None:
    with pytest.raises(NotFound, match="'v'"):
        filled(plan(interventions=(STEER,)), interventions.Shelf(w=some(1)))
    with pytest.raises(InvalidRequest, match="no tensors are kept here"):
        filled(plan(interventions=(STEER,)), None)


def test_a_generic_latent_s_tensor_is_checked_against_the_autoencoder_that_is_meant() -> None:
    change = at(L.ONLINE_AUTOENCODER_LATENT, 1, 0, action=SetValue(tensor=PUT))
    planned = plan(interventions=(change,), autoencoders=(MLP,))
    assert filled(planned, interventions.Shelf(v=some(15))).run.interventions
    with pytest.raises(InvalidRequest, match="15"):
        filled(planned, interventions.Shelf(v=some(16)))


def test_memory_is_taken_up_for_tensors() -> None:
    def peak(*changes: Intervention) -> int:
        return plan(T.LOGITS, interventions=changes).cost.peak_bytes

    plainly = peak()
    assert peak(at(L.RESID_POST_MLP, 1)) == plainly
    for vector in (some(8), PUT):
        assert peak(at(L.RESID_POST_MLP, 1, action=AddVector(vector=vector))) == plainly + 4 * 6 * 8
