"""Types stay in the element type of the model, and those without meaning in it are refused."""

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
    pass

SCALES = {T.RESID_FINAL_LAYER_NORM_SCALE, T.ATTN_INPUT_LAYER_NORM_SCALE, T.MLP_INPUT_LAYER_NORM_SCALE}
"""What is never rounded to the model's element type."""


@pytest.mark.parametrize("kind", [T.MLP_POST_ACT, T.RESID_DELTA_ATTN])
@pytest.mark.parametrize("architecture", ["gemma", "llama"])
def test_every_type_stays_in_the_models_element_type(architecture: str, kind: T) -> None:
    """But for the scales of norms, which are never rounded."""
    x = Explained(architecture, (kind,), traces.trace(traces.NEURON, 1, 4, 7))
    world = models.world(kind, config=x.config, dtype=torch.bfloat16)
    for (dst, _, _), tensor in world.derive(models.request(derived_scalars=specs_for(x, FORMULAS), **x.fields)).items():
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
