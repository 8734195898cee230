"""What is announced of every type is what comes: axes, bytes and element type; or why it has no meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, Reason
from tests import models, traces
from tests.explained import Explained
from tests.unit.scalars.formulas import FORMULAS, specs_for

if TYPE_CHECKING:
    from dst_grpc.pipeline.run import RunResult

SCALES = {T.RESID_FINAL_LAYER_NORM_SCALE, T.ATTN_INPUT_LAYER_NORM_SCALE, T.MLP_INPUT_LAYER_NORM_SCALE}
"""What is never rounded to the model's element type."""
WORLDS = [
    Explained(architecture, kinds, origin)
    for architecture in models.ARCHITECTURES
    for kinds, origin in (
        ((T.MLP_POST_ACT,), traces.trace(traces.NEURON, 1, 4, 7)),
        ((T.RESID_DELTA_ATTN,), None),
        ((T.RESID_DELTA_MLP,), None),
    )
]


def result_of(x: Explained, dtype: torch.dtype) -> RunResult:
    """All types that have a meaning, of the model in *dtype*."""
    world = models.world(*x.kinds, seed=x.seed, config=x.config, dtype=dtype)
    (result,) = world.results(models.request(derived_scalars=specs_for(x, FORMULAS), **x.fields))
    return result


@pytest.mark.parametrize("x", WORLDS, ids=str)
def test_every_type_has_the_axes_and_bytes_that_were_announced(x: Explained) -> None:
    for scalar in (result := result_of(x, torch.float32)).plan.scalars:
        derivation = result.derivation(scalar)
        tensors = [tensor for layer in scalar.layers for tensor in derivation.at(layer).values()]
        assert {tuple(tensor.shape) for tensor in tensors} == {tuple(axis.size for axis in scalar.axes)}
        assert len(tensors) == len(scalar.layers) * len(scalar.passes)
        assert scalar.output_bytes == 4 * sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("x", [x for x in WORLDS if x.architecture in {"gemma", "llama"}], ids=str)
def test_every_type_stays_in_the_models_element_type(x: Explained) -> None:
    """But for the scales of norms, which are never rounded."""
    for (dst, _, _), tensor in models.tensors(result_of(x, torch.bfloat16)).items():
        assert tensor.dtype is (torch.float32 if dst in SCALES else torch.bfloat16), dst


WITHOUT_MEANING = (T.RESID_POST_ATTN, T.RESID_POST_ATTN_NORM, T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD)


def test_only_parallel_models_rule_types_out() -> None:
    """There is no residual between attention and MLP."""
    for name, config in models.ARCHITECTURES.items():
        assert models.world(config=config).unsupported == (set(WITHOUT_MEANING) if name == "neox" else set())


@pytest.mark.parametrize("dst", WITHOUT_MEANING)
def test_a_type_without_meaning_in_a_model_is_refused_with_the_reason(dst: T) -> None:
    x = Explained("neox")
    with pytest.raises(InvalidRequest, match=rf"{dst} has no meaning in 'tiny': attention and MLP of") as caught:
        x.one(dst)
    assert caught.value.reason is Reason.UNSUPPORTED_BY_MODEL
    assert [violation.field for violation in caught.value.violations] == ["derived_scalars[0].dst"]
