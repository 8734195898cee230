"""The enums of the wire, of the domain and of the specification have the same members."""

from __future__ import annotations

import importlib
import pkgutil
from enum import Enum

import pytest

from dst_grpc import domain
from dst_grpc._gen.dst.v1 import error_pb2
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import Reason
from dst_grpc.wire.enums import enum_codec, number_of
from dst_grpc.wire.messages import ENUMS


def _domain_enums() -> dict[str, type[Enum]]:
    """Enums of the domain that the wire has too, by name."""
    modules = [
        importlib.import_module(f"{domain.__name__}.{found.name}") for found in pkgutil.iter_modules(domain.__path__)
    ]
    found = {
        name: cls
        for module in modules
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, Enum) and name in ENUMS
    }
    return found | {"ErrorReason": Reason}


MEMBERS = _domain_enums()


def test_every_enum_of_the_wire_has_a_domain_enum() -> None:
    assert set(MEMBERS) == set(ENUMS)


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_same_members_on_both_sides(name: str) -> None:
    values = {value.name: value.number for value in ENUMS[name].values}
    (zero,) = [value for value, number in values.items() if number == 0]
    prefix = zero.removesuffix("UNSPECIFIED")
    assert zero == f"{prefix}UNSPECIFIED"
    codec = enum_codec(MEMBERS[name])
    assert [codec.name(member) for member in codec.members] == [value for value in values if value != zero]
    for member in codec.members:
        number = number_of(member)
        assert number == values[prefix + member.name]
        assert codec.member_of[number] is member


def test_types_are_numbered_as_in_the_specification() -> None:
    for dst in DerivedScalarType:
        assert number_of(dst) == dst.number


def test_every_type_has_its_row_of_facts() -> None:
    assert list(FACTS) == list(DerivedScalarType)
    assert all(facts.type is dst for dst, facts in FACTS.items())


def test_error_reasons_are_the_reasons() -> None:
    names = {value.name for value in error_pb2.ErrorReason.DESCRIPTOR.values}
    assert names == {"ERROR_REASON_UNSPECIFIED"} | {f"ERROR_REASON_{reason}" for reason in Reason}
