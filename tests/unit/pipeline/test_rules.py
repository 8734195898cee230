"""The rules of a request: each by the fields that are named and the error that it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dst_grpc.domain.components import AttentionTraceType, LossFnName, NodeType, PassType
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, NotFound, Reason
from tests import models, traces

from .planning import (
    ATTN,
    HEAD,
    HEADS,
    LATENT,
    LOSS,
    MLP,
    NEURON,
    OFFLINE,
    PARTIAL,
    RESID_MLP,
    TOPK,
    ablate,
    edge,
    lack,
    plan,
    reading,
    refusal,
    with_trace,
)

# What can never succeed: type, fields of the request, and the fields complained about.
REFUSED: dict[str, tuple[tuple[T, ...], dict[str, Any], list[str]]] = {
    "token id": ((), {"tokens": (1, 19, 2, 40)}, ["prompt.token_ids.token_ids[1]", "prompt.token_ids.token_ids[3]"]),
    "prompt too long": ((), {"tokens": (1,) * 13}, ["prompt"]),
    "loss ids": (
        (),
        {
            "loss_fn_config": LossFnConfig(
                name=LossFnName.LOGIT_DIFF, target_token_ids=(1, 19), distractor_token_ids=(20,)
            )
        },
        ["loss_fn_config.target_token_ids[1]", "loss_fn_config.distractor_token_ids[0]"],
    ),
    "loss words": (
        (),
        {
            "loss_fn_config": LossFnConfig(
                name=LossFnName.LOGIT_DIFF, target_tokens=("a", "a b"), distractor_tokens=("b c",)
            )
        },
        ["loss_fn_config.target_tokens[1]", "loss_fn_config.distractor_tokens[0]"],
    ),
    "27 no gradient": ((T.MLP_WRITE,), {"config": DstConfig(derive_gradients=True)}, ["config.derive_gradients"]),
    "33 act x grad": (
        (T.MLP_ACT_TIMES_GRAD,),
        {"config": DstConfig(derive_gradients=True), **LOSS},
        ["config.derive_gradients"],
    ),
    "33 writes": (
        (T.ATTN_WRITE_SUM_HEADS,),
        {"config": DstConfig(derive_gradients=True)},
        ["config.derive_gradients"],
    ),
    "layers": (
        (T.MLP_WRITE,),
        {"config": DstConfig(layer_indices=(1, 3, 9))},
        ["config.layer_indices.layer_indices[1]", "config.layer_indices.layer_indices[2]"],
    ),
    "20 layers of an autoencoder": (
        (T.ONLINE_AUTOENCODER_LATENT,),
        {"config": DstConfig(layer_indices=(0, 1)), "autoencoders": (PARTIAL,)},
        ["config.layer_indices"],
    ),
    "trace's layer": ((), {"trace_config": traces.trace(NEURON, 3, 0, 0)}, ["trace_config.node_index.layer_index"]),
    "trace's place": (
        (),
        {"trace_config": traces.trace(NEURON, 0, 6, 13)},
        ["trace_config.node_index.tensor_indices[0]", "trace_config.node_index.tensor_indices[1]"],
    ),
    "trace's latent": (
        (),
        {"trace_config": traces.trace(LATENT, 0, 0, 15), "autoencoders": (MLP,)},
        ["trace_config.node_index.tensor_indices[1]"],
    ),
    "trace's autoencoder": (
        (),
        {"trace_config": traces.trace(LATENT, 2, 0, 1), "autoencoders": (PARTIAL,)},
        ["trace_config.node_index.layer_index"],
    ),
    "trace into the future": (
        (),
        {"trace_config": traces.trace(HEAD, 0, 2, 3, 0, through=AttentionTraceType.QK)},
        ["trace_config.node_index.tensor_indices[1]"],
    ),
    "downstream trace": (
        (),
        {
            "trace_config": traces.trace(
                HEAD, 0, 2, 1, 5, through=AttentionTraceType.V, downstream=traces.trace(NEURON, 7, 2, 2)
            )
        },
        [
            "trace_config.node_index.tensor_indices[2]",
            "trace_config.downstream_trace_config.node_index.layer_index",
        ],
    ),
    "34 the traced layer": (
        (T.ATTN_WRITE_TO_LATENT,),
        {"autoencoders": (ATTN,), **with_trace(traces.trace(traces.LATENT, 1, None, 3), layer_indices=(2,))},
        ["config.layer_indices"],
    ),
    "34 covered layer": (
        (T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED,),
        {"autoencoders": (ATTN,), "config": DstConfig(layer_indices=(3,))},
        ["config.layer_indices.layer_indices[0]", "config.layer_indices"],
    ),
    "35 all tokens": (
        (T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT,),
        {"autoencoders": (MLP,), **with_trace(traces.trace(traces.LATENT, 1, 2, 3))},
        ["config.trace_config.node_index.tensor_indices"],
    ),
    "35 a latent": (
        (T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT,),
        {"autoencoders": (MLP,), **with_trace(traces.trace(NEURON, 1, None, 3))},
        ["config.trace_config.node_index.node_type"],
    ),
    "35 a latent that the type's autoencoder has": (
        (T.ATTN_WRITE_TO_LATENT,),
        {"autoencoders": (MLP, ATTN), **with_trace(traces.trace(LATENT, 1, None, 12), layer_indices=(1,))},
        ["config.trace_config.node_index.tensor_indices[1]"],
    ),
    "10 a local trace names one node": (
        (T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD,),
        with_trace(traces.trace(NEURON, 1, None, 3)),
        ["config.trace_config.node_index.tensor_indices"],
    ),
    "36 place": ((T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,), reading(L.MLP_POST_ACT, 1, None),
                 ["config.activation_index_for_fake_grad.tensor_indices"]),
    "36 layer": ((T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,), reading(L.MLP_POST_ACT, None, None, 1),
                 ["config.activation_index_for_fake_grad.layer_index"]),
    "36 width": ((T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,), reading(L.MLP_POST_ACT, 3, None, 13),
                 ["config.activation_index_for_fake_grad.layer_index",
                  "config.activation_index_for_fake_grad.tensor_indices[1]"]),
    "36 location": ((T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,),
                    {"autoencoders": (MLP,), **reading(L.ATTN_VALUE, 1, None, 1)},
                    ["config.activation_index_for_fake_grad.activation_location_type"]),
    "36 latent": ((T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,),
                  {"autoencoders": (PARTIAL,), **reading(L.ONLINE_MLP_AUTOENCODER_LATENT, 0, None, 15)},
                  ["config.activation_index_for_fake_grad.layer_index",
                   "config.activation_index_for_fake_grad.tensor_indices[1]"]),
    "37 pass": ((T.SINGLE_NODE_WRITE,),
                edge(replace(traces.node(NEURON, 1, 2, 2), pass_type=PassType.BACKWARD)),
                ["config.node_index_for_attribution.pass_type"]),
    "37 layer": ((T.SINGLE_NODE_WRITE,), edge(replace(traces.node(NEURON, 1, 2, 2), layer_index=None)),
                 ["config.node_index_for_attribution.layer_index"]),
    "37 one node": ((T.MLP_IN_EDGE_ACTIVATION,), edge(traces.node(NEURON, 1, 2)),
                    ["config.node_index_for_attribution.tensor_indices"]),
    "37 kind": ((T.SINGLE_NODE_WRITE,), edge(traces.node(NodeType.RESIDUAL_STREAM_CHANNEL, 1, 2, 2)),
                ["config.node_index_for_attribution.node_type"]),
    "37 exists": ((T.SINGLE_NODE_WRITE,), edge(traces.node(HEAD, 4, 6, 1, 5)),
                  ["config.node_index_for_attribution.layer_index",
                   "config.node_index_for_attribution.tensor_indices[0]",
                   "config.node_index_for_attribution.tensor_indices[2]"]),
    "37 covered": ((T.SINGLE_NODE_WRITE,), {"autoencoders": (PARTIAL,), **edge(traces.node(LATENT, 0, 1, 1))},
                   ["config.node_index_for_attribution.layer_index"]),
    "18 two of a type": ((), {"autoencoders": (MLP, RESID_MLP)}, ["autoencoders[1]"]),
    "18 in a config": ((), {"config": DstConfig(multi_autoencoder_context=(ATTN, TOPK))},
                       ["config.multi_autoencoder_context.autoencoder_contexts[1]"]),
    "21 offline only": ((T.ONLINE_MLP_AUTOENCODER_LATENT,), {"autoencoders": (OFFLINE,)}, ["autoencoders[0]"]),
    "2 path and context": (
        (),
        {"config": DstConfig(
            autoencoder_context=MLP,
            autoencoder_config=AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=((1, PARTIAL),)),
        )},
        ["config.autoencoder_config"],
    ),
    "another model's set": ((), {"model": "other", "autoencoders": (MLP,)}, ["autoencoders[0]"]),
    "another model's contexts": (
        (),
        {"model": "other", "config": DstConfig(multi_autoencoder_context=(MLP, ATTN))},
        [f"config.multi_autoencoder_context.autoencoder_contexts[{i}]" for i in range(2)],
    ),
    "another model's context": ((), {"model": "other", "config": DstConfig(autoencoder_context=MLP)},
                                ["config.autoencoder_context"]),
    "another model's path": (
        (),
        {"model": "other", "config": DstConfig(
            autoencoder_config=AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=((1, MLP),)))},
        ["config.autoencoder_config"],
    ),
    "1 another model": ((T.LOGITS, T.MLP_WRITE), {"config": DstConfig(model_name="other")}, ["config.model_name"]),
    "1 no model": ((), {"config": DstConfig(model_context="nobody")}, ["config.model_context"]),
    "3 another device": ((), {"config": DstConfig(device_for_raw_activations="cuda:1")},
                         ["config.device_for_raw_activations"]),
    "28 no such layer": ((), {"ablation_specs": (ablate(L.ATTN_VALUE, 3, 6, None, 1),)},
                         ["ablation_specs[0].index.layer_index", "ablation_specs[0].index.tensor_indices[0]"]),
    "28 no autoencoder": (
        (),
        {"ablation_specs": (ablate(L.ONLINE_MLP_AUTOENCODER_LATENT, 1, 0, 0),), "autoencoders": (ATTN,)},
        ["ablation_specs[0].index.activation_location_type"],
    ),
    "28 generic of two": (
        (),
        {"ablation_specs": (ablate(L.ONLINE_AUTOENCODER_LATENT, 1, 0, 0),), "autoencoders": (MLP, ATTN)},
        ["ablation_specs[0].index.activation_location_type"],
    ),
    "28 generic of one": (
        (),
        {"ablation_specs": (ablate(L.ONLINE_AUTOENCODER_LATENT, 0, 0, 15),), "autoencoders": (PARTIAL,)},
        ["ablation_specs[0].index.layer_index", "ablation_specs[0].index.tensor_indices[1]"],
    ),
    "relu": ((T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED,),
             {"autoencoders": (TOPK,), "config": DstConfig(layer_indices=(1,))}, ["autoencoders"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_field_is_named(case: str) -> None:
    types, fields, expected = REFUSED[case]
    assert list(refusal(*types, **fields)) == expected


R = Reason
LACKING: dict[str, tuple[tuple[T, ...], dict[str, Any], Reason, list[str]]] = {
    "29 origin": ((T.MLP_ACT_TIMES_GRAD,), {}, R.ORIGIN_REQUIRED, ["loss_fn_config"]),
    "29 origin of a gradient": (
        (T.RESID_POST_MLP,), {"config": DstConfig(derive_gradients=True)}, R.ORIGIN_REQUIRED, ["loss_fn_config"]),
    "loss of a v trace": (
        (), {"trace_config": traces.trace(HEAD, 1, 4, 2, 3, through=AttentionTraceType.V)},
        R.ORIGIN_REQUIRED, ["loss_fn_config"]),
    "autoencoder": ((T.MLP_AUTOENCODER_LATENT,), {}, R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "autoencoder of another type": (
        (T.ATTENTION_AUTOENCODER_LATENT,), {"autoencoders": (MLP,)}, R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "generic of two": (
        (T.AUTOENCODER_LATENT,), {"autoencoders": (MLP, ATTN)}, R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "not in the run": (
        (T.ONLINE_MLP_AUTOENCODER_LATENT,), {"config": DstConfig(autoencoder_context=MLP)},
        R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "error of neurons": (
        (T.ONLINE_MLP_AUTOENCODER_ERROR,), {"autoencoders": (RESID_MLP,)}, R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "error of a write": (
        (T.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,), {"autoencoders": (MLP,)},
        R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "read of a write": (
        (T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT,),
        {"autoencoders": (MLP,), **with_trace(traces.trace(traces.LATENT, 1, None, 3))},
        R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "traced latent": (
        (), {"trace_config": traces.trace(LATENT, 1, 4, 2)}, R.AUTOENCODER_REQUIRED,
        ["trace_config.node_index.node_type"]),
    "traced latent of what is only read": (
        (), {"trace_config": traces.trace(traces.ATTENTION_LATENT, 1, 4, 2),
             "config": DstConfig(autoencoder_context=HEADS)},
        R.AUTOENCODER_REQUIRED, ["trace_config.node_index.node_type"]),
    "downstream latent": (
        (), {"trace_config": traces.trace(HEAD, 1, 4, 2, 3, through=AttentionTraceType.V,
                                          downstream=traces.trace(LATENT, 2, 4, 2))},
        R.AUTOENCODER_REQUIRED, ["trace_config.downstream_trace_config.node_index.node_type"]),
    "34 one layer": (
        (T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED,), {"autoencoders": (ATTN,)},
        R.FIELD_REQUIRED, ["config.layer_indices"]),
    "34 one layer only": (
        (T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED,),
        {"autoencoders": (ATTN,), "config": DstConfig(layer_indices=(0, 1))},
        R.FIELD_REQUIRED, ["config.layer_indices"]),
    "trace": ((T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD,), {}, R.FIELD_REQUIRED, ["config.trace_config"]),
    "node": ((T.SINGLE_NODE_WRITE,), {}, R.FIELD_REQUIRED, ["config.node_index_for_attribution"]),
    "37 part of a head": (
        (T.MLP_OUT_EDGE_ATTRIBUTION,), edge(traces.node(HEAD, 1, 4, 2, 3)), R.FIELD_REQUIRED,
        ["config.node_index_for_attribution.q_k_or_v"]),
    "node's autoencoder": (
        (T.SINGLE_NODE_WRITE,), edge(traces.node(LATENT, 1, 4, 3)), R.AUTOENCODER_REQUIRED, ["autoencoders"]),
    "36 node that reads": (
        (T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,), {}, R.FIELD_REQUIRED, ["config.activation_index_for_fake_grad"]),
    "36 latent": (
        (T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,),
        {"autoencoders": (ATTN,), **reading(L.ONLINE_MLP_AUTOENCODER_LATENT, 1, None, 1)},
        R.AUTOENCODER_REQUIRED, ["autoencoders"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_what_is_missing_is_named(case: str) -> None:
    types, fields, reason, expected = LACKING[case]
    found = lack(*types, **fields)
    assert (found[0], list(found[1])) == (reason, expected)


def test_only_autoencoders_that_would_do_are_named() -> None:
    """Of the node's type; of the residual stream; and what those that are spliced in have instead."""
    traced = "trace_config.node_index.node_type"
    said = lack(trace_config=traces.trace(LATENT, 1, 4, 2))[1][traced]
    assert said.endswith(
        "reads mlp_post_act or resid_delta_mlp or resid_post_attn to predict resid_delta_mlp: name it in autoencoders"
    )
    said = lack(trace_config=traces.trace(traces.ATTENTION_LATENT, 1, 4, 2))[1][traced]
    assert said.endswith("reads resid_delta_attn: name it in autoencoders")
    said = lack(T.SINGLE_NODE_WRITE, **edge(traces.node(traces.ATTENTION_LATENT, 1, 4, 3)))[1]["autoencoders"]
    assert said.endswith("reads resid_delta_attn for this node")
    said = lack(T.ONLINE_RESIDUAL_AUTOENCODER_ERROR, autoencoders=(MLP,))[1]["autoencoders"]
    assert said.endswith(f"needs an autoencoder of the residual stream, and the request has {MLP}")
    tap = L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR
    said = refusal(autoencoders=(MLP,), ablation_specs=(ablate(tap, 1, 0, 0),))[
        "ablation_specs[0].index.activation_location_type"
    ]
    latents, errors = map(json_name, (L.ONLINE_MLP_AUTOENCODER_LATENT, L.ONLINE_MLP_AUTOENCODER_ERROR))
    assert said.endswith(f"named in autoencoders; {MLP} has {latents} and {errors}")


def test_a_layer_that_the_model_lacks_is_not_said_to_be_uncovered_too() -> None:
    tap = L.ONLINE_MLP_AUTOENCODER_LATENT
    found = refusal(autoencoders=(PARTIAL,), ablation_specs=(ablate(tap, 8, 0, 0), ablate(tap, 0, 0, 0)))
    assert found == {
        "ablation_specs[0].index.layer_index": f"must be below the number of layers {models.CONFIG.n_layers}, not 8",
        "ablation_specs[1].index.layer_index": f"{PARTIAL} does not cover layer 0",
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokens": (1,) * 13}, Reason.PROMPT_TOO_LONG),
        ({"loss_fn_config": LossFnConfig(name=LossFnName.PROBS, target_tokens=("a b",))}, Reason.NOT_ONE_TOKEN),
        ({"model": "other", "autoencoders": (MLP,)}, Reason.IMPOSSIBLE_COMBINATION),
        ({"tokens": (19,)}, Reason.INVALID_FIELD),
        ({"tokens": (19,) * 13}, Reason.INVALID_FIELD),
    ],
)
def test_a_reason_is_given_where_all_violations_share_it(fields: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(**fields)
    assert caught.value.reason is reason


def test_everything_bad_is_reported_at_once_and_before_what_is_missing() -> None:
    specs = (
        DerivedScalarSpec(dst=T.MLP_WRITE, config=DstConfig(layer_indices=(5,), derive_gradients=True)),
        DerivedScalarSpec(dst=T.MLP_ACT_TIMES_GRAD),
        DerivedScalarSpec(
            dst=T.SINGLE_NODE_WRITE, config=DstConfig(node_index_for_attribution=traces.node(NEURON, 9, 1, 1))
        ),
    )
    ablations = (ablate(L.ATTN_VALUE, 1, 0, 0, 0), ablate(L.RESID_POST_MLP, 8, 0, 0))
    assert list(refusal(derived_scalars=specs, tokens=(40,), ablation_specs=ablations)) == [
        "prompt.token_ids.token_ids[0]",
        "ablation_specs[1].index.layer_index",
        "derived_scalars[0].config.derive_gradients",
        "derived_scalars[0].config.layer_indices.layer_indices[0]",
        "derived_scalars[2].config.node_index_for_attribution.layer_index",
        "derived_scalars[2].config.node_index_for_attribution.tensor_indices[0]",
    ]


def test_everything_missing_is_reported_at_once() -> None:
    found = lack(T.MLP_ACT_TIMES_GRAD, T.MLP_AUTOENCODER_LATENT, T.SINGLE_NODE_WRITE, T.MLP_WRITE)
    assert list(found[1]) == ["loss_fn_config", "autoencoders", "config.node_index_for_attribution"]
    assert "mlp_act_times_grad" in found[1]["loss_fn_config"]


def test_a_shared_config_is_complained_about_once() -> None:
    assert list(refusal(T.MLP_WRITE, T.MLP_WRITE_NORM, T.ATTN_WRITE, config=DstConfig(layer_indices=(7,)))) == [
        "config.layer_indices.layer_indices[0]"
    ]


def test_unknown_models_and_autoencoders_are_not_found() -> None:
    with pytest.raises(NotFound) as model:
        plan(model="tinny")
    assert (model.value.reason, model.value.nearest) == (Reason.MODEL_NOT_FOUND, ("tiny",))
    with pytest.raises(NotFound) as autoencoder:
        plan(autoencoders=("tiny/mlp_post_acts",))
    assert autoencoder.value.reason is Reason.AUTOENCODER_NOT_FOUND
