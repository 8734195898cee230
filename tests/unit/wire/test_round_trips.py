"""The law of the wire: whatever a value is, reading what was written of it gives an equal value."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import config_pb2, index_pb2, inference_pb2
from dst_grpc.domain.components import InferenceEngineType, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.domain.scalars import FACTS
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
from dst_grpc.wire._durations import duration_to_wire, seconds_from_wire
from dst_grpc.wire.parsing import parse
from tests import strategies
from tests.comparing import same

CASES = {
    "node_index": (strategies.node_indices(), indices),
    "activation_index": (strategies.activation_indices(), indices),
    "derived_scalar_index": (strategies.derived_scalar_indices(), indices),
    "trace_config": (strategies.trace_configs(), trace),
    "autoencoder_config": (strategies.autoencoder_configs(), config),
    "dst_config": (strategies.dst_configs(), config),
    "loss_fn_config": (strategies.loss_fn_configs(), config),
    "ablation_spec": (strategies.ablation_specs(), config),
    "prompt": (strategies.prompts, requests),
    "derived_scalar_spec": (strategies.derived_scalar_specs, requests),
    "derive_request": (strategies.derive_requests(), requests),
    "resolve_request": (strategies.resolve_requests, requests),
    "tensor_info": (strategies.tensor_infos(), results),
    "header": (strategies.answer_headers(), results),
    "statistics": (strategies.run_statistics, results),
    "provenance": (strategies.provenances, results),
    "trailer": (strategies.answer_trailers, results),
    "model_dimensions": (strategies.model_dimensions, catalog),
    "architecture": (strategies.architectures, catalog),
    "unsupported_type": (strategies.unsupported_types, catalog),
    "model_info": (strategies.model_infos, catalog),
    "layer_check": (strategies.layer_checks, catalog),
    "autoencoder_info": (strategies.autoencoder_infos, catalog),
    "context_status": (strategies.context_statuses, contexts),
    "registry_change": (strategies.registry_changes, contexts),
    "validated": (strategies.validateds, resolution),
    "load_progress": (strategies.load_progresses, resolution),
    "scalar_resolution": (strategies.scalar_resolutions, resolution),
    "cost_estimate": (strategies.cost_estimates, resolution),
    "resolution": (strategies.resolutions, resolution),
    "top_k_group": (strategies.top_k_groups(), explain),
    "top_k_request": (strategies.top_k_requests(), explain),
    "node_ablation": (strategies.node_ablations(), explain),
    "explain_run": (strategies.explain_runs, explain),
    "explain_request": (strategies.explain_requests(), explain),
    "run_header": (strategies.run_headers, explanations),
    "scalar_sum": (strategies.scalar_sums(), explanations),
    "completeness": (strategies.completenesses, explanations),
    "group_values": (strategies.group_values(3), explanations),
    "node_table": (strategies.node_tables(), explanations),
    "token_score": (strategies.token_scores, explanations),
    "node_tokens": (strategies.node_tokens, explanations),
    "scored_tokens": (strategies.scored_tokens, explanations),
    "node_token_pairs": (strategies.node_token_pairs, explanations),
    "token_pairs": (strategies.token_pairs, explanations),
    "runs_trailer": (strategies.runs_trailers, explanations),
    "top_k_response": (strategies.explanation_parts(strategies.TOP_K_KINDS), explanations),
    "explain_response": (strategies.explanation_parts(), explanations),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_reading_what_was_written_gives_an_equal_value(name: str, data: st.DataObject) -> None:
    values, module = CASES[name]
    value = data.draw(values)
    message = getattr(module, f"{name}_to_wire")(value)
    read = getattr(module, f"{name}_from_wire")
    assert same(read(message), value)
    assert same(read(parse(type(message), message.SerializeToString())), value)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_converting_changes_neither_side(name: str, data: st.DataObject) -> None:
    values, module = CASES[name]
    message = getattr(module, f"{name}_to_wire")(data.draw(values))
    before = message.SerializeToString(deterministic=True)
    getattr(module, f"{name}_from_wire")(message)
    assert message.SerializeToString(deterministic=True) == before


def test_absent_and_empty_lists_stay_apart() -> None:
    absent = config.dst_config_to_wire(DstConfig())
    empty = config.dst_config_to_wire(DstConfig(layer_indices=(), multi_autoencoder_context=()))
    assert (absent.HasField("layer_indices"), empty.HasField("layer_indices")) == (False, True)
    assert config.dst_config_from_wire(absent).layer_indices is None
    assert config.dst_config_from_wire(empty).layer_indices == ()
    assert config.dst_config_from_wire(empty).multi_autoencoder_context == ()


def test_layer_zero_is_not_no_layer() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", layer_index=0)
    assert indices.node_index_from_wire(message).layer_index == 0
    message.ClearField("layer_index")
    assert indices.node_index_from_wire(message).layer_index is None


def test_what_is_unspecified_has_the_documented_default() -> None:
    message = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text="x"))
    assert requests.derive_request_from_wire(message) == DeriveRequest(
        prompt=Prompt(text="x"),
        element_type=TensorElementType.FLOAT32,
        encoding=TensorEncoding.DENSE,
        config=DstConfig(inference_engine_type=InferenceEngineType.STANDARD),
    )
    node = index_pb2.NodeIndex(node_type="NODE_TYPE_LAYER")
    assert indices.node_index_from_wire(node).pass_type is PassType.FORWARD


@given(st.integers(0, 2**32 - 1).map(lambda bits: struct.unpack("<f", struct.pack("<I", bits))[0]))
def test_a_value_to_put_in_is_exact_in_binary32(value: float) -> None:
    message = config_pb2.AblationSpec(value=value)
    assert struct.pack("<d", message.value) == struct.pack("<d", value)


@given(st.floats())
def test_every_number_of_seconds_has_a_valid_duration(value: float) -> None:
    duration = duration_to_wire(value)
    assert abs(duration.seconds) <= 315_576_000_000
    assert abs(duration.nanos) < 10**9
    assert duration.seconds * duration.nanos >= 0
    assert seconds_from_wire(duration_to_wire(seconds_from_wire(duration))) == pytest.approx(
        seconds_from_wire(duration)
    )


def test_a_context_that_failed_keeps_its_error() -> None:
    @given(strategies.context_statuses, strategies.dst_errors())
    def check(status: Any, error: Any) -> None:
        failed = dataclasses.replace(status, error=error)
        read = contexts.context_status_from_wire(contexts.context_status_to_wire(failed))
        assert dataclasses.replace(read, error=None) == status
        assert read.error is not None
        assert (type(read.error), read.error.reason) == (type(error), error.reason)

    check()


def test_the_catalogue_says_of_every_type_what_the_facts_say() -> None:
    for dst, facts in FACTS.items():
        message = catalog.scalar_type_info_to_wire(facts)
        assert message.dst == dst.number
        assert message.name == dst.value
        assert len(message.dimensions) == len(facts.dimensions)
        assert tuple(message.needs_fields) == facts.required_config_fields
        assert message.formula
        assert message.accepts_derive_gradients or not message.yields_backward
        assert set(message.needs_fields) <= {field.name for field in config_pb2.DstConfig.DESCRIPTOR.fields}
