"""The friendly arguments, and the request they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from dst_grpc.client import (
    ActivationLocationType,
    DerivedScalarSpec,
    DerivedScalarType,
    DstConfig,
    LossFnConfig,
    LossFnName,
    Prompt,
    TensorElementType,
    TensorEncoding,
    make_circuit_request,
    make_patch_request,
    make_request,
    scale,
)
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import InvalidRequest


def test_a_target_and_a_distractor_are_a_logit_difference() -> None:
    request = make_request("a", ["logits"], target=" Mary", distractor=" John")
    assert request.loss_fn_config == LossFnConfig(
        name=LossFnName.LOGIT_DIFF, target_tokens=(" Mary",), distractor_tokens=(" John",)
    )


def test_tokens_may_be_texts_and_ids_one_or_several() -> None:
    request = make_request("a", (), target=[" Mary", 3, np.int64(4)], distractor=5)
    assert request.loss_fn_config == LossFnConfig(
        name=LossFnName.LOGIT_DIFF, target_tokens=(" Mary",), target_token_ids=(3, 4), distractor_token_ids=(5,)
    )


def test_a_loss_may_be_named() -> None:
    request = make_request("a", (), target=" x", loss="probs")
    assert request.loss_fn_config == LossFnConfig(name=LossFnName.PROBS, target_tokens=(" x",))


def test_a_whole_loss_excludes_a_target() -> None:
    loss = LossFnConfig(name=LossFnName.ZERO)
    assert make_request("a", (), loss=loss).loss_fn_config is loss
    with pytest.raises(InvalidRequest, match="loss_fn_config"):
        make_request("a", (), loss=loss, target=" x")


@pytest.mark.parametrize("tokens", [" Mary", (3111,)])
@pytest.mark.parametrize("field", ["target_tokens", "distractor_tokens"])
def test_tokens_of_a_whole_loss_are_several_texts(field: str, tokens: Any) -> None:
    """The characters of one text are most often tokens too, so that it would be the loss of these."""
    with pytest.raises(TypeError, match=rf"{field} must be a tuple of texts, as \(' Mary',\), not "):
        LossFnConfig(name=LossFnName.LOGIT_DIFF, **{"target_token_ids": (1,), field: tokens})


def test_one_text_is_one_prompt_of_a_mean() -> None:
    for reference in ("a b", ["a b"]):
        patching = make_patch_request("a", "c", target=" x", alternative="mean", reference=reference)
        circuit = make_circuit_request("a", "c", target=" x", alternative="mean", reference=reference)
        assert patching.reference == circuit.reference == (Prompt(text="a b"),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossFnConfig(name=cast("Any", "entropy")), "name must be a member of LossFnName, not 'entropy'"),
        (
            lambda: TapSelection(activation_location_type=cast("Any", "resid_post_mlp")),
            "activation_location_type must be a member of ActivationLocationType, not 'resid_post_mlp'",
        ),
        (lambda: Prompt(text=cast("Any", 5)), "text must be a text, not 5"),
    ],
)
def test_a_value_of_another_type_is_told(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def test_a_loss_without_targets_names_the_field() -> None:
    with pytest.raises(InvalidRequest, match=r"loss_fn_config\.target_tokens"):
        make_request("a", (), distractor=" x")


def test_without_any_of_them_there_is_no_origin() -> None:
    assert not make_request("a", ()).has_origin


def test_types_may_be_names_members_or_specs() -> None:
    spec = DerivedScalarSpec(dst=DerivedScalarType.MLP_WRITE, config=DstConfig(layer_indices=(1,)))
    request = make_request("a", ["LOGITS", DerivedScalarType.MLP_POST_ACT, spec])
    assert [s.dst for s in request.derived_scalars] == ["logits", "mlp_post_act", "mlp_write"]
    assert request.derived_scalars[2] is spec


def test_every_unknown_type_is_reported_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest) as raised:
        make_request("a", ["logit", "mlp_post_act", "mlp_pot_act"])
    assert [v.field for v in raised.value.violations] == ["derived_scalars[0].dst", "derived_scalars[2].dst"]
    assert "logits" in raised.value.violations[0].description
    assert "mlp_post_act" in raised.value.violations[1].description


def test_a_name_that_is_like_none_is_told_all_or_what_lists_them() -> None:
    with pytest.raises(InvalidRequest, match=f"there is no 'nope'; known are {', '.join(LossFnName)}$"):
        make_request("a", (), target="b", loss="nope")
    with pytest.raises(InvalidRequest, match=f"there is no 'nope'; known are {', '.join(ActivationLocationType)}$"):
        scale("nope", 2.0)
    with pytest.raises(
        InvalidRequest, match=f"there is no 'nope'; `dst-grpc types` lists all {len(DerivedScalarType)}$"
    ):
        make_request("a", "nope")


def test_prompts_may_be_texts_ids_or_prompts() -> None:
    assert make_request("a", ()).prompt == Prompt(text="a")
    assert make_request([1, np.int32(2)], ()).prompt == Prompt(token_ids=(1, 2))
    assert make_request(Prompt(text="b"), ()).prompt == Prompt(text="b")
    assert make_request(None, ()).prompt is None


def test_enums_may_be_named() -> None:
    request = make_request("a", (), element_type="float16", encoding="sparse_latents", autoencoders="tiny/mlp")
    assert request.element_type is TensorElementType.FLOAT16
    assert request.encoding is TensorEncoding.SPARSE_LATENTS
    assert request.autoencoders == ("tiny/mlp",)
    with pytest.raises(InvalidRequest, match="float64"):
        make_request("a", (), element_type="float64")
