"""The specification's rules about values, one test each; numbers are those of its section 13."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dst_grpc.domain.components import (
    AttentionTraceType,
    Dimension,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
)
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.explain import TopKGroup
from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
)
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import MAX_TRACE_DEPTH, TraceConfig
from dst_grpc.errors import InvalidRequest

L = ActivationLocationType
T = DerivedScalarType
HEAD = NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(3, 1, 0), layer_index=1)
NEURON = NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(3, 7), layer_index=1)


def trace(node: NodeIndex = NEURON, **kwargs: Any) -> TraceConfig:
    return TraceConfig(node_index=node, pre_or_post_act=PreOrPostAct.POST, detach_layer_norm_scale=True, **kwargs)


def fields(make: Callable[[], object]) -> list[str]:
    """The fields that making the value complains about."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    return [violation.field for violation in caught.value.violations]


def test_1_the_model_and_its_context_agree() -> None:
    DstConfig(model_name="a", model_context="a@1:float32:cpu")
    assert fields(lambda: DstConfig(model_name="a", model_context="b@1:float32:cpu")) == ["model_name"]


@pytest.mark.parametrize(
    "contexts",
    [
        {"model_context": "a@1:float32:cpu"},
        {"autoencoder_context": "a@1:float32:cpu"},
        {"multi_autoencoder_context": ("b", "a@1:float32:cpu")},
    ],
)
def test_3_all_devices_are_equal(contexts: dict[str, Any]) -> None:
    DstConfig(device_for_raw_activations="cpu", **contexts)
    assert fields(lambda: DstConfig(device_for_raw_activations="cuda:0", **contexts)) == ["device_for_raw_activations"]


def test_4_an_attention_write_is_a_head_with_a_layer() -> None:
    DstConfig(node_index_for_attention_write=HEAD)
    node = NodeIndex(node_type=NodeType.MLP_NEURON)
    assert fields(lambda: DstConfig(node_index_for_attention_write=node)) == [
        "node_index_for_attention_write.node_type",
        "node_index_for_attention_write.layer_index",
    ]


def test_5_a_trace_beside_an_attention_write_has_a_layer_or_is_a_token() -> None:
    token = NodeIndex(node_type=NodeType.VOCAB_TOKEN)
    DstConfig(node_index_for_attention_write=HEAD, trace_config=trace(token))
    neuron = NodeIndex(node_type=NodeType.MLP_NEURON)
    assert fields(lambda: DstConfig(node_index_for_attention_write=HEAD, trace_config=trace(neuron))) == [
        "trace_config.node_index.layer_index"
    ]


def test_6_a_trace_is_of_the_forward_pass() -> None:
    backward = NodeIndex(node_type=NodeType.MLP_NEURON, pass_type=PassType.BACKWARD)
    assert fields(lambda: DstConfig(trace_config=trace(backward))) == ["trace_config.node_index.pass_type"]


def test_7_only_heads_have_an_attention_trace_type() -> None:
    assert fields(lambda: trace(NEURON, attention_trace_type=AttentionTraceType.QK)) == ["attention_trace_type"]


@pytest.mark.parametrize("trace_type", [None, AttentionTraceType.Q, AttentionTraceType.K, AttentionTraceType.QK])
def test_8_only_v_has_a_downstream_trace(trace_type: AttentionTraceType | None) -> None:
    assert fields(lambda: trace(HEAD, attention_trace_type=trace_type, downstream_trace_config=trace())) == [
        "downstream_trace_config"
    ]
    trace(HEAD, attention_trace_type=AttentionTraceType.V, downstream_trace_config=trace())


def test_9_v_traces_may_chain_up_to_a_depth() -> None:
    chain = trace()
    for depth in range(2, MAX_TRACE_DEPTH + 1):
        chain = trace(HEAD, attention_trace_type=AttentionTraceType.V, downstream_trace_config=chain)
        assert chain.depth == depth
    assert fields(lambda: trace(HEAD, attention_trace_type=AttentionTraceType.V, downstream_trace_config=chain)) == [
        "downstream_trace_config"
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (trace(HEAD), ["attention_trace_type"]),
        (trace(NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2))), ["node_index.layer_index"]),
        (
            trace(NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(None, 2), layer_index=0)),
            ["node_index.tensor_indices"],
        ),
        (trace(NodeIndex(node_type=NodeType.LAYER, layer_index=0)), ["node_index.node_type"]),
        (
            trace(
                HEAD,
                attention_trace_type=AttentionTraceType.V,
                downstream_trace_config=trace(NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2))),
            ),
            ["downstream_trace_config.node_index.layer_index"],
        ),
    ],
)
def test_10_an_origin_is_one_node_with_a_layer(config: TraceConfig, expected: list[str]) -> None:
    assert fields(config.check_can_run) == expected
    assert fields(lambda: DeriveRequest(prompt=Prompt(text="x"), trace_config=config)) == [
        f"trace_config.{field}" for field in expected
    ]


def test_10_a_whole_origin_can_run() -> None:
    trace().check_can_run()
    trace(HEAD, attention_trace_type=AttentionTraceType.QK).check_can_run()
    for latent in (NodeType.AUTOENCODER_LATENT, NodeType.MLP_AUTOENCODER_LATENT):
        trace(NodeIndex(node_type=latent, tensor_indices=(1, 2), layer_index=0)).check_can_run()


def test_11_only_heads_have_a_query_key_or_value() -> None:
    AttnSubNodeIndex(node_type=NodeType.ATTENTION_HEAD, q_k_or_v=L.ATTN_VALUE)
    assert fields(lambda: AttnSubNodeIndex(node_type=NodeType.LAYER, q_k_or_v=L.LOGITS)) == ["node_type", "q_k_or_v"]


def test_12_only_taps_of_heads_are_reached_through_a_query_or_key() -> None:
    AttnSubActivationIndex(activation_location_type=L.ATTN_QK_PROBS, q_or_k=L.ATTN_KEY)
    assert fields(lambda: AttnSubActivationIndex(activation_location_type=L.MLP_POST_ACT, q_or_k=L.ATTN_VALUE)) == [
        "activation_location_type",
        "q_or_k",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ActivationIndex(activation_location_type=L.MLP_POST_ACT, tensor_indices=(1, 2, 3)),
        lambda: DerivedScalarIndex(dst=T.MLP_WRITE_NORM, tensor_indices=(1, 2, 3)),
        lambda: NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2, 3)),
    ],
)
def test_14_there_are_no_more_indices_than_axes(make: Callable[[], object]) -> None:
    assert fields(make) == ["tensor_indices"]


def test_16_the_number_of_open_axes_is_never_negative() -> None:
    assert (HEAD.ndim, NEURON.ndim) == (0, 0)
    assert NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(None, 1)).ndim == 2
    assert fields(lambda: NodeIndex(node_type=NodeType.LAYER).ndim) == ["node_type"]


@pytest.mark.parametrize("pairs", [(), ((None, "a"), (1, "b")), ((1, "a"), (1, "b"))])
def test_17_autoencoders_are_named_per_layer_or_alone(pairs: tuple[tuple[int | None, str], ...]) -> None:
    AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=((None, "a"),))
    assert fields(lambda: AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=pairs)) == [
        "autoencoder_path_by_layer_index"
    ]


def test_17_every_autoencoder_has_a_path_and_a_layer_that_exists() -> None:
    assert fields(lambda: AutoencoderConfig(dst=T.LOGITS, autoencoder_path_by_layer_index=((-1, ""),))) == [
        "autoencoder_path_by_layer_index[0].layer_index",
        "autoencoder_path_by_layer_index[0].path",
    ]


def test_17_the_order_of_layers_does_not_matter() -> None:
    first, second = (
        AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=pairs)
        for pairs in (((0, "a"), (1, "b")), ((1, "b"), (0, "a")))
    )
    assert first == second


@pytest.mark.parametrize(
    ("index", "value", "expected"),
    [
        (ActivationIndex(activation_location_type=L.MLP_POST_ACT, tensor_indices=(1,)), 0, "index.tensor_indices"),
        (
            ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(1, 2), layer_index=0),
            0,
            "index.layer_index",
        ),
        (ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(1, 2)), float("nan"), "value"),
        (ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(1, 2)), float("-inf"), "value"),
        (ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(1, 2)), 1e39, "value"),
    ],
)
def test_28_an_ablation_names_entries_of_a_tap(index: ActivationIndex, value: float, expected: str) -> None:
    assert fields(lambda: AblationSpec(index=index, value=value)) == [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LossFnName.LOGIT_DIFF, ["target_tokens"]),
        (LossFnName.LOGIT_MINUS_MEAN, ["target_tokens", "distractor_tokens"]),
        (LossFnName.PROBS, ["target_tokens"]),
    ],
)
def test_32_a_loss_has_targets_and_some_have_no_distractors(name: LossFnName, expected: list[str]) -> None:
    assert fields(lambda: LossFnConfig(name=name, distractor_tokens=("a",))) == expected
    assert fields(lambda: LossFnConfig(name=name, distractor_token_ids=(1,))) == expected
    LossFnConfig(name=name, target_token_ids=(1,))
    LossFnConfig(name=LossFnName.ZERO)


def test_32_token_ids_travel_as_uint32() -> None:
    assert fields(lambda: LossFnConfig(name=LossFnName.PROBS, target_token_ids=(1, -1))) == ["target_token_ids[1]"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Prompt(text="a\ud800"), "text"),
        (lambda: DeriveRequest(prompt=None, request_id="\udcff"), "request_id"),
        (lambda: LossFnConfig(name=LossFnName.PROBS, target_tokens=("a", "\udcff")), "target_tokens[1]"),
        (
            lambda: AutoencoderConfig(dst=T.LOGITS, autoencoder_path_by_layer_index=((0, "\udcff"),)),
            "autoencoder_path_by_layer_index[0].path",
        ),
    ],
)
def test_texts_that_have_no_utf_8_form_are_refused(make: Callable[[], object], expected: str) -> None:
    assert fields(make) == [expected]


def test_an_autoencoder_that_is_named_again_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"^autoencoders: names 'm/a' more than once$"):
        DeriveRequest(prompt=None, autoencoders=("m/a", "m/b", "m/a", "m/a"))


def test_numbers_of_indices_are_checked_one_by_one() -> None:
    assert fields(lambda: NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(-1, 2**32), layer_index=-1)) == [
        "tensor_indices[0]",
        "tensor_indices[1]",
        "layer_index",
    ]


def test_of_a_number_that_cannot_be_only_the_bound_that_it_breaks_is_told() -> None:
    with pytest.raises(InvalidRequest) as raised:
        NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(-1, 2**32), layer_index=-1)
    assert [violation.description for violation in raised.value.violations] == [
        "must be 0 or more, not -1",
        "must be at most 4294967295, not 4294967296",
        "must be 0 or more, not -1",
    ]
    with pytest.raises(InvalidRequest, match=r"^k: must be 1 or more, not 0$"):
        TopKGroup(group_id="a", dsts=(T.MLP_WRITE_NORM,), k=0)


def test_layers_of_a_config_are_distinct_and_travel() -> None:
    assert fields(lambda: DstConfig(layer_indices=(-1, 2, 2))) == ["layer_indices.layer_indices[0]", "layer_indices"]


def test_contexts_of_a_config_are_names_or_handles() -> None:
    assert fields(
        lambda: DstConfig(model_name="", autoencoder_context="a@b", multi_autoencoder_context=("ok", "no way"))
    ) == ["model_name", "autoencoder_context", "multi_autoencoder_context.autoencoder_contexts[1]"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [({}, ""), ({"text": "a", "token_ids": (1,)}, ""), ({"text": ""}, "text"), ({"token_ids": ()}, "token_ids")],
)
def test_a_prompt_is_a_text_or_tokens(kwargs: dict[str, Any], expected: str) -> None:
    assert fields(lambda: Prompt(**kwargs)) == [expected]


def test_a_request_knows_its_origin_and_configs() -> None:
    own = DstConfig(derive_gradients=True)
    request = DeriveRequest(prompt=Prompt(text="x"), config=DstConfig(layer_indices=(1,)))
    assert not request.has_origin
    assert request.config_of(DerivedScalarSpec(dst=T.LOGITS)) is request.config
    assert request.config_of(DerivedScalarSpec(dst=T.LOGITS, config=own)) is own
    assert DeriveRequest(prompt=None, trace_config=trace()).has_origin


@pytest.mark.parametrize("text", ["a", "embedded/mlp_post_act", "a.b-c_d@1f0c:float32:cpu", "a@r:bfloat16:cuda:3"])
def test_a_reference_reads_back_as_its_text(text: str) -> None:
    ref = ContextRef.parse(text)
    assert str(ref) == text
    assert ref.is_handle == ("@" in text)


@pytest.mark.parametrize("text", ["", "/a", "a b", "a@", "a@r:float32", "a@r:float99:cpu", "a@r:float32:tpu", "a\n"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    assert fields(lambda: ContextRef.parse(text)) == [""]


def test_devices() -> None:
    assert all(map(is_device, ["cpu", "cuda", "cuda:0", "mps:1"]))
    assert not any(map(is_device, ["", "cpu:0", "cuda:", "gpu", "cuda:0\n"]))


def test_a_trace_can_be_made_of_a_nodes_activation() -> None:
    index = ActivationIndex(activation_location_type=L.ATTN_QK_LOGITS, tensor_indices=(1, 0, 2), layer_index=3)
    made = TraceConfig.from_activation_index(index)
    assert made.node_index == NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(1, 0, 2), layer_index=3)
    assert made.pre_or_post_act is PreOrPostAct.PRE
    assert made.attention_trace_type is AttentionTraceType.QK
    assert made.detach_layer_norm_scale
    residual = ActivationIndex(activation_location_type=L.RESID_POST_MLP)
    assert fields(lambda: TraceConfig.from_activation_index(residual)) == ["activation_location_type"]


def test_dimensions_of_the_prompt_and_of_autoencoders_are_marked() -> None:
    tokens = {Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS}
    for dimension in Dimension:
        assert dimension.is_sequence_token_dimension == (dimension in tokens)
        assert dimension.is_parameterized_dimension == (dimension is Dimension.AUTOENCODER_LATENTS)


def test_latents_are_four_of_the_node_types() -> None:
    assert sum(NODES[node_type].is_autoencoder_latent for node_type in NodeType) == 4
