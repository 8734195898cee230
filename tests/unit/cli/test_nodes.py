"""Nodes as they are written: what is printed can be typed, and what cannot be meant is told apart."""

from __future__ import annotations

import pytest

from dst_grpc.cli._nodes import ablation_text, node_text, read_ablation, read_head, read_trace, trace_text
from dst_grpc.cli._parse import parse_path, parse_trace, parse_what_to_ablate
from dst_grpc.client import (
    AblationSpec,
    ActivationLocationType,
    AttentionTraceType,
    NodeAblation,
    NodeIndex,
    NodeType,
    PreOrPostAct,
)
from dst_grpc.errors import InvalidRequest

HEAD = NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(13, 5, 2), layer_index=3)
NODES = {
    "3.h2@13,5": HEAD,
    "2.n353@13": NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(13, 353), layer_index=2),
    "2.z17@13": NodeIndex(node_type=NodeType.MLP_AUTOENCODER_LATENT, tensor_indices=(13, 17), layer_index=2),
    "2.r17@13": NodeIndex(node_type=NodeType.AUTOENCODER_LATENT, tensor_indices=(13, 17), layer_index=2),
    "2.a17@13": NodeIndex(node_type=NodeType.ATTENTION_AUTOENCODER_LATENT, tensor_indices=(13, 17), layer_index=2),
}
EMBEDDING = NodeIndex(node_type=NodeType.LAYER, tensor_indices=(13, 0))


@pytest.mark.parametrize(("text", "node"), NODES.items(), ids=list(NODES))
def test_what_is_printed_can_be_traced(text: str, node: NodeIndex) -> None:
    assert node_text(node) == text
    trace = parse_trace(text)
    assert trace.node_index == node
    assert trace.pre_or_post_act is PreOrPostAct.PRE
    assert trace.detach_layer_norm_scale
    assert trace.attention_trace_type is (AttentionTraceType.V if node is HEAD else None)
    trace.check_can_run()


@pytest.mark.parametrize(("text", "node"), NODES.items(), ids=list(NODES))
def test_what_is_printed_can_be_ablated(text: str, node: NodeIndex) -> None:
    assert parse_what_to_ablate(text) == NodeAblation(node_index=node, value=0.0)
    assert parse_what_to_ablate(f"{text}=-1.5e-1") == NodeAblation(node_index=node, value=-0.15)


@pytest.mark.parametrize("text", ["2.err@13=0", "2.err=0.5"])
def test_an_error_of_the_residual_can_be_ablated_as_a_whole_but_not_traced(text: str) -> None:
    error = NodeIndex(node_type=NodeType.AUTOENCODER_ERROR, tensor_indices=(13, 0), layer_index=2)
    assert node_text(error) == "2.err@13"
    ablation = parse_what_to_ablate(text)
    assert isinstance(ablation, AblationSpec)
    assert ablation.index.activation_location_type is ActivationLocationType.ONLINE_RESIDUAL_AUTOENCODER_ERROR
    assert (ablation.index.layer_index, ablation.index.tensor_indices[1:]) == (2, (None,))
    assert ablation_text(ablation) == text
    with pytest.raises(InvalidRequest, match="an error has no activation to trace"):
        read_trace("2.err@13")
    with pytest.raises(InvalidRequest, match="only a head reads another token"):
        read_ablation("2.err@13,4")


def test_an_embedding_can_be_ablated_as_a_whole() -> None:
    assert node_text(EMBEDDING) == "emb@13"
    ablation = parse_what_to_ablate("emb@13=2")
    assert isinstance(ablation, AblationSpec)
    assert ablation.index.activation_location_type is ActivationLocationType.RESID_POST_EMBEDDING
    assert (ablation.index.tensor_indices, ablation.value) == ((13, None), 2.0)


@pytest.mark.parametrize(
    ("text", "tap", "indices"),
    [
        ("3.h2", ActivationLocationType.ATTN_QK_PROBS, (None, None, 2)),
        ("3.n353", ActivationLocationType.MLP_POST_ACT, (None, 353)),
        ("3.z17", ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT, (None, 17)),
        ("3.a17", ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT, (None, 17)),
        ("3.r17", ActivationLocationType.ONLINE_AUTOENCODER_LATENT, (None, 17)),
    ],
)
def test_without_a_token_every_token_is_meant(
    text: str, tap: ActivationLocationType, indices: tuple[int | None, ...]
) -> None:
    ablation = parse_what_to_ablate(text)
    assert isinstance(ablation, AblationSpec)
    assert ablation.index.activation_location_type is tap
    assert (ablation.index.layer_index, ablation.index.tensor_indices) == (3, indices)


@pytest.mark.parametrize("text", ["3.h2=0", "3.h2@13=0", "2.n353@13=0.5", "2.n353=1", "emb@13=0", "2.z17@13=-2"])
def test_ablations_are_printed_as_they_are_typed(text: str) -> None:
    assert ablation_text(parse_what_to_ablate(text)) == text


def test_other_entries_are_printed_by_their_tap() -> None:
    assert ablation_text(parse_what_to_ablate("attn.qk_probs@2[3,:,1]=0")) == "attn.qk_probs@2[3,:,1]=0"
    assert ablation_text(parse_what_to_ablate("mlp.post_act[:,5]=1")) == "mlp.post_act[:,5]=1"


def test_of_a_head_at_a_token_everything_it_reads_is_switched_off() -> None:
    """So that no one takes it for the one pair of tokens that was typed."""
    assert ablation_text(parse_what_to_ablate("3.h2@13,5")) == "3.h2@13=0"


@pytest.mark.parametrize("through", AttentionTraceType)
def test_a_head_is_traced_through_what_is_said(through: AttentionTraceType) -> None:
    trace = parse_trace(f"3.h2@13,5:{through}")
    assert trace.attention_trace_type is through
    assert trace_text(trace) == f"3.h2@13,5:{through}"


def test_a_path_goes_back_from_the_output() -> None:
    path = parse_path(["3.h2@13,5", "2.h1@5,4:V", "1.h0@4,1:V"])
    assert path is not None
    assert (path.node_index.layer_index, path.depth) == (1, 3)
    assert path.downstream_trace_config is not None
    assert path.downstream_trace_config.node_index.layer_index == 2


def test_a_step_that_is_not_through_v_starts_anew() -> None:
    path = parse_path(["3.h2@13,5:V", "2.h1@13,4:Q", "1.h0@13,1:V"])
    assert path is not None
    goal = path.downstream_trace_config
    assert goal is not None
    assert trace_text(goal) == "2.h1@13,4:Q"
    assert goal.downstream_trace_config is None
    assert parse_path([]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3.h2", "needs the token it is at and the token it reads"),
        ("3.h2@13", "needs the token it is at and the token it reads"),
        ("2.n353@13,5", "a neuron needs one token"),
        ("2.n353", "a neuron needs one token"),
        ("2.z17@13:Q", "only a head has a query, key and value"),
        ("emb@13", "an embedding is where traces end"),
        ("3.h2@13,5:X", "is neither a node, e.g. 2.n353@13"),
        ("nonsense", "nor LOCATION@LAYER[i,j], as mlp.post_act@2[13,5]"),
    ],
)
def test_a_bad_trace_is_told_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_trace(text)
    (violation,) = raised.value.violations
    assert violation.field == "--trace"
    assert repr(text) in violation.description
    assert said in violation.description


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("emb", "of which token? e.g. emb@13"),
        ("2.n353@13,5", "only a head reads another token"),
        ("3.h2@13=much", "is neither a node, e.g. 2.h3@13"),
        ("3.h2@13,5:V", "is neither a node"),
        ("mlp.post_act@2[13,5]", "nor LOCATION@LAYER[i,:,j]=VALUE"),
    ],
)
def test_a_bad_ablation_is_told_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_what_to_ablate(text)
    (violation,) = raised.value.violations
    assert violation.field == "--ablate"
    assert said in violation.description


@pytest.mark.parametrize("text", ["2.3", "2.h3", "2.h3@13,1"])
def test_a_head_has_short_names(text: str) -> None:
    assert read_head(text) == (2, 3)


def test_a_bad_head() -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_head("2")
    assert "is not of the form LAYER.HEAD" in raised.value.violations[0].description


def test_other_forms_are_left_to_others() -> None:
    assert read_trace("mlp.post_act@2[13,5]") is None
    assert read_ablation("attn.qk_probs@2[:,:,1]=0") is None


def test_other_nodes_have_names_too() -> None:
    """They can be neither traced nor ablated by them."""
    channel = NodeIndex(node_type=NodeType.RESIDUAL_STREAM_CHANNEL, tensor_indices=(3, None), layer_index=1)
    assert node_text(channel) == "1.residual_stream_channel[3,:]"
