"""Selections, tensors of requests and actions: what is refused, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dst_grpc.domain.components import PassType
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec, AddVector, DetachGradient, Intervention, ScaleValue, SetValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import PositionList, PositionRange, TapSelection
from dst_grpc.errors import InvalidRequest

BACKWARD = PassType.BACKWARD
SOME = RequestTensor(tensor=np.arange(3))


def fields(make: Callable[[], object]) -> list[str]:
    """Fields that are refused."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    return [violation.field for violation in caught.value.violations]


def at(location: L = L.RESID_POST_MLP, *axes: Any, **more: Any) -> TapSelection:
    return TapSelection(activation_location_type=location, axes=axes, **more)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: PositionList(positions=()), ["positions"]),
        (lambda: PositionList(positions=(3, 1, 3)), ["positions"]),
        (lambda: PositionList(positions=(0, -1, 2**32)), ["positions[1]", "positions[2]"]),
        (lambda: PositionRange(start=-1, stop=2), ["start"]),
        (lambda: PositionRange(start=2, stop=2), ["stop"]),
        (lambda: at(L.RESID_POST_MLP, 0, 1, 2), ["axes"]),
        (lambda: at(L.RESID_POST_MLP, 0, -1), ["axes[1]"]),
        (lambda: at(L.LOGITS, layer_index=0), ["layer_index"]),
        (lambda: at(layer_index=-1), ["layer_index"]),
        (RequestTensor, [""]),
        (lambda: RequestTensor(tensor=np.zeros(2), handle="h"), [""]),
        (lambda: RequestTensor(tensor=np.zeros((2, 0))), ["tensor"]),
        (lambda: RequestTensor(tensor=np.array([1.0, np.nan])), ["tensor"]),
        (lambda: RequestTensor(tensor=np.array(1e39)), ["tensor"]),
        (lambda: RequestTensor(handle=""), ["handle"]),
        (lambda: RequestTensor(handle="x" * 257), ["handle"]),
        (lambda: RequestTensor(handle="\udcff"), ["handle"]),
        (SetValue, [""]),
        (lambda: SetValue(scalar=1.0, tensor=SOME), [""]),
        (lambda: SetValue(scalar=float("nan")), ["scalar"]),
        (lambda: AddVector(vector=SOME, factor=float("inf")), ["factor"]),
        (lambda: ScaleValue(factor=1e39), ["factor"]),
        (lambda: Intervention(at=at(pass_type=BACKWARD), action=SetValue(tensor=SOME)), ["set.tensor"]),
        (lambda: Intervention(at=at(pass_type=BACKWARD), action=AddVector(vector=SOME)), ["at.pass_type"]),
        (lambda: Intervention(at=at(pass_type=BACKWARD), action=ScaleValue(factor=2.0)), ["at.pass_type"]),
        (lambda: Intervention(at=at(), action=DetachGradient()), ["at.pass_type"]),
    ],
)
def test_what_is_wrong_is_refused_at_its_field(make: Callable[[], object], expected: list[str]) -> None:
    assert fields(make) == expected


def test_omitted_trailing_axes_are_whole() -> None:
    assert at(L.ATTN_QUERY, 1).all_axes == (1, None, None)


def test_selected_entries_have_no_axis_where_one_position_is_given() -> None:
    some = at(L.ATTN_QK_PROBS, PositionRange(start=1, stop=5), 2, PositionList(positions=(0, 7)))
    assert some.shape((9, 9, 8)) == (4, 2)
    assert at(L.ATTN_QK_PROBS, 3).shape((9, 8, 7)) == (8, 7)


def test_tensors_are_equal_if_their_numbers_are() -> None:
    one, same, other = (
        RequestTensor(tensor=np.array(x, dtype)) for x, dtype in [([1, 2], "d"), ([1, 2], "f"), (1, "d")]
    )
    assert one == same
    assert hash(one) == hash(same)
    assert repr(one) == repr(same)
    assert len({one, same, other, RequestTensor(tensor=np.array([[1, 2]])), RequestTensor(handle="h")}) == 4
    assert RequestTensor(handle="h") == RequestTensor(handle="h")


def test_a_tensor_is_its_own() -> None:
    """What is done afterwards to the array that it was made of does not reach it, and nothing else can be done."""
    numbers = np.ones(3, dtype=np.float32)
    tensor = RequestTensor(tensor=numbers)
    numbers[0] = 5
    assert tensor.tensor is not None
    assert tensor.tensor.tolist() == [1, 1, 1]
    assert not tensor.tensor.flags.writeable


def test_tensors_are_found_and_replaced_by_field() -> None:
    put = RequestTensor(handle="h")
    steer = Intervention(at=at(), action=AddVector(vector=put, factor=2.0))
    assert steer.tensor_paths() == {"add.vector": put}
    assert steer.with_tensors({put: SOME}) == Intervention(at=at(), action=AddVector(vector=SOME, factor=2.0))
    assert steer.with_tensors({}) is steer
    assert Intervention(at=at(), action=SetValue(scalar=1.0)).tensor_paths() == {}


def test_an_ablation_is_an_intervention_that_sets_one_number() -> None:
    index = ActivationIndex(
        activation_location_type=L.ATTN_QK_PROBS, tensor_indices=(3, None, 1), layer_index=2, pass_type=BACKWARD
    )
    expected = at(L.ATTN_QK_PROBS, 3, None, 1, layer_index=2, pass_type=BACKWARD)
    assert AblationSpec(index=index, value=0.5).intervention == Intervention(at=expected, action=SetValue(scalar=0.5))
