"""The rounding error that float32 results may have against the stored numbers, on any CPU.

For most tensors the bound is 1e-8 + 1e-4 max|y|: their largest entry is about as large as the terms whose sums they
are. That does not hold where the terms cancel. A norm ignores the length of its input, so two kinds of sums over the
residual channels nearly vanish, and the tensor of a one-token prompt holds a single such sum:

- the gradient at a norm's scale, sum_i x[i] g[i] / scale, for the centred input x and the gradient g that reaches it
  past the scale;
- the projection of a residual vector on the gradient before the origin, sum_i x[i] G[i].

The rounding error of a sum of n products is at most n u sum|terms| (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1), u = 2**-24 in float32, in whatever order a CPU adds. The reference's sum has this error and so
has ours: 2 n u sum|terms| is added to the bound of such entries, with the terms taken from the stored taps of the case.

An exact zero comes from a rule (masked, not active, past the origin), not from a sum: its bound is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_types import DerivedScalarType as T

if TYPE_CHECKING:
    from tests.parity.cases import Case, Key, Row

Array = np.ndarray[Any, Any]

UNIT_ROUNDOFF = 2.0**-24
_F, _B = PassType.FORWARD, PassType.BACKWARD

_SCALES = {T.ATTN_INPUT_LAYER_NORM_SCALE, T.MLP_INPUT_LAYER_NORM_SCALE, T.RESID_FINAL_LAYER_NORM_SCALE}
_PROJECTED = {
    T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: T.RESID_POST_EMBEDDING,
    T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: T.RESID_POST_EMBEDDING,
    T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: T.RESID_POST_ATTN,
    T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: T.RESID_POST_MLP,
    T.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: T.RESID_DELTA_ATTN,
    T.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: T.RESID_DELTA_MLP,
}
"""Each projection of a residual vector, and the vector."""
_RESIDUALS = (T.RESID_POST_EMBEDDING, T.RESID_POST_ATTN, T.RESID_POST_MLP)


def allowed(case: Case, row: Row, key: Key, expected: Array) -> Array:
    """How far each entry of the tensor *key* of *row* may be from *expected*, whose finite entries it has."""
    bound = 1e-8 + 1e-4 * np.abs(expected).max(initial=0.0, where=np.isfinite(expected))
    terms = _cancelling_terms(case, row, key)
    if terms is not None:
        bound = bound + 2 * terms.shape[-1] * UNIT_ROUNDOFF * terms.sum(axis=-1, keepdims=True)
    return np.where(expected == 0, 0, bound)


def _cancelling_terms(case: Case, row: Row, key: Key) -> Array | None:
    """The magnitudes [T, d] of what is added up in the entries [T, 1] of *key*.

    None where nothing cancels, and in the few small cases that do not store the residual stream.
    """
    pass_type, layer = key
    if not all(map(case.stored, _RESIDUALS)):
        return None
    if row.spec.dst in _SCALES and pass_type is _B:
        return _terms_at_scale(_Residuals(case), row, layer)
    vector = _PROJECTED.get(row.spec.dst)
    if vector is None:
        return None
    terms: Array = np.abs(case.stored(vector)[_F, layer] * _Residuals(case).gradient_before_origin())
    return terms


def _terms_at_scale(residuals: _Residuals, row: Row, layer: int | None) -> Array:
    """The terms of the gradient at a scale.

    The gradient at the norm's input is a sum of three: through the skip connection, through the scale, and past it.
    """
    place = residuals.input_of(row.spec.dst, layer)
    x, scale, at_scale = residuals.values[place], row.expected[_F, layer], row.expected[_B, layer]
    x = x - x.mean(axis=-1, keepdims=True)
    past_skip = residuals.gradients[place]
    if layer is not None:
        past_skip = past_skip - residuals.gradients[place + 1]
    past_scale = past_skip - at_scale * x / (x.shape[-1] * scale)
    terms: Array = np.abs(x * past_scale / scale)
    return terms


class _Residuals:
    """The residual stream of a case, [T, d] at each place: embedding, after attention 0, after MLP 0, ..."""

    def __init__(self, case: Case) -> None:
        embedding, after_attention, after_mlp = map(case.stored, _RESIDUALS)
        layers = sorted(layer for pass_type, layer in after_mlp if pass_type is _F and layer is not None)

        def stream(pass_type: PassType) -> list[Array]:
            places = [embedding[pass_type, None]]
            for layer in layers:
                places += [after_attention[pass_type, layer], after_mlp[pass_type, layer]]
            return places

        self.values = stream(_F)
        self.gradients = stream(_B)

    def input_of(self, scale: T, layer: int | None) -> int:
        """The place that the norm of *scale* reads."""
        if layer is None:
            return len(self.values) - 1
        return 2 * layer + (scale is T.MLP_INPUT_LAYER_NORM_SCALE)

    def gradient_before_origin(self) -> Array:
        """At the last place that the origin reaches."""
        return next(gradient for gradient in reversed(self.gradients) if gradient.any())
