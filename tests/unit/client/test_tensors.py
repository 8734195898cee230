"""Tensors as values: indexing, stacking, the largest entries and where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dst_grpc.client import Axis, DerivedScalar, DerivedScalarTensor, DerivedScalarType, Dimension, PassType, TopBy
from dst_grpc.client._tensors import Array, token_pair
from dst_grpc.errors import InvalidRequest

T, U, H, F = (
    Dimension.SEQUENCE_TOKENS,
    Dimension.ATTENDED_TO_SEQUENCE_TOKENS,
    Dimension.ATTN_HEADS,
    Dimension.MLP_ACTS,
)


def tensor(
    values: Array, *dimensions: Dimension, dst: str = "mlp_post_act", layer: int | None = 0, **others: Any
) -> DerivedScalarTensor:
    return DerivedScalarTensor(
        dst=DerivedScalarType(dst),
        pass_type=PassType.FORWARD,
        layer_index=layer,
        axes=tuple(Axis(d, size) for d, size in zip(dimensions, values.shape, strict=True)),
        values=values,
        **others,
    )


def test_it_is_an_array() -> None:
    it = tensor(np.arange(6.0).reshape(2, 3), T, F)
    assert len(it) == 2
    assert it[1, 2] == 5
    np.testing.assert_array_equal(np.asarray(it) * 2, it.values * 2)
    assert np.asarray(it) is it.values
    assert np.array(it, copy=True) is not it.values
    assert np.asarray(it, dtype=np.float16).dtype == np.float16


def test_layers_stack() -> None:
    scalar = DerivedScalar(
        DerivedScalarType.MLP_POST_ACT, [tensor(np.full((2, 3), float(n)), T, F, layer=n) for n in range(3)]
    )
    assert scalar.stack().shape == (3, 2, 3)
    assert scalar.stack()[2, 0, 0] == 2


def test_the_largest_by_magnitude_and_by_value() -> None:
    it = tensor(np.array([[1.0, -5.0], [3.0, 2.0]]), T, F)
    assert [entry.value for entry in it.top(3)] == [-5, 3, 2]
    assert [entry.value for entry in it.top(2, by=TopBy.VALUE)] == [3, 2]
    assert [entry.indices for entry in it.top(2)] == [(0, 1), (1, 0)]
    assert [entry.value for entry in it.top(9, at=0)] == [-5, 1]
    assert it.top(0) == []
    with pytest.raises(InvalidRequest, match="count: must be 0 or more, not -1"):
        it.top(-1)
    assert it.top(3, at=9) == []


def test_what_is_no_number_comes_first() -> None:
    it = tensor(np.array([[-1.0, 2.0], [np.inf, np.nan]]), T, F)
    for by, others in ((TopBy.MAGNITUDE, [2, -1]), (TopBy.VALUE, [2, -1])):
        first, second, *rest = [entry.value for entry in it.top(4, by=by)]
        assert {str(first), str(second)} == {"nan", "inf"}
        assert rest == others
    assert it.not_finite_count == 2
    assert "2 not finite" in repr(it)
    scalar = DerivedScalar(DerivedScalarType.MLP_POST_ACT, [tensor(np.ones((1, 2)), T, F, layer=0), it])
    assert not np.isfinite([entry.value for entry in scalar.top(2)]).any()


@pytest.mark.parametrize("by", list(TopBy))
def test_the_score_of_a_masked_pair_is_none(by: TopBy) -> None:
    scores = np.array([[[3.0], [-np.inf]], [[-4.0], [np.nan]]], np.float32)
    it = tensor(scores, T, U, H, dst=DerivedScalarType.ATTN_QK_LOGITS)
    first, *rest = [entry.value for entry in it.top(9, by=by)]
    assert np.isnan(first)
    assert rest == ([-4, 3] if by is TopBy.MAGNITUDE else [3, -4])
    assert [entry.value for entry in it.top(9, by=by, at=0)] == [3]
    assert it.not_finite_count == 1


def test_a_layer_that_is_0_by_definition_is_no_0_of_a_plot() -> None:
    layers = [tensor(np.full((2, 1), 1.0 - n), T, F, layer=n, zero_by_definition=n == 1) for n in range(2)]
    scalar = DerivedScalar(DerivedScalarType.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD, layers)
    np.testing.assert_array_equal(scalar.stack(), [[[1.0], [1.0]], [[np.nan], [np.nan]]])
    assert np.asarray(scalar[1]).tolist() == [[0.0], [0.0]]
    assert "0 by definition" in repr(scalar[1])
    assert "0 by definition" not in repr(scalar[0])


def test_an_empty_tensor_has_no_largest() -> None:
    assert tensor(np.zeros((0, 3)), T, F).top() == []


def test_layers_compete() -> None:
    scalar = DerivedScalar(
        DerivedScalarType.MLP_POST_ACT,
        [tensor(np.array([[float(n), -2.0 * n]]), T, F, layer=n) for n in range(3)],
    )
    assert [(entry.layer_index, entry.value) for entry in scalar.top(3)] == [(2, -4), (1, -2), (2, 2)]


def test_an_entry_of_a_pair_says_who_reads_whom() -> None:
    values = np.zeros((3, 3, 2))
    values[2, 1, 0] = 7
    (entry,) = tensor(values, T, U, H, dst="attn_qk_probs").top(1)
    assert (entry.token, entry.attended_token, entry.node) == (2, 1, 0)
    assert entry.node_type == "attention_head"


def test_an_entry_of_a_flattened_pair_does_too() -> None:
    values = np.zeros((6, 2))
    values[4, 1] = 7  # pairs (0,0) (1,0) (1,1) (2,0) (2,1) (2,2)
    it = tensor(values, T, H, dst="attn_act_times_grad")
    (entry,) = it.top(1)
    assert (entry.token, entry.attended_token, entry.node) == (2, 1, 1)
    assert {e.attended_token for e in it.top(99, at=1)} == {0, 1}
    assert {e.token for e in it.top(99, at=1)} == {1}


def test_a_single_thing_per_token_has_no_number() -> None:
    (entry,) = tensor(np.ones((1, 1)), T, Dimension.SINGLETON, dst="token_attribution").top(1)
    assert (entry.token, entry.attended_token, entry.node) == (0, None, None)


def test_pairs_are_counted_along_the_lower_triangle() -> None:
    expected = [(t, u) for t in range(60) for u in range(t + 1)]
    assert [token_pair(p) for p in range(len(expected))] == expected


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-9, 9, width=32)),
    st.integers(1, 40),
    st.sampled_from(TopBy),
)
def test_the_largest_are_the_head_of_the_sorted(values: Array, count: int, by: TopBy) -> None:
    key = abs if by is TopBy.MAGNITUDE else float
    expected = sorted((key(float(v)) for v in values.ravel()), reverse=True)[:count]
    found = tensor(values, T, F).top(count, by=by)
    assert [key(entry.value) for entry in found] == expected
    assert all(values[entry.indices] == entry.value for entry in found)


def test_a_tensor_without_axes_has_no_length() -> None:
    with pytest.raises(TypeError, match="no length"):
        len(tensor(np.array(1.0)))
