"""Actions: what an intervention does to the selected entries of a tap.

An action is a value with its own formula: the new entries as a function of the selected ones, written with the
arithmetic that every array library has. A new kind of intervention is a new subclass of `Action`, and an arm of the
message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Protocol, Self

from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest finite float32."""


class Values(Protocol):
    """An array with arithmetic; in the engine, a tensor."""

    def __add__(self, other: Any, /) -> Self:
        """Sum by entries."""

    def __mul__(self, other: Any, /) -> Self:
        """Product by entries."""

    def __len__(self) -> int:
        """Size of the first axis."""

    def sum(self, axis: int, /) -> Self:
        """Sum along an axis."""


class Positions(Enum):
    """Which tokens of another run an action reads."""

    SAME = "same"
    """Those that it changes, by their numbers."""
    ALL = "all"
    """All."""


class Context(Protocol):
    """What an action may read besides the entries that it changes."""

    def tensor(self, tensor: RequestTensor) -> Values:
        """A tensor of the request, in the run's element type and on its device."""

    def of_run(self, name: str, positions: Positions | int = Positions.SAME) -> Values:
        """The same entries in another run, one that `Action.readings` names, but at other *positions* of tokens if
        they are given: all tokens, or a single one, counted from the end if negative."""


UNCHANGED = "unchanged"
"""The name of this run itself, as it is without any intervention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A run whose values an action reads."""

    run: str
    """Its name; UNCHANGED is always known."""
    path: str = ""
    """The field that names it, below the intervention; empty if none does."""
    positions: Positions | int = Positions.SAME
    """Which of its tokens are read."""


@dataclass(frozen=True, slots=True)
class Action(ABC):
    """What an intervention does. A subclass is a frozen dataclass whose fields are those of its message."""

    arm: ClassVar[str]
    """Its name among the arms of Intervention."""
    pass_types: ClassVar[frozenset[PassType]] = frozenset({PassType.FORWARD})
    """Passes in which it makes sense."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The runs whose values it reads."""
        return ()

    @abstractmethod
    def apply(self, x: Values, context: Context) -> Values | float:
        """What the selected entries *x* are replaced by, or a number for all of them."""

    def check(self, problems: Violations, at: TapSelection) -> None:
        """Note what is wrong with it at a selection, by fields of Intervention."""
        if at.pass_type not in self.pass_types:
            known = json_names(each for each in PassType if each in self.pass_types)
            problems.add("at.pass_type", f"must be {known} for {self.arm!r}, not {json_name(at.pass_type)}")

    @property
    def tensors(self) -> Mapping[str, RequestTensor]:
        """The tensors of the request that it reads, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, RequestTensor)}


def check_finite(problems: Violations, path: str, value: float | None) -> None:
    """Note a number that is not finite, or beyond float32."""
    # Comparison is false for NaN.
    problems.check(
        value is None or abs(value) <= MAX_FLOAT32, path, f"must be finite and within float32's range, not {value}"
    )
