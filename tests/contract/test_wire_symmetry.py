"""Messages mirror the domain field for field, and every value that travels has a function each way."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from dst_grpc import wire
from dst_grpc._gen.dst.v1 import (
    catalog_pb2,
    config_pb2,
    context_pb2,
    explain_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_pb2,
    trace_pb2,
)
from dst_grpc.domain import (
    architecture,
    config,
    explain,
    explanations,
    indices,
    interventions,
    origins,
    requests,
    resolution,
    results,
    trace,
)

PAIRS: list[tuple[Any, Any]] = [
    (indices.AttnSubNodeIndex, index_pb2.NodeIndex),
    (indices.AttnSubActivationIndex, index_pb2.ActivationIndex),
    (indices.DerivedScalarIndex, index_pb2.DerivedScalarIndex),
    (trace.TraceConfig, trace_pb2.TraceConfig),
    (config.AutoencoderConfig, config_pb2.AutoencoderConfig),
    (config.DstConfig, config_pb2.DstConfig),
    (origins.LossFnConfig, config_pb2.LossFnConfig),
    (interventions.AblationSpec, config_pb2.AblationSpec),
    (requests.Prompt, inference_pb2.Prompt),
    (requests.DerivedScalarSpec, inference_pb2.DerivedScalarSpec),
    (requests.DeriveRequest, inference_pb2.DeriveRequest),
    (requests.ResolveRequest, resolution_pb2.ResolveRequest),
    (results.Axis, tensor_pb2.Axis),
    (results.TensorInfo, inference_pb2.TensorInfo),
    (results.AnswerHeader, inference_pb2.Header),
    (results.RunStatistics, inference_pb2.RunStatistics),
    (results.Provenance, inference_pb2.Provenance),
    (results.AnswerTrailer, inference_pb2.Trailer),
    (architecture.Architecture, catalog_pb2.Architecture),
    (architecture.UnsupportedType, catalog_pb2.UnsupportedType),
    (architecture.ModelDimensions, catalog_pb2.ModelDimensions),
    (resolution.ModelInfo, catalog_pb2.ModelInfo),
    (resolution.LayerCheck, catalog_pb2.LayerCheck),
    (resolution.AutoencoderInfo, catalog_pb2.AutoencoderInfo),
    (resolution.TapUse, resolution_pb2.TapUse),
    (resolution.ScalarResolution, resolution_pb2.ScalarResolution),
    (resolution.CostEstimate, resolution_pb2.CostEstimate),
    (resolution.Resolution, resolution_pb2.Resolved),
    (resolution.Validated, resolution_pb2.Validated),
    (resolution.LoadProgress, resolution_pb2.LoadProgress),
    (resolution.ContextStatus, context_pb2.ContextStatus),
    (explain.TopKGroup, explain_pb2.TopKGroup),
    (explain.TopKRequest, explain_pb2.TopKRequest),
    (explain.NodeAblation, explain_pb2.NodeAblation),
    (explain.ExplainRun, explain_pb2.ExplainRun),
    (explain.ExplainRequest, explain_pb2.ExplainRequest),
    (explanations.RunHeader, explain_pb2.RunHeader),
    (explanations.ScalarSum, explain_pb2.ScalarSum),
    (explanations.Completeness, explain_pb2.Completeness),
    (explanations.GroupValues, explain_pb2.GroupValues),
    (explanations.NodeTable, explain_pb2.NodeTable),
    (explanations.TokenScore, explain_pb2.TokenScore),
    (explanations.NodeTokens, explain_pb2.NodeTokens),
    (explanations.ScoredTokens, explain_pb2.ScoredTokens),
    (explanations.NodeTokenPairs, explain_pb2.NodeTokenPairs),
    (explanations.TokenPairs, explain_pb2.TokenPairs),
    (explanations.RunsTrailer, explain_pb2.RunsTrailer),
]
RENAMED = {
    ("AutoencoderInfo", "activations"): "activation",
    ("AutoencoderInfo", "formats"): "format",
    ("AutoencoderInfo", "normalizations"): "normalization",
    ("AutoencoderInfo", "input_norms"): "input_norm",
    ("RunStatistics", "queue_seconds"): "queue_time",
    ("RunStatistics", "pass_seconds"): "pass_time",
    ("RunStatistics", "derive_seconds"): "derive_time",
}
"""Durations carry their unit in their type on the wire, and in their name in the domain; several words are one text on
the wire."""
NAN_IF_NONE = {("LayerCheck", "fraction_of_variance_unexplained")}
"""Numbers that were always there when they were first published: since they may be missing, NaN stands for that."""
ON_THE_WIRE_ONLY = {("TensorInfo", "byte_length"), ("ExplainRun", "attach_final_layer_norm_scale")}
"""What the domain computes, so that clients need not."""
NOT_YET_ON_THE_WIRE = {
    ("DeriveRequest", "interventions"),
    ("DeriveRequest", "detach_final_layer_norm_scale"),
    ("ExplainRun", "interventions"),
    ("ExplainRun", "detach_final_layer_norm_scale"),
}
"""Fields of requests whose messages are to follow."""


@pytest.mark.parametrize(("value", "message"), PAIRS, ids=lambda cls: cls.__name__)
def test_a_message_has_the_fields_of_its_value(value: Any, message: Any) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    fields = {RENAMED.get((descriptor.name, field.name), field.name) for field in dataclasses.fields(value)}
    extra = {field for name, field in ON_THE_WIRE_ONLY if name == descriptor.name}
    fields -= {field for name, field in NOT_YET_ON_THE_WIRE if name == descriptor.name}
    assert fields | extra == {field.name for field in descriptor.fields}


@pytest.mark.parametrize(("value", "message"), PAIRS, ids=lambda cls: cls.__name__)
def test_what_may_be_none_has_presence_on_the_wire(value: Any, message: Any) -> None:
    for field in dataclasses.fields(value):
        if not str(field.type).endswith("| None") or (message.DESCRIPTOR.name, field.name) in NAN_IF_NONE:
            continue
        name = RENAMED.get((message.DESCRIPTOR.name, field.name), field.name)
        if (message.DESCRIPTOR.name, name) in NOT_YET_ON_THE_WIRE:
            continue
        wire_field = message.DESCRIPTOR.fields_by_name[name]
        # An unspecified enum is absent too.
        assert wire_field.has_presence or wire_field.enum_type is not None, name


def _functions() -> dict[str, Any]:
    public = [module.name for module in pkgutil.iter_modules(wire.__path__) if not module.name.startswith("_")]
    return {
        name: function
        for module in public
        for name, function in vars(importlib.import_module(f"dst_grpc.wire.{module}")).items()
        if callable(function) and name.endswith(("_to_wire", "_from_wire")) and not name.startswith("_")
    }


ONE_WAY = {
    "tensor_indices_to_wire",  # read as part of their index, for whose axes they stand
    "tap_use_to_wire",  # read as part of its resolution
    "scalar_type_info_to_wire",  # clients have the table
    "derive_stream_request_from_wire",  # clients wrap a request themselves
    "resolve_stream_request_from_wire",
    "duration_to_wire",
    "seconds_from_wire",
}


@pytest.mark.parametrize("message", [explain_pb2.ExplainResponse, explain_pb2.TopKResponse])
def test_the_kinds_of_parts_are_those_of_the_messages(message: Any) -> None:
    kinds = [kind.value for kind in explanations.PartKind]
    arms = [field.name for field in message.DESCRIPTOR.oneofs_by_name["part"].fields]
    assert arms == [kind for kind in kinds if kind in arms]
    if message is explain_pb2.ExplainResponse:
        assert arms == kinds


def test_what_can_be_written_can_be_read() -> None:
    names = set(_functions()) - ONE_WAY
    written = {name.removesuffix("_to_wire") for name in names if name.endswith("_to_wire")}
    read = {name.removesuffix("_from_wire") for name in names if name.endswith("_from_wire")}
    assert written == read
    assert len(written) > 25


def test_every_conversion_says_what_it_raises() -> None:
    for name, function in _functions().items():
        if name.endswith("_from_wire") and name not in ONE_WAY:
            text = function.__doc__ or ""
            assert "Raises" in text or "Every message is valid" in text, name
