"""The law of the wire: whatever a value is, reading what was written of it gives an equal value."""

from __future__ import annotations

import dataclasses
import pkgutil
import struct
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc import domain
from dst_grpc._gen.dst.v1 import config_pb2, explain_pb2, index_pb2, inference_pb2, trace_pb2
from dst_grpc.domain.components import InferenceEngineType, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest
from dst_grpc.domain.indices import AttnSubActivationIndex, AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.domain.resolution import ContextStatus
from dst_grpc.domain.results import SparseTensor
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.domain.type_info import DerivedScalarTypeInfo
from dst_grpc.wire.codec import codec_of, read, to_wire
from dst_grpc.wire.durations import duration_to_wire, seconds_from_wire
from dst_grpc.wire.enums import number_of
from dst_grpc.wire.parsing import parse
from tests.arbitrary.answers import values_of
from tests.arbitrary.errors import dst_errors
from tests.comparing import same


def has_message(cls: type) -> bool:
    """Whether there is a message of its name."""
    try:
        codec_of(cls)
    except TypeError:
        return False
    return True


CLASSES: set[type[Any]] = {
    cls
    for module in pkgutil.iter_modules(domain.__path__)
    for cls in vars(import_module(f"{domain.__name__}.{module.name}")).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and has_message(cls)
} - {SparseTensor, AttnSubNodeIndex, AttnSubActivationIndex}
"""Those of the domain that are messages. A sparse tensor never is one, its pieces are chunks; subnodes are nodes."""


def name_of(cls: type) -> str:
    return cls.__name__


def read_again(message: Any, value: Any) -> Any:
    """The value in *message*, read as what *value* is; a class of its own is read as its base."""
    cls: Any = type(value)
    return read(cls.__base__ if cls.__name__.startswith("AttnSub") else cls, message)


@pytest.mark.parametrize("cls", sorted(CLASSES, key=str), ids=name_of)
@given(data=st.data())
def test_reading_what_was_written_gives_an_equal_value(cls: type, data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    message = to_wire(value)
    before = message.SerializeToString(deterministic=True)
    assert same(read_again(message, value), value)
    assert same(read_again(parse(type(message), before), value), value)
    assert message.SerializeToString(deterministic=True) == before


def test_absent_and_empty_lists_stay_apart() -> None:
    absent = to_wire(DstConfig())
    empty = to_wire(DstConfig(layer_indices=(), multi_autoencoder_context=()))
    assert (absent.HasField("layer_indices"), empty.HasField("layer_indices")) == (False, True)
    assert read(DstConfig, absent).layer_indices is None
    assert read(DstConfig, empty).layer_indices == ()
    assert read(DstConfig, empty).multi_autoencoder_context == ()


def test_layer_zero_is_not_no_layer() -> None:
    message = index_pb2.NodeIndex(node_type="NODE_TYPE_MLP_NEURON", layer_index=0)
    assert read(NodeIndex, message).layer_index == 0
    message.ClearField("layer_index")
    assert read(NodeIndex, message).layer_index is None


def test_what_is_unspecified_has_the_documented_default() -> None:
    message = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text="x"))
    assert read(DeriveRequest, message) == DeriveRequest(
        prompt=Prompt(text="x"),
        element_type=TensorElementType.FLOAT32,
        encoding=TensorEncoding.DENSE,
        config=DstConfig(inference_engine_type=InferenceEngineType.STANDARD),
        detach_final_layer_norm_scale=None,
    )
    assert read(NodeIndex, index_pb2.NodeIndex(node_type="NODE_TYPE_LAYER")).pass_type is PassType.FORWARD
    asked = read(ExplainRequest, explain_pb2.ExplainRequest(runs=[{"prompt": {"text": "x"}}]))
    assert asked == ExplainRequest(runs=asked.runs)


def test_an_empty_text_is_an_absent_one_everywhere() -> None:
    message = config_pb2.DstConfig(
        model_name="", model_context="", autoencoder_context="", device_for_raw_activations=""
    )
    assert message.HasField("model_name")
    assert read(DstConfig, message) == DstConfig()
    request = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text="x"), model="", request_id="")
    assert read(DeriveRequest, request).model is None


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [
        (TensorElementType.FLOAT32, "<f4"),
        (TensorElementType.FLOAT16, "<f2"),
        (TensorElementType.BFLOAT16, "<u2"),
        (None, "<f4"),
    ],
)
def test_a_tensor_of_a_request_may_be_of_any_floats(element_type: TensorElementType | None, dtype: str) -> None:
    values = np.array([1.0, -2.0, 0.5, 0.0], np.float32)
    stored = values.view(np.uint32) >> 16 if element_type is TensorElementType.BFLOAT16 else values
    message = to_wire(RequestTensor(tensor=values))
    message.tensor.element_type = 0 if element_type is None else number_of(element_type)
    message.tensor.data = stored.astype(dtype).tobytes()
    found = read(RequestTensor, message).tensor
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == values.tolist()


def test_a_trace_of_traces_is_read_to_its_end() -> None:
    v: dict[str, Any] = {"node_index": {"node_type": 1}, "pre_or_post_act": 1, "attention_trace_type": 4}
    message = trace_pb2.TraceConfig(**v)
    for _ in range(7):
        message = trace_pb2.TraceConfig(**v, downstream_trace_config=message)
    assert read(TraceConfig, message).depth == 8


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
    @given(values_of(ContextStatus), dst_errors())
    def check(status: Any, error: Any) -> None:
        failed = dataclasses.replace(status, error=error)
        found = read(ContextStatus, to_wire(failed))
        assert dataclasses.replace(found, error=None) == dataclasses.replace(status, error=None)
        assert found.error is not None
        assert (type(found.error), found.error.reason) == (type(error), error.reason)

    check()


def test_the_catalogue_says_of_every_type_what_the_facts_say() -> None:
    for dst, facts in FACTS.items():
        info = DerivedScalarTypeInfo.of(dst)
        message = to_wire(info)
        assert message.dst == dst.number
        assert message.name == dst.value
        assert len(message.dimensions) == len(facts.dimensions)
        assert tuple(message.needs_fields) == facts.required_config_fields
        assert message.formula
        assert message.accepts_derive_gradients or not message.yields_backward
        assert set(message.needs_fields) <= {field.name for field in config_pb2.DstConfig.DESCRIPTOR.fields}
