"""Entries of taps as they are typed: one position, all, a list or a range along each axis."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.cli._arguments import RequestOptions
from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._nodes import ablation_text
from dst_grpc.cli._parse import parse_ablation, parse_patch, parse_scale, parse_trace, parse_what_to_ablate
from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    Intervention,
    Prompt,
    SourceRun,
    TapSelection,
)
from dst_grpc.domain.interventions import AddVector, CopyFromRun, ScaleValue, SetValue
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import PositionList, PositionRange
from dst_grpc.errors import InvalidRequest

MLP = ActivationLocationType.MLP_POST_ACT


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("[13,5]", (13, 5)),
        ("[:,5]", (None, 5)),
        ("[ 2:5 , (1, 4) ]", (PositionRange(start=2, stop=5), PositionList(positions=(1, 4)))),
        ("[(7),:]", (PositionList(positions=(7,)), None)),
        ("[13]", (13,)),
    ],
)
def test_each_axis_is_read(text: str, axes: tuple[Any, ...]) -> None:
    at = TapSelection(activation_location_type=MLP, axes=axes, layer_index=2)
    assert parse_scale(f"mlp.post_act@2{text}*-0.5") == Intervention(at=at, action=ScaleValue(factor=-0.5))


def test_one_or_all_positions_are_the_plain_ablation_and_others_an_intervention() -> None:
    index = ActivationIndex(activation_location_type=MLP, tensor_indices=(None, 5), layer_index=2)
    assert parse_ablation("mlp.post_act@2[:,5]=0") == AblationSpec(index=index, value=0.0)
    at = TapSelection(activation_location_type=MLP, axes=(PositionRange(start=0, stop=3), 5))
    assert parse_what_to_ablate("mlp.post_act[0:3,5]=1e-2") == Intervention(at=at, action=SetValue(scalar=0.01))


@pytest.mark.parametrize(
    "text",
    ["mlp.post_act@2[2:5,(1,4)]=0.5", "mlp.post_act[:,2:5]=1", "mlp.post_act@0[(3,9),:]=-2", "mlp.post_act@2[:,:]*0.5"],
)
def test_what_is_printed_can_be_typed(text: str) -> None:
    change = parse_scale(text) if "*" in text else parse_ablation(text)
    assert ablation_text(change) == text


def test_what_cannot_be_typed_is_printed_by_its_name() -> None:
    at = TapSelection(activation_location_type=MLP, axes=(3,), layer_index=1)
    added = Intervention(at=at, action=AddVector(vector=RequestTensor(handle="x")))
    assert ablation_text(added) == "mlp.post_act@1[3,:] add"


def test_a_patch_is_taken_from_the_source() -> None:
    options = RequestOptions(prompt="a", patch=["resid.post_mlp@1[13]"], source="b")
    at = TapSelection(activation_location_type=ActivationLocationType.RESID_POST_MLP, axes=(13,), layer_index=1)
    request = options.request()
    assert request.interventions == (Intervention(at=at, action=CopyFromRun(run="source")),)
    assert request.source_runs == (SourceRun(name="source", prompt=Prompt(text="b")),)
    assert ablation_text(request.interventions[0]) == "resid.post_mlp@1[13,:] from source"
    with pytest.raises(InvalidRequest, match=r"--patch: needs --source"):
        RequestOptions(prompt="a", patch=["resid.post_mlp@1[13]"]).request()
    with pytest.raises(InvalidRequest, match=r"--source: needs --patch"):
        RequestOptions(prompt="a", source="b").request()
    with pytest.raises(InvalidRequest, match="is not of the form"):
        parse_patch("resid.post_mlp@1[")


def test_a_tap_without_axes_is_all_of_it() -> None:
    at = TapSelection(activation_location_type=ActivationLocationType.RESID_POST_MLP, layer_index=1)
    assert parse_patch("resid.post_mlp@1") == Intervention(at=at, action=CopyFromRun(run="source"))
    assert parse_scale("resid.post_mlp@1*2") == Intervention(at=at, action=ScaleValue(factor=2.0))
    everywhere = TapSelection(activation_location_type=MLP)
    for parse in (parse_ablation, parse_what_to_ablate):
        assert parse("mlp.post_act=0") == Intervention(at=everywhere, action=SetValue(scalar=0.0))
    with pytest.raises(InvalidRequest, match="there is no 'elsewhere'; known are resid"):
        parse_patch("elsewhere@1")
    with pytest.raises(InvalidRequest, match="is neither a node"):
        parse_what_to_ablate("elsewhere=0")
    with pytest.raises(InvalidRequest, match="is neither a node"):
        parse_trace("mlp.post_act@2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mlp.post_act@2[1,4]", "is not of the form"),
        ("mlp.post_act@2[1,4]*x", "is not of the form"),
        ("mlp.post_act@2[]*1", "each axis is a number, a list"),
        ("mlp.post_act@2[2:,1]*1", "each axis is a number, a list"),
        ("mlp.post_act@2[(1,4]*1", "each axis is a number, a list"),
        ("mlp.post_act@2[(),4]*1", "each axis is a number, a list"),
        ("mlp.post_act@2[5:2,4]*1", "stop: must be above start"),
        ("mlp.post_act@2[(1,1),4]*1", "names a position twice"),
        ("mlp.post_act@2[1,2,3]*1", "has 3 entries, but"),
        ("nonesuch[1]*1", "there is no 'nonesuch'"),
    ],
)
def test_what_is_wrong_is_told(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^--scale") as caught:
        parse_scale(text)
    assert said in caught.value.message


def test_a_trace_names_one_activation() -> None:
    with pytest.raises(InvalidRequest, match="is neither a node"):
        RequestOptions(prompt="x", trace="mlp.post_act@2[1:3,4]").request()


def test_the_options_of_derive_make_its_request() -> None:
    request = RequestOptions(
        prompt="x",
        ablate=["mlp.post_act@2[1,4]=0", "mlp.post_act@2[1:3,4]=0"],
        scale=["mlp.post_act@2[1,4]*2"],
        detach_final_layer_norm_scale=False,
    ).request()
    assert [spec.index.tensor_indices for spec in request.ablation_specs] == [(1, 4)]
    assert [type(change.action) for change in request.interventions] == [SetValue, ScaleValue]
    assert request.detach_final_layer_norm_scale is False


def test_all_commands_always_say_that_the_final_norm_is_frozen() -> None:
    assert RequestOptions(prompt="x").request().detach_final_layer_norm_scale is True
    assert explain_request_of("x").runs[0].detach_final_layer_norm_scale is True
    assert explain_request_of("x", detach_final_layer_norm_scale=False).runs[0].detach_final_layer_norm_scale is False


def test_explain_compares_with_what_is_scaled() -> None:
    request = explain_request_of("x", ablate=["2.n3@0", "mlp.post_act@2[1:3,4]=0"], scale=["mlp.post_act[:,:]*2"])
    plain, changed = request.runs
    assert not plain.interventions
    assert [len(changed.node_ablations), len(changed.ablation_specs), len(changed.interventions)] == [1, 0, 2]
