"""What is wrong with a request is reported all at once, under the paths that its sender sees."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from hypothesis import assume, given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import (
    context_pb2,
    explain_pb2,
    graph_probe_pb2,
    index_pb2,
    inference_pb2,
    intervention_pb2,
    tensor_pb2,
    trace_pb2,
)
from dst_grpc._gen.dst.v1.resolution_pb2 import ResolveRequest as ResolveRequestMessage
from dst_grpc._gen.dst.v1.resolution_pb2 import ResolveStreamRequest as ResolveStreamRequestMessage
from dst_grpc.domain.architecture import Architecture, UnsupportedType
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.components import Dimension, PassType
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKGroup, TopKRequest
from dst_grpc.domain.explanations import NodeTable, RunsTrailer, ScalarSum, ScoredTokens
from dst_grpc.domain.graph import GraphRequest, GraphTarget
from dst_grpc.domain.graph_answers import GraphHeader, GraphNodeScores
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeKind, GraphNodeTable
from dst_grpc.domain.graph_probes import GraphIntervention, ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.domain.indices import ActivationIndex, DerivedScalarIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec, Intervention
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.put_tensors import PutTensor, TensorDescription
from dst_grpc.domain.requests import (
    DeriveRequest,
    DeriveStreamRequest,
    Prompt,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextStatus,
    LoadProgress,
    ModelInfo,
    Resolution,
    ScalarResolution,
    Validated,
)
from dst_grpc.domain.results import AnswerHeader, AnswerTrailer, Provenance, TensorInfo
from dst_grpc.domain.run_actions import MeanOverRuns
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.selections import TapSelection
from dst_grpc.domain.server_info import ServerInfo
from dst_grpc.domain.trace import MAX_TRACE_DEPTH, TraceConfig
from dst_grpc.errors import MAX_VIOLATIONS, DataLoss, DstError, InvalidRequest, Reason, join_path
from dst_grpc.wire.codec import codec_of, read, read_answer, read_request, to_wire
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.parsing import parse
from dst_grpc.wire.tables import TableGroup
from tests.arbitrary import configs, interventions, messages, requests

REQUESTS: list[type] = [
    NodeIndex,
    ActivationIndex,
    DerivedScalarIndex,
    TraceConfig,
    AutoencoderConfig,
    DstConfig,
    LossFnConfig,
    AblationSpec,
    Intervention,
    Prompt,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
    TopKGroup,
    TopKRequest,
    NodeAblation,
    ExplainRun,
    ExplainRequest,
    GraphTarget,
    GraphRequest,
    GraphIntervention,
    ProbeGraphRequest,
    QueryGraphRequest,
    TensorDescription,
]
ANSWERS: list[type] = [
    TensorInfo,
    AnswerHeader,
    AnswerTrailer,
    Provenance,
    Architecture,
    UnsupportedType,
    ModelInfo,
    AutoencoderInfo,
    ContextStatus,
    Resolution,
    ScalarResolution,
    Validated,
    LoadProgress,
    ScalarSum,
    NodeTable,
    ScoredTokens,
    GraphHeader,
    GraphNodeTable,
    GraphNodeScores,
    GraphEdges,
    RunsTrailer,
    ServerInfo,
    PutTensor,
]


def message_of(cls: type) -> type[Message]:
    """The class of a value's messages."""
    found: type[Message] = codec_of(cls).message_class
    return found


def violations(cls: type, message: Any) -> dict[str, str]:
    """The violations that reading *message* reports, by path."""
    with pytest.raises(InvalidRequest) as caught:
        read(cls, message)
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert len(found) == len(caught.value.violations), "a field is reported twice"
    return found


def outcome(attempt: Callable[[], object]) -> DstError | None:
    """The error of ours that reading ends with, if it does."""
    try:
        attempt()
    except DstError as error:
        return error
    return None


def derive_request(tree: dict[str, Any]) -> inference_pb2.DeriveRequest:
    return ParseDict(tree, inference_pb2.DeriveRequest())


BAD_REQUEST: dict[str, Any] = {
    "request_id": "x" * 257,
    "model": "no name",
    "prompt": {"token_ids": {}},
    "loss_fn_config": {"name": "LOSS_FN_NAME_LOGIT_MINUS_MEAN", "distractor_tokens": ["a"]},
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
        {"dst": 4000},
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
    found = violations(DeriveRequest, derive_request(BAD_REQUEST))
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
    message = ResolveRequestMessage(request=derive_request(BAD_REQUEST))
    found = violations(ResolveRequest, message)
    assert set(found) == {f"request.{path}" for path in violations(DeriveRequest, message.request)}


def test_whether_a_prompt_must_be_there_is_for_others_to_say() -> None:
    """It depends on what the request is for; see the pipeline."""
    assert read(DeriveRequest, inference_pb2.DeriveRequest()).prompt is None
    assert violations(ResolveRequest, ResolveRequestMessage()) == {"request": "is required"}
    assert violations(ExplainRequest, explain_pb2.ExplainRequest(runs=[{}])) == {"runs[0].prompt": "is required"}


@pytest.mark.parametrize(
    ("cls", "message", "arms"),
    [
        (DeriveStreamRequest, inference_pb2.DeriveStreamRequest(), "request, cancel"),
        (ResolveStreamRequest, ResolveStreamRequestMessage(), "request"),
    ],
)
def test_a_message_of_a_stream_must_hold_something(cls: type, message: Any, arms: str) -> None:
    assert violations(cls, message) == {"": f"is required: set one of {arms}"}


def test_paths_of_items_begin_at_their_message() -> None:
    message = inference_pb2.DeriveStreamRequest(request=inference_pb2.DeriveRequest(prompt={"text": ""}))
    assert violations(DeriveStreamRequest, message) == {"request.prompt.text": "must not be empty"}
    message.timeout.seconds = -1
    assert set(violations(DeriveStreamRequest, message)) == {"request.prompt.text", "timeout"}
    cancel = inference_pb2.DeriveStreamRequest(cancel={"request_id": "x"}, timeout={"seconds": 1})
    assert set(violations(DeriveStreamRequest, cancel)) == {"timeout"}


def test_a_prompt_has_exactly_one_form() -> None:
    assert list(violations(Prompt, inference_pb2.Prompt())) == [""]
    assert list(violations(Prompt, inference_pb2.Prompt(text=""))) == ["text"]


def test_a_required_enum_names_its_choices() -> None:
    found = violations(NodeIndex, index_pb2.NodeIndex())
    assert found["node_type"].startswith("is required: one of NODE_TYPE_ATTENTION_HEAD, NODE_TYPE_QK_CHANNEL, ")


@pytest.mark.parametrize("members", [AttributedNode, Dimension, GraphNodeKind])
def test_a_required_enum_names_all_of_a_few_choices(members: type[Enum]) -> None:
    choices = enum_codec(members).choices
    assert choices.count(", ") == len(members) - 1
    assert "in all" not in choices


def test_a_required_enum_with_many_members_does_not_print_them_all() -> None:
    text = violations(DerivedScalarIndex, index_pb2.DerivedScalarIndex())["dst"]
    assert f"({len(DerivedScalarType)} in all)" in text
    assert len(text) < 900


def test_an_unknown_number_is_named_beside_the_nearest_known_one() -> None:
    last = list(DerivedScalarType)[-1]
    found = violations(DerivedScalarIndex, ParseDict({"dst": 4000}, index_pb2.DerivedScalarIndex()))
    assert found["dst"] == (
        "4000 is no DerivedScalarType that is known here; "
        f"the nearest is {last.number}, DERIVED_SCALAR_TYPE_{last.name}"
    )


def test_an_index_of_nothing_is_an_error() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", tensor_indices=[{"at": 0}, {}])
    assert list(violations(NodeIndex, message)) == ["tensor_indices[1]"]


def test_only_an_attention_head_has_a_query() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", q_k_or_v="ACTIVATION_LOCATION_TYPE_ATTN_QUERY")
    assert list(violations(NodeIndex, message)) == ["node_type"]


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
    assert list(violations(TraceConfig, message)) == ["attention_trace_type"]


def test_a_chain_of_traces_is_refused_however_long_it_is() -> None:
    v: dict[str, Any] = {"node_index": {"node_type": 1}, "pre_or_post_act": 1, "attention_trace_type": 4}
    message = ParseDict(v, trace_pb2.TraceConfig())
    for _ in range(90):
        outer = ParseDict(v, trace_pb2.TraceConfig())
        outer.downstream_trace_config.CopyFrom(message)
        message = outer
    assert violations(TraceConfig, message) == {
        "downstream_trace_config": f"makes a chain of 90 traces; at most {MAX_TRACE_DEPTH} may follow one another"
    }


@pytest.mark.parametrize("cls", REQUESTS)
@given(data=st.data())
def test_any_message_is_a_value_or_invalid(cls: type, data: st.DataObject) -> None:
    message = data.draw(messages.messages(message_of(cls)))
    value: Any
    value, problems = read_request(cls, message)
    if problems.count:
        assert problems.error().violations
    else:
        assert isinstance(value, cls)
    # What stands in for what is bad is a value itself, and travels.
    assert value is None or read_request(cls, to_wire(value))[1].count == 0


@pytest.mark.parametrize("cls", ANSWERS)
@given(data=st.data())
def test_any_answer_is_a_value_or_data_loss(cls: type, data: st.DataObject) -> None:
    message = data.draw(messages.messages(message_of(cls), depth=4))
    error = outcome(lambda: read_answer(cls, message))
    assert error is None or (isinstance(error, DataLoss) and error.reason is Reason.ANSWER_CORRUPT)


@pytest.mark.parametrize("cls", REQUESTS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_invalid(cls: type, data: bytes) -> None:
    error = outcome(lambda: read(cls, parse(message_of(cls), data)))
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
        read_answer(ContextStatus, message)


def test_an_enum_converts_both_ways_and_says_what_is_wrong() -> None:
    codec = enum_codec(PassType)
    for number, name in [(1, "FORWARD"), (2, "BACKWARD")]:
        assert codec.member_of[number].name == name
        assert codec.number_of[PassType[name]] == number
    assert codec.complaint(0) == "is required: one of PASS_TYPE_FORWARD, PASS_TYPE_BACKWARD"


@pytest.mark.parametrize("sizes", [(0, 2**62), (2**60, 0), (0, 2**31, 2**30), (2**63, 2), (3, 2), (2, 2, 2), ()])
def test_a_sum_whose_axes_do_not_fit_its_bytes_is_data_loss(sizes: tuple[int, ...]) -> None:
    dimensions = [1, 2, 2]  # tokens, and tokens attended to
    axes = [{"dimension": d, "size": size} for d, size in zip(dimensions, sizes, strict=False)]
    message = ParseDict({"dst": 1, "values": {"element_type": 1, "axes": axes}}, explain_pb2.ScalarSum())
    assert isinstance(outcome(lambda: read_answer(ScalarSum, message)), DataLoss)


@pytest.mark.parametrize(
    "sizes", [(2**31 - 1, 2**31 - 1, 0), (0, 2**31, 2**30), (0, 2**62), (2**60, 0), (1,) * 16 + (0,)]
)
def test_a_tensor_without_elements_is_refused_however_long_its_other_axes_are(sizes: tuple[int, ...]) -> None:
    message = intervention_pb2.Intervention(at={"activation_location_type": 1})
    message.add.vector.tensor.axes.extend(tensor_pb2.Axis(size=size) for size in sizes)
    assert set(violations(Intervention, message)) == {"add.vector.tensor.axes"}


# Stand-ins


@pytest.mark.parametrize(
    "values",
    [
        requests.derive_requests(),
        requests.top_k_requests(),
        requests.explain_requests(),
        interventions.interventions(),
        configs.activation_indices(),
        configs.derived_scalar_indices(),
    ],
)
@given(data=st.data())
def test_an_unknown_number_makes_nothing_else_wrong(values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    message = to_wire(value)
    enums = list(enums_of(message))
    assume(enums)
    path, put = data.draw(st.sampled_from(enums))
    put(77777)
    assert read_request(type(value), message)[1].fields == (path,)


def test_an_unknown_tap_makes_no_mean_over_positions_wrong() -> None:
    at = TapSelection(activation_location_type=ActivationLocationType.RESID_POST_MLP, layer_index=1)
    message = to_wire(Intervention(at=at, action=MeanOverRuns(runs=("a",), over_positions=True)))
    message.at.activation_location_type = 77777
    assert read_request(Intervention, message)[1].fields == ("at.activation_location_type",)


def enums_of(message: Any, prefix: str = "") -> Iterator[tuple[str, Callable[[int], object]]]:
    """The path of each enum that is set in *message*, with what overwrites it."""
    for field, content in message.ListFields():
        path = join_path(prefix, field.name)
        if field.enum_type is not None and field.is_repeated:
            yield from ((f"{path}[{i}]", partial(content.__setitem__, i)) for i in range(len(content)))
        elif field.enum_type is not None:
            yield path, partial(setattr, message, field.name)
        elif field.message_type is not None and field.is_repeated:
            for i, each in enumerate(content):
                yield from enums_of(each, f"{path}[{i}]")
        elif field.message_type is not None:
            yield from enums_of(content, path)


def test_what_is_good_is_there_beside_what_is_not() -> None:
    request, problems = read_request(DeriveRequest, derive_request(BAD_REQUEST))
    assert problems.count == len(problems.listed) == 24
    assert request is not None
    assert [spec.dst for spec in request.derived_scalars] == [DerivedScalarType.LOGITS] * 4
    assert len(request.ablation_specs) == 2
    assert request.ablation_specs[0].value == 1.0
    assert (request.model, request.trace_config, request.autoencoders) == (None, None, ())
    assert request.config.trace_config is not None
    assert request.config.layer_indices is None


def test_a_bad_element_leaves_the_others_in_their_places() -> None:
    message = explain_pb2.TopKRequest(
        runs=[{"prompt": {"text": "x"}}, {"prompt": {"text": ""}}, {"prompt": {"text": "y"}}],
        groups=[{"group_id": "a", "dsts": [20, 999]}, {"group_id": "b", "dsts": [20], "k": 0}, {"dsts": [20]}],
    )
    request, problems = read_request(TopKRequest, message)
    assert sorted(problems.fields) == ["groups[0].dsts[1]", "groups[1].k", "groups[2].group_id", "runs[1].prompt.text"]
    assert request is not None
    assert [run.prompt for run in request.runs] == [Prompt(text="x"), Prompt(token_ids=(0,)), Prompt(text="y")]
    assert len(request.groups) == 3
    assert request.groups[1].group_id == "b"


def test_elements_that_exclude_one_another_are_replaced_one_by_one() -> None:
    message = explain_pb2.ExplainRequest(
        runs=[{"prompt": {"text": "x"}}],
        groups=[{"group_id": "a", "dsts": [20]}, {"group_id": "a", "dsts": [20]}, {"group_id": "b", "dsts": [20]}],
    )
    request, problems = read_request(ExplainRequest, message)
    assert problems.fields == ("groups[1].group_id",)
    assert request is not None
    first, second, third = (group.group_id for group in request.groups)
    assert (first, third) == ("a", "b")
    assert second not in {"a", "b"}


def test_a_request_of_which_nothing_is_left_is_no_value() -> None:
    request, problems = read_request(TopKRequest, explain_pb2.TopKRequest())
    assert request is None
    assert set(problems.fields) == {"runs", "groups"}


@pytest.mark.parametrize("cls", [*REQUESTS, *(cls for cls in ANSWERS if cls is not NodeTable), TableGroup])
def test_whatever_is_bad_has_a_stand_in_that_is_none(cls: type) -> None:
    fields = codec_of(cls).fields
    for make in (*fields.stand_ins.values(), *fields.elements.values()):
        value = make()
        if dataclasses.is_dataclass(value):
            assert read_request(type(value), to_wire(value))[1].count == 0


def test_what_stands_for_an_intervention_hides_nothing() -> None:
    message = intervention_pb2.Intervention(at={"activation_location_type": 1, "pass_type": 2})
    assert set(violations(Intervention, message)) == {""}
    message.scale.factor = 2.0
    assert set(violations(Intervention, message)) == {"at.pass_type"}
    message.add.vector.tensor.axes.add(size=3)
    assert set(violations(Intervention, message)) == {"add.vector.tensor.data", "at.pass_type"}


# Many


def test_of_many_violations_the_first_are_listed_and_all_are_counted() -> None:
    message = inference_pb2.DeriveRequest(prompt={"text": "x"}, derived_scalars=[{"dst": 999}] * 1000)
    with pytest.raises(InvalidRequest, match=r"and 900 more$") as caught:
        read(DeriveRequest, message)
    assert len(caught.value.violations) == MAX_VIOLATIONS == 100
    assert caught.value.omitted == 900
    assert caught.value.violations[99].field == "derived_scalars[99].dst"


def test_what_can_only_be_counted_is_not_looked_at_closely() -> None:
    """Else a message of 180 KB, 90 times a thousand empty interventions, takes 5 s to refuse."""

    def n_calls(n_interventions: int) -> int:
        calls: Counter[str] = Counter()
        message = inference_pb2.DeriveRequest(prompt={"text": "x"}, interventions=[{}] * n_interventions)
        sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
        try:
            read_request(DeriveRequest, message)
        finally:
            sys.setprofile(None)
        return calls["call"]

    n_calls(1)  # what is kept of the classes' fields
    assert n_calls(1100) - n_calls(100) <= 20 * 1000


def test_what_can_only_be_counted_is_bad_where_only_a_rule_of_its_own_is_broken() -> None:
    """Else what it is a part of is made of it."""
    settings = [{"nodes": [""]}] * (MAX_VIOLATIONS + 1)  # each breaks a rule of the setting, not of a field
    message = graph_probe_pb2.ProbeGraphRequest(graph="g", interventions={"interventions": [{"settings": settings}]})
    value, problems = read_request(ProbeGraphRequest, message)
    assert value is None
    assert problems.count > MAX_VIOLATIONS


@pytest.mark.parametrize(
    "bad",
    [
        lambda n: inference_pb2.DeriveRequest(derived_scalars=[{"dst": 999}] * n),
        lambda n: inference_pb2.DeriveRequest(autoencoders=["no name"] * n),
        lambda n: inference_pb2.DeriveRequest(config={"layer_indices": {"layer_indices": [1] * n}}),
        lambda n: inference_pb2.DeriveRequest(
            ablation_specs=[{"index": {"activation_location_type": 1, "tensor_indices": [{}]}}] * n
        ),
        lambda n: inference_pb2.DeriveRequest(
            config={"autoencoder_config": {"autoencoder_path_by_layer_index": [{"layer_index": 1, "path": ""}] * n}}
        ),
    ],
)
def test_reading_what_is_bad_takes_time_in_proportion_to_it(bad: Callable[[int], Any]) -> None:
    def seconds(n: int) -> float:
        message = bad(n)
        times = []
        for _ in range(3):
            started = time.process_time()
            read_request(DeriveRequest, message)
            times.append(time.process_time() - started)
        return min(times)

    seconds(10)
    # Ten times as much takes about ten times as long; a hundred times if it were the square.
    assert seconds(20_000) < 40 * seconds(2000)


def test_a_rule_about_all_parts_together_is_not_checked_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 200 interventions that each name 1000 runs, of which no 10,000 may be read, take a minute to refuse."""
    checks: Counter[str] = Counter()
    check = DeriveRequest.__post_init__

    def counted(request: DeriveRequest) -> None:
        checks.update(["request"])
        check(request)

    monkeypatch.setattr(DeriveRequest, "__post_init__", counted)
    means = [
        intervention_pb2.Intervention(at={"activation_location_type": 1}, mean={"runs": ["a"] * 300})
        for _ in range(100)
    ]
    message = inference_pb2.DeriveRequest(
        prompt={"text": "x"}, source_runs=[{"name": "a", "prompt": {"text": "y"}}], interventions=means
    )
    request, problems = read_request(DeriveRequest, message)
    assert [one.description for one in problems.listed] == [
        "reads 30000 runs, those that these read included; at most 10000 may be read"
    ]
    assert request is not None
    assert checks.total() < 10
