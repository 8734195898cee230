"""Names of enum members as JSON clients send them, for sentences about fields that hold one."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from enum import Enum

_WORD_STARTS = re.compile(r"(?<!^)(?=[A-Z])")


def json_name(member: Enum) -> str:
    """The member's name in JSON: `NodeType.LAYER` is `NODE_TYPE_LAYER`."""
    return f"{_prefix(type(member))}{member.name}"


@cache
def _prefix(members: type[Enum]) -> str:
    return f"{_WORD_STARTS.sub('_', members.__name__).upper()}_"


def check_member(field: str, value: object, enum: type[Enum]) -> None:
    """Raise TypeError unless *value* is a member of *enum*: a member's text is none, whose facts would be missed."""
    if not isinstance(value, enum):
        raise TypeError(f"{field} must be a member of {enum.__name__}, not {value!r}")


def json_names(members: Iterable[Enum]) -> str:
    """The names of *members* as alternatives: "A, B or C"."""
    names = list(map(json_name, members))
    return " or ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])
