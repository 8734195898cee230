"""Messages mirror the domain field for field, but for the exceptions that are named."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any, get_type_hints

import pytest

from dst_grpc import domain
from dst_grpc._gen.dst.v1 import explain_pb2
from dst_grpc.domain.explanations import NodeTable, PartKind
from dst_grpc.domain.indices import AttnSubActivationIndex, AttnSubNodeIndex
from dst_grpc.domain.results import SparseTensor
from dst_grpc.wire import tables
from dst_grpc.wire.codec import codec_of
from dst_grpc.wire.messages import MESSAGES
from dst_grpc.wire.particulars import COMPUTED, MESSAGE_NAMES, SPECIFIC

BY_HAND = {NodeTable, SparseTensor}
"""A table is read and written by columns. A sparse tensor is never a message: its pieces are chunks."""
NOT_OF_THE_DOMAIN = {
    # What wraps a single value or a list so that it may be absent or one of several.
    "AllPositions",
    "AttendedToken",
    "AutoencoderPath",
    "AxisSelection",
    "LayerIndices",
    "MultiAutoencoderContext",
    "Tensor",
    "TensorIndex",
    "TokenIds",
    # A table, and its rows.
    "NodeTable",
    "TableNode",
    # What frames and messages of answers hold, which `wire.frames` makes and `wire.assembly` reads.
    "AttributeFrame",
    "AttributeResponse",
    "PatchFrame",
    "PatchResponse",
    "CircuitFrame",
    "CircuitResponse",
    "GraphFrame",
    "GraphResponse",
    "GraphProbeFrame",
    "ProbeGraphResponse",
    "QueryGraphResponse",
    "DeriveFrame",
    "DeriveResponse",
    "DeriveStreamResponse",
    "ExplainFrame",
    "ExplainResponse",
    "ResolveFrame",
    "ResolveResponse",
    "ResolveStreamResponse",
    "SparseTensor",
    "TensorChunk",
    "TopKFrame",
    "TopKResponse",
    # Requests and responses of calls that hold a few plain fields, or values that have classes.
    "DeleteTensorRequest",
    "DeleteTensorResponse",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "DropGraphRequest",
    "DropGraphResponse",
    "GetModelRequest",
    "GetModelResponse",
    "GetServerInfoRequest",
    "ListAutoencodersRequest",
    "ListAutoencodersResponse",
    "ListContextsRequest",
    "ListContextsResponse",
    "ListDerivedScalarTypesRequest",
    "ListDerivedScalarTypesResponse",
    "ListGraphsRequest",
    "ListGraphsResponse",
    "ListModelsRequest",
    "ListModelsResponse",
    "LoadContextRequest",
    "LoadContextResponse",
    "PutTensorRequest",
    "ReloadRegistryRequest",
    "TokenizeRequest",
    "TokenizeResponse",
    "UnloadContextRequest",
    "UnloadContextResponse",
    "UnpinContextRequest",
    "UnpinContextResponse",
    "WatchContextsRequest",
    "WatchContextsResponse",
}
"""Messages without a class of their name."""


def _classes() -> dict[str, type]:
    """The classes that travel, by the names of their messages."""
    modules = [
        importlib.import_module(f"{domain.__name__}.{found.name}") for found in pkgutil.iter_modules(domain.__path__)
    ]
    found: dict[str, type] = {}
    for module in (*modules, tables):
        for cls in vars(module).values():
            if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__:
                name = MESSAGE_NAMES.get(cls, cls.__name__)
                if name in MESSAGES and cls not in BY_HAND and cls not in {one for _, one in SPECIFIC.values()}:
                    found[name] = cls
    return found


CLASSES = _classes()


def _fields_of(descriptor: Any, names: set[str]) -> set[str]:
    """The fields of a message, a oneof that is one of *names* in place of its arms."""
    found = {field.name for field in descriptor.fields}
    for oneof in descriptor.oneofs:
        if oneof.name in names:
            found = {oneof.name} | (found - {field.name for field in oneof.fields})
    return found


def test_every_message_has_a_class_of_its_name_or_is_named_here() -> None:
    assert set(MESSAGES) == set(CLASSES) | NOT_OF_THE_DOMAIN
    assert not set(CLASSES) & NOT_OF_THE_DOMAIN
    assert len(CLASSES) > 55


@pytest.mark.parametrize("name", CLASSES)
def test_a_message_has_the_fields_of_its_class(name: str) -> None:
    cls: Any = CLASSES[name]
    names = {field.name for field in dataclasses.fields(cls)} | set(COMPUTED.get(cls, ()))
    extra = {SPECIFIC[cls][0]} if cls in SPECIFIC else set()
    assert names | extra == _fields_of(MESSAGES[name].DESCRIPTOR, names)


@pytest.mark.parametrize(("cls", "field"), [(AttnSubNodeIndex, "q_k_or_v"), (AttnSubActivationIndex, "q_or_k")])
def test_a_more_specific_class_has_one_field_more(cls: Any, field: str) -> None:
    (base,) = cls.__bases__
    assert SPECIFIC[base] == (field, cls)
    more = {one.name for one in dataclasses.fields(cls)} - {one.name for one in dataclasses.fields(base)}
    assert more == {field}


@pytest.mark.parametrize("name", CLASSES)
def test_what_may_be_none_has_presence_on_the_wire(name: str) -> None:
    descriptor = MESSAGES[name].DESCRIPTOR
    for field, hint in get_type_hints(CLASSES[name]).items():
        wire = descriptor.fields_by_name.get(field)
        if wire is None or type(None) not in getattr(hint, "__args__", ()):
            continue
        # An unspecified enum is absent too, and an empty text.
        assert wire.has_presence or wire.enum_type is not None or wire.type == wire.TYPE_STRING, field


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_codec(name: str) -> None:
    codec = codec_of(CLASSES[name])
    assert codec.message_class is MESSAGES[name]
    assert set(codec.fields.stand_ins) == {field.name for field in dataclasses.fields(CLASSES[name])}


@pytest.mark.parametrize("message", [explain_pb2.ExplainFrame, explain_pb2.TopKFrame])
def test_the_kinds_of_parts_are_those_of_the_frames(message: Any) -> None:
    kinds = [kind.value for kind in PartKind]
    arms = [field.name for field in message.DESCRIPTOR.oneofs_by_name["frame"].fields]
    assert arms == [kind for kind in kinds if kind in arms]
    if message is explain_pb2.ExplainFrame:
        assert arms == kinds
