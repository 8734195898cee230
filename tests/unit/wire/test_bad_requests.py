"""What is wrong with a request is reported all at once, under the paths that its sender sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import (
    catalog_pb2,
    config_pb2,
    context_pb2,
    explain_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    trace_pb2,
)
from dst_grpc.domain.trace import MAX_TRACE_DEPTH
from dst_grpc.errors import DataLoss, DstError, InvalidRequest, Reason
from dst_grpc.wire import (
    catalog,
    config,
    contexts,
    explain,
    explanations,
    indices,
    requests,
    resolution,
    results,
    trace,
)
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, PASS_TYPE
from dst_grpc.wire.parsing import parse
from dst_grpc.wire.paths import wire_path
from tests import strategies

READERS = {
    indices.node_index_from_wire: index_pb2.NodeIndex,
    indices.activation_index_from_wire: index_pb2.ActivationIndex,
    indices.derived_scalar_index_from_wire: index_pb2.DerivedScalarIndex,
    trace.trace_config_from_wire: trace_pb2.TraceConfig,
    config.autoencoder_config_from_wire: config_pb2.AutoencoderConfig,
    config.dst_config_from_wire: config_pb2.DstConfig,
    config.loss_fn_config_from_wire: config_pb2.LossFnConfig,
    config.ablation_spec_from_wire: config_pb2.AblationSpec,
    requests.prompt_from_wire: inference_pb2.Prompt,
    requests.derive_request_from_wire: inference_pb2.DeriveRequest,
    requests.derive_stream_request_from_wire: inference_pb2.DeriveStreamRequest,
    requests.resolve_request_from_wire: resolution_pb2.ResolveRequest,
    requests.resolve_stream_request_from_wire: resolution_pb2.ResolveStreamRequest,
    explain.top_k_group_from_wire: explain_pb2.TopKGroup,
    explain.top_k_request_from_wire: explain_pb2.TopKRequest,
    explain.node_ablation_from_wire: explain_pb2.NodeAblation,
    explain.explain_run_from_wire: explain_pb2.ExplainRun,
    explain.explain_request_from_wire: explain_pb2.ExplainRequest,
}
ANSWER_READERS = {
    results.tensor_info_from_wire: inference_pb2.TensorInfo,
    results.header_from_wire: inference_pb2.Header,
    results.trailer_from_wire: inference_pb2.Trailer,
    results.provenance_from_wire: inference_pb2.Provenance,
    catalog.architecture_from_wire: catalog_pb2.Architecture,
    catalog.unsupported_type_from_wire: catalog_pb2.UnsupportedType,
    catalog.model_info_from_wire: catalog_pb2.ModelInfo,
    catalog.autoencoder_info_from_wire: catalog_pb2.AutoencoderInfo,
    contexts.context_status_from_wire: context_pb2.ContextStatus,
    resolution.resolution_from_wire: resolution_pb2.Resolved,
    resolution.scalar_resolution_from_wire: resolution_pb2.ScalarResolution,
    resolution.validated_from_wire: resolution_pb2.Validated,
    resolution.load_progress_from_wire: resolution_pb2.LoadProgress,
    explanations.scalar_sum_from_wire: explain_pb2.ScalarSum,
    explanations.node_table_from_wire: explain_pb2.NodeTable,
    explanations.scored_tokens_from_wire: explain_pb2.ScoredTokens,
    explanations.runs_trailer_from_wire: explain_pb2.RunsTrailer,
    explanations.top_k_response_from_wire: explain_pb2.TopKResponse,
    explanations.explain_response_from_wire: explain_pb2.ExplainResponse,
}


def violations(read: Any, message: Any) -> dict[str, str]:
    """The violations that reading *message* reports, by path."""
    with pytest.raises(InvalidRequest) as caught:
        read(message)
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert len(found) == len(caught.value.violations), "a field is reported twice"
    return found


def outcome(read: Callable[[], object]) -> DstError | None:
    """The error of ours that reading ends with, if it does."""
    try:
        read()
    except DstError as error:
        return error
    return None


def derive_request(tree: dict[str, Any]) -> inference_pb2.DeriveRequest:
    return ParseDict(tree, inference_pb2.DeriveRequest())


BAD_REQUEST: dict[str, Any] = {
    "request_id": "x" * 257,
    "model": "no name",
    "prompt": {"token_ids": {}},
    "loss_fn_config": {"name": "LOSS_FN_NAME_PROBS", "distractor_tokens": ["a"]},
    "trace_config": {"node_index": {"node_type": 99, "q_k_or_v": 20}, "attention_trace_type": -3},
    "ablation_specs": [
        {"index": {"activation_location_type": 1, "tensor_indices": [{"at": 0}, {"all": {}}]}, "value": 1.0},
        {"index": {"tensor_indices": [{}]}, "value": "Infinity"},
    ],
    "autoencoders": ["embedded/mlp_post_act", "@"],
    "config": {
        "trace_config": {
            "node_index": {"node_type": "NODE_TYPE_MLP_NEURON", "tensor_indices": [{"at": 1}, {}, {"at": 3}]},
            "pre_or_post_act": "PRE_OR_POST_ACT_PRE",
        },
        "layer_indices": {"layer_indices": [3, 3]},
        "multi_autoencoder_context": {"autoencoder_contexts": ["not a name", "ok"]},
        "device_for_raw_activations": "tpu",
    },
    "derived_scalars": [
        {"dst": "DERIVED_SCALAR_TYPE_LOGITS"},
        {"dst": 107},
        {},
        {
            "dst": 1,
            "config": {
                "autoencoder_config": {
                    "dst": 1,
                    "autoencoder_path_by_layer_index": [{"layer_index": 0, "path": ""}],
                },
                "node_index_for_attribution": {"node_type": 4, "pass_type": 7},
            },
        },
    ],
    "element_type": "TENSOR_ELEMENT_TYPE_BOOL",
    "encoding": 9,
}


def test_one_request_reports_every_bad_field_at_every_depth() -> None:
    found = violations(requests.derive_request_from_wire, derive_request(BAD_REQUEST))
    assert sorted(found) == sorted(
        [
            "request_id",
            "model",
            "prompt.token_ids",
            "loss_fn_config.target_tokens",
            "loss_fn_config.distractor_tokens",
            "trace_config.node_index.node_type",
            "trace_config.node_index.q_k_or_v",
            "trace_config.pre_or_post_act",
            "trace_config.attention_trace_type",
            "ablation_specs[1].index.activation_location_type",
            "ablation_specs[1].index.tensor_indices[0]",
            "ablation_specs[1].value",
            "autoencoders[1]",
            "config.trace_config.node_index.tensor_indices[1]",
            "config.trace_config.node_index.tensor_indices",
            "config.layer_indices",
            "config.multi_autoencoder_context.autoencoder_contexts[0]",
            "config.device_for_raw_activations",
            "derived_scalars[1].dst",
            "derived_scalars[2].dst",
            "derived_scalars[3].config.autoencoder_config.autoencoder_path_by_layer_index[0].path",
            "derived_scalars[3].config.node_index_for_attribution.pass_type",
            "element_type",
            "encoding",
        ]
    )


def test_paths_of_a_request_to_resolve_are_below_its_request() -> None:
    message = resolution_pb2.ResolveRequest(request=derive_request(BAD_REQUEST))
    found = violations(requests.resolve_request_from_wire, message)
    assert set(found) == {f"request.{path}" for path in violations(requests.derive_request_from_wire, message.request)}


def test_only_a_request_to_resolve_may_lack_a_prompt() -> None:
    assert violations(requests.derive_request_from_wire, inference_pb2.DeriveRequest()) == {"prompt": "is required"}
    message = resolution_pb2.ResolveRequest(request=inference_pb2.DeriveRequest())
    assert requests.resolve_request_from_wire(message).request.prompt is None
    assert violations(requests.resolve_request_from_wire, resolution_pb2.ResolveRequest()) == {"request": "is required"}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (requests.derive_stream_request_from_wire, inference_pb2.DeriveStreamRequest()),
        (requests.resolve_stream_request_from_wire, resolution_pb2.ResolveStreamRequest()),
    ],
)
def test_a_message_of_a_stream_must_hold_a_request(read: Any, message: Any) -> None:
    assert list(violations(read, message)) == ["request"]


def test_a_prompt_has_exactly_one_form() -> None:
    assert list(violations(requests.prompt_from_wire, inference_pb2.Prompt())) == [""]
    assert list(violations(requests.prompt_from_wire, inference_pb2.Prompt(text=""))) == ["text"]


def test_a_required_enum_names_its_choices() -> None:
    found = violations(indices.node_index_from_wire, index_pb2.NodeIndex())
    assert found["node_type"].startswith("is required: one of ATTENTION_HEAD, QK_CHANNEL, ")


def test_a_required_enum_with_many_members_does_not_print_them_all() -> None:
    text = violations(indices.derived_scalar_index_from_wire, index_pb2.DerivedScalarIndex())["dst"]
    assert "(106 in all)" in text
    assert len(text) < 400


def test_an_unknown_number_is_named_beside_the_nearest_known_one() -> None:
    found = violations(indices.derived_scalar_index_from_wire, ParseDict({"dst": 4000}, index_pb2.DerivedScalarIndex()))
    assert found["dst"] == (
        "4000 is no DerivedScalarType that is known here; the nearest is 106, VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION"
    )


def test_an_index_of_nothing_is_an_error() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", tensor_indices=[{"at": 0}, {}])
    assert list(violations(indices.node_index_from_wire, message)) == ["tensor_indices[1]"]


def test_only_an_attention_head_has_a_query() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", q_k_or_v="ACTIVATION_LOCATION_TYPE_ATTN_QUERY")
    assert list(violations(indices.node_index_from_wire, message)) == ["node_type"]


def test_an_unknown_trace_type_does_not_make_its_downstream_wrong() -> None:
    head = {"node_type": "NODE_TYPE_ATTENTION_HEAD"}
    message = ParseDict(
        {
            "node_index": head,
            "pre_or_post_act": 1,
            "attention_trace_type": 17,
            "downstream_trace_config": {"node_index": head, "pre_or_post_act": 1, "attention_trace_type": 1},
        },
        trace_pb2.TraceConfig(),
    )
    assert list(violations(trace.trace_config_from_wire, message)) == ["attention_trace_type"]


def test_a_chain_of_traces_is_refused_however_long_it_is() -> None:
    v: dict[str, Any] = {"node_index": {"node_type": 1}, "pre_or_post_act": 1, "attention_trace_type": 4}
    message = ParseDict(v, trace_pb2.TraceConfig())
    for _ in range(90):
        outer = ParseDict(v, trace_pb2.TraceConfig())
        outer.downstream_trace_config.CopyFrom(message)
        message = outer
    assert list(violations(trace.trace_config_from_wire, message)) == [
        ".".join(["downstream_trace_config"] * MAX_TRACE_DEPTH),
    ]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(data=st.data())
def test_any_message_is_a_value_or_invalid(read: Any, data: st.DataObject) -> None:
    message = data.draw(strategies.messages(READERS[read]))
    error = outcome(lambda: read(message))
    assert error is None or (isinstance(error, InvalidRequest) and error.violations)


@pytest.mark.parametrize("read", ANSWER_READERS, ids=lambda read: read.__name__)
@given(data=st.data())
def test_any_answer_is_a_value_or_data_loss(read: Any, data: st.DataObject) -> None:
    message = data.draw(strategies.messages(ANSWER_READERS[read], depth=4))
    error = outcome(lambda: read(message))
    assert error is None or (isinstance(error, DataLoss) and error.reason is Reason.ANSWER_CORRUPT)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_invalid(read: Any, data: bytes) -> None:
    error = outcome(lambda: read(parse(READERS[read], data)))
    assert error is None or (isinstance(error, InvalidRequest) and error.violations)


def test_bytes_that_are_no_message_are_malformed() -> None:
    with pytest.raises(InvalidRequest, match=r"dst\.v1\.DeriveRequest") as caught:
        parse(inference_pb2.DeriveRequest, b"\xff\xff\xff")
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


def test_a_message_nested_too_deeply_is_malformed() -> None:
    data = b""
    for _ in range(200):
        length = len(data)
        varint = b""
        while length > 0x7F:
            varint += bytes([length & 0x7F | 0x80])
            length >>= 7
        data = b"\x2a" + varint + bytes([length]) + data
    with pytest.raises(InvalidRequest) as caught:
        parse(trace_pb2.TraceConfig, data)
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


def test_an_answer_from_a_newer_server_names_what_cannot_be_read() -> None:
    message = ParseDict({"kind": 77, "state": "CONTEXT_STATE_FAILED"}, context_pb2.ContextStatus())
    with pytest.raises(DataLoss, match=r"ContextStatus.*kind: 77 is no ContextKind"):
        contexts.context_status_from_wire(message)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("config.layer_indices[2]", "config.layer_indices.layer_indices[2]"),
        ("config.layer_indices", "config.layer_indices"),
        ("config.multi_autoencoder_context[0]", "config.multi_autoencoder_context.autoencoder_contexts[0]"),
        ("prompt.token_ids[3]", "prompt.token_ids.token_ids[3]"),
        ("loss_fn_config.target_token_ids[3]", "loss_fn_config.target_token_ids[3]"),
    ],
)
def test_elements_of_wrapped_lists_lie_deeper_on_the_wire(path: str, expected: str) -> None:
    assert wire_path(path) == expected
    assert wire_path(wire_path(path)) == expected


def test_an_enum_converts_both_ways_and_says_what_is_wrong() -> None:
    for number, name in [(1, "FORWARD"), (2, "BACKWARD")]:
        member = PASS_TYPE.from_wire(number)
        assert member is not None
        assert member.name == name
        assert PASS_TYPE.to_wire(member) == number
    assert PASS_TYPE.from_wire(0) is None
    assert PASS_TYPE.complaint(0) == "is required: one of FORWARD, BACKWARD"
    assert repr(DERIVED_SCALAR_TYPE) == "EnumCodec(DerivedScalarType)"


@pytest.mark.parametrize("sizes", [(0, 2**62), (2**40, 0), (2**63, 2), (3, 2), (2, 2, 2), ()])
def test_a_sum_whose_axes_do_not_fit_its_bytes_is_data_loss(sizes: tuple[int, ...]) -> None:
    dimensions = [1, 2, 2]  # tokens, and tokens attended to
    axes = [{"dimension": d, "size": size} for d, size in zip(dimensions, sizes, strict=False)]
    message = ParseDict({"dst": 1, "values": {"element_type": 1, "axes": axes}}, explain_pb2.ScalarSum())
    assert isinstance(outcome(lambda: explanations.scalar_sum_from_wire(message)), DataLoss)
