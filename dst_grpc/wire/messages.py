"""The messages and enums of dst.v1, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    catalog_pb2,
    catalog_service_pb2,
    circuit_pb2,
    component_pb2,
    config_pb2,
    context_pb2,
    context_service_pb2,
    derived_scalar_type_pb2,
    error_pb2,
    explain_pb2,
    graph_pb2,
    graph_probe_pb2,
    index_pb2,
    inference_pb2,
    intervention_pb2,
    pairs_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_pb2,
    tensor_service_pb2,
    trace_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import EnumDescriptor

_FILES: tuple[Any, ...] = (
    attribute_pb2,
    catalog_pb2,
    catalog_service_pb2,
    circuit_pb2,
    component_pb2,
    config_pb2,
    context_pb2,
    context_service_pb2,
    derived_scalar_type_pb2,
    error_pb2,
    explain_pb2,
    graph_pb2,
    graph_probe_pb2,
    index_pb2,
    inference_pb2,
    intervention_pb2,
    pairs_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_pb2,
    tensor_service_pb2,
    trace_pb2,
)

MESSAGES: Mapping[str, type[Message]] = {
    name: getattr(file, name) for file in _FILES for name in file.DESCRIPTOR.message_types_by_name
}
"""The class of each message."""
ENUMS: Mapping[str, EnumDescriptor] = {
    name: enum for file in _FILES for name, enum in file.DESCRIPTOR.enum_types_by_name.items()
}
"""The descriptor of each enum."""
