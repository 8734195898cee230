"""Plans: what is completed, which trace counts, and what a plan asks of a run."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_facts import Backward
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.pipeline.planner import make_plan
from tests import traces

from .planning import LOSS, MLP, NEURON, WORLD, plan, refusal, with_trace

# Traces: the request's and a type's own


OTHER = traces.trace(NEURON, 1, 4, 3)


@pytest.mark.parametrize("dst", [T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, T.MLP_ACT_TIMES_GRAD])
@pytest.mark.parametrize("origin", [{}, LOSS, {"trace_config": traces.trace(NEURON, 1, 4, 4)}])
def test_a_type_that_reads_gradients_has_no_trace_but_the_request_s(dst: T, origin: dict[str, Any]) -> None:
    assert list(refusal(dst, **with_trace(OTHER), **origin)) == ["config.trace_config"]


def test_a_raw_type_s_own_trace_matters_only_with_gradients() -> None:
    plan(T.RESID_POST_MLP, **with_trace(OTHER), **LOSS)
    assert list(refusal(T.RESID_POST_MLP, **with_trace(OTHER, derive_gradients=True), **LOSS)) == [
        "config.trace_config"
    ]


def test_a_type_that_only_names_a_node_may_name_another_than_the_origin() -> None:
    latent = traces.trace(traces.LATENT, 1, None, 3)
    plan(T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT, **with_trace(latent), **LOSS, autoencoders=(MLP,))
    plan(T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, **with_trace(OTHER), **LOSS)


def test_a_config_without_a_trace_inherits_the_request_s() -> None:
    origin = traces.trace(NEURON, 1, 4, 3)
    found = plan(T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, trace_config=origin)
    assert found.scalars[0].trace == origin


# What becomes of what is left out


def test_words_become_token_ids() -> None:
    loss = LossFnConfig(
        name=LossFnName.LOGIT_DIFF, target_tokens=("c",), target_token_ids=(7,), distractor_tokens=("b",)
    )
    found = make_plan(
        DeriveRequest(prompt=Prompt(text="c a b unknown"), model="tiny", loss_fn_config=loss), WORLD.registry
    )
    assert (found.token_ids, found.token_strings) == ((2, 0, 1, 18), ("c", "a", "b", "?"))
    assert found.loss is not None
    expected = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(2, 7), distractor_token_ids=(1,))
    assert found.loss.config == expected


def test_a_text_without_tokens_is_refused() -> None:
    assert list(refusal(prompt=Prompt(text="  "))) == ["prompt.text"]


def test_without_a_prompt_a_full_window_is_planned_for() -> None:
    request = DeriveRequest(prompt=None, model="tiny", derived_scalars=(DerivedScalarSpec(dst=T.MLP_POST_ACT),))
    found = make_plan(request, WORLD.registry)
    assert (found.token_ids, found.cost.sequence_tokens) == ((), 12)
    assert found.scalars[0].axes[0].size == 12


@pytest.mark.parametrize("dst", FACTS)
def test_gradients_yield_a_backward_pass_just_where_the_facts_say(dst: T) -> None:
    backward = FACTS[dst].backward
    given = {"config": DstConfig(derive_gradients=True)}
    if backward is Backward.REFUSED:
        assert "config.derive_gradients" in refusal(dst, **given)
    elif not FACTS[dst].required_config_fields and FACTS[dst].autoencoder is None:
        both = backward in {Backward.GRADIENT, Backward.RATIO}
        assert (PassType.BACKWARD in plan(dst, **given, **LOSS).scalars[0].passes) is both
