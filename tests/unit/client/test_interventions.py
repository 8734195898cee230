"""Interventions from friendly arguments, and tensors that are put for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import (
    Client,
    Direction,
    Intervention,
    PassType,
    Prompt,
    RequestTensor,
    SourceRun,
    TapSelection,
    add_norm_scaled,
    clamp,
    decoder_row,
    detach_gradient,
    difference_of_means,
    encoder_row,
    hold,
    make_explain_run,
    make_request,
    mean_over,
    patch,
    project_out,
    scale,
    set_value,
    steer,
    swap,
    unembedding_row,
)
from dst_grpc.domain.interventions import (
    AddNormScaled,
    AddVector,
    ClampValue,
    CopyFromRun,
    DecoderRow,
    DetachGradient,
    DifferenceOfMeans,
    EncoderRow,
    HoldValue,
    MeanOverRuns,
    ProjectOut,
    ScaleValue,
    SetValue,
    SwapDirections,
    UnembeddingRow,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.selections import PositionList, PositionRange
from dst_grpc.errors import InvalidRequest, NotFound
from tests.fake_answers import SERVER_INFO
from tests.fake_service import FakeService

VECTOR = np.array([0.5, -1.0, 2.0])


def test_steering_adds_a_vector() -> None:
    assert steer("resid.post_mlp", VECTOR, factor=2.0, layer=1, at=[3]) == Intervention(
        at=TapSelection(activation_location_type=L.RESID_POST_MLP, axes=(3,), layer_index=1),
        action=AddVector(vector=RequestTensor(tensor=VECTOR.astype(np.float32)), factor=2.0),
    )


def test_runs_are_read_by_name() -> None:
    assert patch("resid.post_mlp", "clean", layer=1).action == CopyFromRun(run="clean")
    assert hold("attn.qk_probs").action == HoldValue()
    mean = mean_over("attn.v_out", ["a", "b"], over_positions=True)
    assert mean.action == MeanOverRuns(runs=("a", "b"), over_positions=True)
    with pytest.raises(InvalidRequest) as caught:
        mean_over("attn.qk_probs", ["a"], over_positions=True)
    assert [one.field for one in caught.value.violations] == ["at.activation_location_type"]


def test_directions_are_vectors_or_named() -> None:
    by_token = unembedding_row(" Mary", normalize=True)
    assert by_token == Direction(direction=UnembeddingRow(token=" Mary"), normalize=True)
    assert unembedding_row(np.int64(3)).direction == UnembeddingRow(token_id=3)
    assert encoder_row("set", 4, layer=1).direction == EncoderRow(autoencoder="set", latent=4, layer_index=1)
    assert decoder_row("set", np.int64(4)).direction == DecoderRow(autoencoder="set", latent=4)
    means = difference_of_means(["a"], ["b"], token=-1)
    assert means.direction == DifferenceOfMeans(runs=("a",), minus_runs=("b",), token_index=-1)
    assert steer("resid.post_mlp", means, factor=2.0).action == AddVector(direction=means, factor=2.0)
    given = Direction(direction=RequestTensor(tensor=VECTOR))
    assert project_out("resid.post_mlp", VECTOR, factor=0.5).action == ProjectOut(direction=given, factor=0.5)
    assert clamp("mlp.post_act", minimum=0.5).action == ClampValue(minimum=0.5)
    assert clamp("resid.post_mlp", by_token, maximum=2.0).action == ClampValue(direction=by_token, maximum=2.0)
    assert swap("resid.post_mlp", VECTOR, means).action == SwapDirections(direction=given, target=means)
    added = add_norm_scaled("resid.post_mlp", VECTOR, factor=2.0, cap=1.0).action
    assert added == AddNormScaled(direction=given, factor=2.0, cap=1.0)


def test_runs_that_are_read_are_given_by_name_or_whole() -> None:
    prompts: dict[str, Any] = {"clean": "b", "corrupt": [1, 2]}
    by_name = make_request("a", (), source_runs=prompts).source_runs
    assert by_name == (
        SourceRun(name="clean", prompt=Prompt(text="b")),
        SourceRun(name="corrupt", prompt=Prompt(token_ids=(1, 2))),
    )
    assert make_request("a", (), source_runs=by_name).source_runs == by_name
    assert make_explain_run("a", source_runs={"clean": "b"}).source_runs == by_name[:1]
    with pytest.raises(InvalidRequest) as caught:
        make_request("a", (), source_runs={"": "b", "corrupt": ""})
    assert [one.field for one in caught.value.violations] == ["source_runs[0].name", "source_runs[1].prompt.text"]


@pytest.mark.parametrize(
    ("at", "axes"),
    [
        ([], ()),
        ([np.int64(2), None], (2, None)),
        ([slice(None), 4], (None, 4)),
        ([slice(1, 3)], (PositionRange(start=1, stop=3),)),
        ([slice(3)], (PositionRange(start=0, stop=3),)),
        ([[0, 2], (5,)], (PositionList(positions=(0, 2)), PositionList(positions=(5,)))),
    ],
)
def test_positions_are_given_as_of_an_array(at: Any, axes: Any) -> None:
    assert scale(L.RESID_POST_MLP, 0.5, at=at).at.axes == axes


def test_what_is_set_is_a_number_or_one_for_each() -> None:
    assert set_value("mlp.post_act", 1, layer=0).action == SetValue(scalar=1.0)
    assert set_value("mlp.post_act", np.float32(0.5)).action == SetValue(scalar=0.5)
    assert set_value("mlp.post_act", VECTOR).action == SetValue(tensor=RequestTensor(tensor=VECTOR))
    gradient = set_value("mlp.post_act", 0.0, pass_type="backward")
    assert gradient.at.pass_type is PassType.BACKWARD


def test_gradients_are_detached() -> None:
    found = detach_gradient("attn.qk_probs", layer=2)
    assert (found.action, found.at.pass_type, found.at.layer_index) == (DetachGradient(), PassType.BACKWARD, 2)
    assert scale("logits", 2.0).action == ScaleValue(factor=2.0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: scale("resid.post_mlpp", 1.0), "at.activation_location_type"),
        (lambda: scale("resid.post_mlp", 1.0, at=[slice(0, 4, 2)]), "at.axes[0]"),
        (lambda: scale("resid.post_mlp", 1.0, at=[None, slice(2, None)]), "at.axes[1]"),
        (lambda: scale("resid.post_mlp", 1.0, at=[-1]), "at.axes[0]"),
        (lambda: set_value("logits", VECTOR, pass_type="backward"), "set.tensor"),
        (lambda: steer("logits", []), "tensor"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_interventions_travel_with_their_request(client: Client, service: FakeService) -> None:
    wanted = [steer("resid.post_mlp", VECTOR, layer=1, at=[[0, 1]]), scale("mlp.post_act", 0.0, at=[slice(0, 2)])]
    client.derive("a b", ["logits"], interventions=wanted, max_chunk_bytes=4096, detach_final_layer_norm_scale=False)
    assert service.derived is not None
    assert list(service.derived.interventions) == wanted
    assert service.derived.max_chunk_bytes == 4096
    assert service.derived.detach_final_layer_norm_scale is False
    client.derive("a b", ["logits"])
    assert service.derived.detach_final_layer_norm_scale is True


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_tensor_is_put_in_pieces_and_named(client: Client, service: FakeService, dtype: type) -> None:
    values: Any = (np.arange(300_000) % 2048).astype(dtype).reshape(3, -1)
    tensor = client.put_tensor(values, ttl=60)
    kept = service.tensors[tensor.handle]
    assert kept.dtype == (np.float16 if dtype is np.float16 else np.float32)
    np.testing.assert_array_equal(kept, values)
    assert tensor.byte_count == kept.nbytes
    assert tensor.expire_time == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
    assert steer("logits", tensor).action == AddVector(vector=RequestTensor(handle=tensor.handle))
    client.delete_tensor(tensor)
    with pytest.raises(NotFound, match="unknown tensor"):
        client.delete_tensor(tensor.handle)


def test_a_single_number_is_a_tensor_too(client: Client, service: FakeService) -> None:
    tensor = client.put_tensor(2.5)
    assert service.tensors[tensor.handle].shape == ()


def test_a_server_says_what_it_is(client: Client) -> None:
    assert client.server_info() == SERVER_INFO
