"""Values that are not finite: a run says where it first has some and why, or cannot be explained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.results import AnswerHeader, NotFinite
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.decoder import Decoder
from dst_grpc.errors import OutOfRange, Reason
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.tensor_answer import TensorAnswer
from tests import explaining, models


def world(dtype: torch.dtype, scaled: str = "layers.1.mlp.in.weight", by: float = 2e4) -> models.World:
    """A model of which one weight is large: within float16's range, but what is multiplied by it is not."""
    weights = models.weights(dtype=dtype)
    weights[scaled] = weights[scaled] * by
    return models.World(Decoder(models.CONFIG, weights))


NARROW, WIDE = world(torch.float16), world(torch.float32)
SAME = models.World(Decoder(models.CONFIG, models.weights(dtype=torch.float32)))


def headers(of: models.World, *requests: Any) -> list[AnswerHeader]:
    """What is said of the runs, as one batch."""
    return [TensorAnswer(result, of.context, {}).header() for result in of.results(*requests)]


def ablated(location: L, layer: int | None, token: int, value: float, pass_type: PassType = PassType.FORWARD) -> Any:
    """A run with one channel overwritten."""
    index = ActivationIndex(
        activation_location_type=location, tensor_indices=(token, 2), layer_index=layer, pass_type=pass_type
    )
    return models.request(
        T.TOKEN_ATTRIBUTION, ablation_specs=(AblationSpec(index=index, value=value),), loss_fn_config=models.LOSS
    )


def test_a_model_in_too_narrow_an_element_type() -> None:
    (header,) = headers(NARROW, models.request(T.LOGITS))
    assert header.not_finite == NotFinite(
        activation_location_type=L.MLP_PRE_ACT,
        layer_index=1,
        token_index=4,
        description="values are not finite from mlp.pre_act of layer 1, token 4, on: float16, which the model is "
        "loaded as, holds nothing beyond 65504; load it as float32 or bfloat16",
    )
    assert headers(WIDE, models.request(T.LOGITS))[0].not_finite is None


def test_a_run_that_ends_before_it_is_finite() -> None:
    request = models.request(T.MLP_POST_ACT, config=DstConfig(layer_indices=(0,)))
    assert headers(NARROW, request)[0].not_finite is None


def test_only_the_run_that_is_not_finite_says_so() -> None:
    requests = [
        models.request(T.LOGITS),
        ablated(L.MLP_POST_ACT, 1, 2, 3e38),
        models.request(T.LOGITS, tokens=(1, 2)),
    ]
    first, second, third = headers(SAME, *requests)
    assert first.not_finite is None
    assert third.not_finite is None
    assert second.not_finite is not None
    assert (second.not_finite.layer_index, second.not_finite.token_index) == (2, 2)
    assert second.not_finite.description.endswith("what the request changes is too large for float32")


def test_what_is_changed_besides_is_not_blamed() -> None:
    (header,) = headers(NARROW, ablated(L.RESID_DELTA_ATTN, 0, 1, 0.5))
    assert header.not_finite is not None
    assert "float16, which the model is loaded as" in header.not_finite.description


def test_logits_beyond_the_range() -> None:
    large = world(torch.float16, "final_norm.gain", 3e4)
    (header,) = headers(large, models.request(T.TOKEN_ATTRIBUTION, loss_fn_config=models.LOSS))
    assert header.not_finite is not None
    assert (header.not_finite.activation_location_type, header.not_finite.token_index) == (L.LOGITS, 5)
    assert header.loss is not None
    assert not math.isfinite(header.loss)


def test_gradients_beyond_the_range() -> None:
    request = ablated(L.RESID_DELTA_MLP, 1, 4, 6e4, PassType.BACKWARD)
    narrow = models.World(Decoder(models.CONFIG, models.weights(dtype=torch.float16)))
    (header,) = headers(narrow, request)
    assert header.not_finite is not None
    assert header.not_finite.pass_type is PassType.BACKWARD
    assert "values are finite, but gradients are not from " in header.not_finite.description


def test_a_loss_of_nothing_is_not_finite_either() -> None:
    (header,) = headers(NARROW, models.request(loss_fn_config=LossFnConfig(name=LossFnName.ZERO)))
    assert header.loss is not None
    assert math.isnan(header.loss)
    assert header.not_finite is not None


def test_such_a_run_cannot_be_explained() -> None:
    with pytest.raises(OutOfRange, match=r"mlp\.pre_act of layer 1, token 4, on: float16") as caught:
        explaining.explain(NARROW, explaining.request())
    assert caught.value.reason is Reason.NOT_FINITE
    assert caught.value.metadata == {
        "activation_location_type": "MLP_PRE_ACT",
        "layer_index": "1",
        "token_index": "4",
        "element_type": "FLOAT16",
    }


def test_what_is_kept_says_so_again() -> None:
    (plan,) = [result.plan for result in NARROW.results(models.request(T.LOGITS))]
    (result,) = run([plan], NARROW.decoder, {})
    assert result.recording.not_finite is not None
    assert result.recording.alone().not_finite == result.recording.not_finite
    assert result.recording.merged(result.recording).not_finite == result.recording.not_finite
