"""The enums of the wire, of the domain and of the specification have the same members."""

from __future__ import annotations

from enum import Enum

import pytest
from google.protobuf.descriptor import EnumDescriptor

from dst_grpc._gen.dst.v1 import (
    catalog_pb2,
    component_pb2,
    config_pb2,
    context_pb2,
    derived_scalar_type_pb2,
    error_pb2,
    explain_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_pb2,
    trace_pb2,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import Reason
from dst_grpc.wire import enums
from dst_grpc.wire.enums import EnumCodec

FILES = [
    explain_pb2,
    catalog_pb2,
    component_pb2,
    config_pb2,
    context_pb2,
    derived_scalar_type_pb2,
    error_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_pb2,
    trace_pb2,
]
WIRE_ENUMS: dict[str, EnumDescriptor] = {
    name: descriptor for file in FILES for name, descriptor in file.DESCRIPTOR.enum_types_by_name.items()
}
CODECS: dict[str, EnumCodec[Enum]] = {
    codec.wrapper.DESCRIPTOR.name: codec for codec in vars(enums).values() if isinstance(codec, EnumCodec)
}


def test_every_enum_of_the_wire_has_a_domain_enum() -> None:
    assert set(CODECS) == set(WIRE_ENUMS)


@pytest.mark.parametrize("name", WIRE_ENUMS)
def test_an_enum_has_the_same_members_on_both_sides(name: str) -> None:
    values = {value.name: value.number for value in WIRE_ENUMS[name].values}
    (zero,) = [value for value, number in values.items() if number == 0]
    prefix = zero.removesuffix("UNSPECIFIED")
    assert zero == f"{prefix}UNSPECIFIED"
    members = CODECS[name].members
    assert [f"{prefix}{member.name}" for member in members] == [value for value in values if value != zero]
    for member in members:
        number = CODECS[name].to_wire(member)
        assert number == values[prefix + member.name]
        assert CODECS[name].from_wire(number) is member


@pytest.mark.parametrize("name", [name for name in WIRE_ENUMS if name not in {"ErrorReason", "DerivedScalarType"}])
def test_an_enum_bears_the_name_of_its_domain_enum(name: str) -> None:
    assert CODECS[name].members.__name__ == name


def test_types_are_numbered_as_in_the_specification() -> None:
    assert len(DerivedScalarType) == 106
    for dst in DerivedScalarType:
        assert enums.DERIVED_SCALAR_TYPE.to_wire(dst) == dst.number


def test_every_type_has_its_row_of_facts() -> None:
    assert list(FACTS) == list(DerivedScalarType)
    assert all(facts.type is dst for dst, facts in FACTS.items())


def test_error_reasons_are_the_reasons() -> None:
    names = {value.name for value in error_pb2.ErrorReason.DESCRIPTOR.values}
    assert names == {"ERROR_REASON_UNSPECIFIED"} | {f"ERROR_REASON_{reason}" for reason in Reason}
