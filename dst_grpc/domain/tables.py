"""Tables of facts: one frozen row per member of an enum, checked for completeness on import.

A fact about a node type, a tap, a derived scalar type or an autoencoder's input is a column of its row: adding or
removing a member is an edit of one table, and no other table is keyed by the members.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class Row(Protocol):
    """A row of facts."""

    @property
    def type(self) -> Any:
        """The member that it is about."""


E = TypeVar("E", bound=Enum)
R = TypeVar("R", bound=Row)


def one_row_each(members: type[E], rows: Iterable[R]) -> dict[E, R]:
    """The *rows* by member, in the order of *members*; raises ValueError unless each member has exactly one."""
    found = tuple(rows)
    counts = Counter(row.type for row in found)
    wrong = [f"{member.name} has {counts[member]}" for member in members if counts[member] != 1]
    if wrong:
        raise ValueError(f"every {members.__name__} has one row of facts, but {', '.join(wrong)}")
    by_member = {row.type: row for row in found}
    return {member: by_member[member] for member in members}
