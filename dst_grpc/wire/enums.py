"""Enums of messages and of the domain, converted by name.

A wire value's name is its enum's prefix and the domain member's: `NODE_TYPE_MLP_NEURON` is `NodeType.MLP_NEURON`. The
meaning of an unspecified number depends on the field, so `codec` handles it.
"""

from __future__ import annotations

from enum import Enum
from functools import cache, cached_property
from typing import Any, Generic, TypeVar

from dst_grpc.errors import Reason, first_of
from dst_grpc.wire.messages import ENUMS

E = TypeVar("E", bound=Enum)

_MAX_NAMES_SHOWN = 16
_UNSPECIFIED = "UNSPECIFIED"
_RENAMED: dict[type[Enum], str] = {Reason: "ErrorReason"}
"""The only enum whose name on the wire is not the domain's."""


class EnumCodec(Generic[E]):
    """One enum, both ways."""

    def __init__(self, members: type[E]) -> None:
        """Pair the members by name; raises KeyError if dst.v1 lacks the enum or one of its members."""
        self.members = members
        self.descriptor = ENUMS[_RENAMED.get(members, members.__name__)]
        values = self.descriptor.values_by_name
        zero: str = self.descriptor.values_by_number[0].name
        self._prefix = zero.removesuffix(_UNSPECIFIED)
        self.number_of: dict[E, int] = {member: values[self._prefix + member.name].number for member in members}
        """The number of each member in messages."""
        self.member_of: dict[int, E] = {number: member for member, number in self.number_of.items()}
        """The member of each number, without 0 (unspecified) and unknown ones."""

    def name(self, member: E) -> str:
        """The member's name as JSON clients send it."""
        return f"{self._prefix}{member.name}"

    @cached_property
    def choices(self) -> str:
        """The members' names for a sentence, cut short where there are many."""
        return f"one of {first_of(map(self.name, self.members), _MAX_NAMES_SHOWN)}"

    def complaint(self, number: int) -> str:
        """The violation of a *number* that is not a member's, where a member is required."""
        if number == 0:
            return f"is required: {self.choices}"
        nearest = min(self.member_of, key=lambda known: (abs(known - number), known))
        return (
            f"{number} is no {self.descriptor.name} that is known here; "
            f"the nearest is {nearest}, {self.name(self.member_of[nearest])}"
        )


@cache
def enum_codec(members: type[E]) -> EnumCodec[E]:
    """The codec of a domain enum."""
    return EnumCodec(members)


def number_of(member: Enum) -> Any:
    """The number of *member* in messages; typed Any because generated stubs want their own nominal int."""
    return enum_codec(type(member)).number_of[member]
