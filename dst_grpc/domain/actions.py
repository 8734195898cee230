"""Actions: what an intervention does to the selected entries of a tap.

An action is a value with its own formula: the new entries as a function of the selected ones, written with the
arithmetic that every array library has. A new kind of intervention is a new subclass of `Action`, and an arm of the
message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Protocol, Self, cast

from dst_grpc.domain.components import Dimension, PassType
from dst_grpc.domain.directions import DifferenceOfMeans, Direction
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

    def __sub__(self, other: Any, /) -> Self:
        """Difference by entries."""

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

    def vector(self, direction: Direction) -> Values:
        """The vector of a direction, which can be added to the selected entries."""

    def unit(self, direction: Direction) -> Values:
        """The vector divided by its norm."""

    def dot(self, x: Values, y: Values) -> Values:
        """Inner products along the last axis, which stays, with size 1."""

    def projected(self, x: Values, subspace: RequestTensor) -> Values:
        """The orthogonal projection of the vectors along the last axis on the span of those of *subspace* [k, n]."""

    def norm(self, x: Values) -> Values:
        """Norms along the last axis, which stays, with size 1."""

    def limited(self, x: Values, minimum: float | None, maximum: float | None) -> Values:
        """Entries below the minimum or above the maximum replaced by it."""


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
        """The runs whose values it reads; here, those of its directions."""
        return tuple(
            Reading(run=name, path=f"{self.arm}.{field}.difference_of_means.{side}[{i}]", positions=_positions(means))
            for field, direction in self.directions.items()
            if isinstance(means := direction.direction, DifferenceOfMeans)
            for side, names in (("runs", means.runs), ("minus_runs", means.minus_runs))
            for i, name in enumerate(names)
        )

    @abstractmethod
    def apply(self, x: Values, context: Context) -> Values | float:
        """What the selected entries *x* are replaced by, or a number for all of them."""

    def check(self, problems: Violations, at: TapSelection) -> None:
        """Note what is wrong with it at a selection, by fields of Intervention."""
        if at.pass_type not in self.pass_types:
            known = json_names(each for each in PassType if each in self.pass_types)
            problems.add("at.pass_type", f"must be {known} for {self.arm!r}, not {json_name(at.pass_type)}")

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Its directions, by field."""
        return {name: value for name, value in self._values if isinstance(value, Direction)}

    @property
    def tensors(self) -> Mapping[str, RequestTensor]:
        """The tensors of the request that it reads, by path."""
        own = {name: value for name, value in self._values if isinstance(value, RequestTensor)}
        of_directions = {
            f"{name}.vector": direction.vector
            for name, direction in self.directions.items()
            if direction.vector is not None
        }
        return {**own, **of_directions}

    @property
    def _values(self) -> Iterable[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in _names_of(type(self)))

    @property
    def key(self) -> Hashable:
        """Equal for equal ones, and hashable: tensors are represented by their identity."""
        return type(self), tuple(map(_key, self._values))

    def with_tensors(self, known: Mapping[RequestTensor, RequestTensor]) -> Self:
        """The same action with the tensors in *known* replaced."""
        changed: dict[str, Any] = {}
        for name, value in self._values:
            if isinstance(value, RequestTensor) and value in known:
                changed[name] = known[value]
            elif isinstance(value, Direction) and value.vector is not None and value.vector in known:
                changed[name] = replace(value, direction=known[value.vector])
        return replace(self, **changed) if changed else self


@cache
def _names_of(cls: type[Action]) -> tuple[str, ...]:
    """The fields of an action."""
    return tuple(field.name for field in fields(cls))


def _key(named: tuple[str, Any]) -> Hashable:
    value: Any = named[1]
    if isinstance(value, RequestTensor):
        return value.identity
    if isinstance(value, Direction) and value.vector is not None:
        return value.vector.identity, value.normalize
    return cast("Hashable", value)


def _positions(means: DifferenceOfMeans) -> Positions | int:
    return Positions.ALL if means.token_index is None else means.token_index


def check_one_token_axis(problems: Violations, field: str, at: TapSelection) -> None:
    """Note a tap that has an entry per pair of tokens, where *field* asks for a mean over positions.

    It is noted of the tap: a tap that cannot be read says nothing about the rest.
    """
    location = at.activation_location_type
    one_axis = not location.facts.is_attention_matrix
    problem = f"{json_name(location)} has two axes of tokens, over which there is no single mean, as {field!r} asks for"
    problems.check(one_axis, "at.activation_location_type", problem)


def check_vectors(problems: Violations, at: TapSelection, arm: str) -> None:
    """Note a selection whose last axis does not hold whole vectors; what happens along directions needs them."""
    location = at.activation_location_type
    last = len(location.dimensions) - 1
    if location.dimensions[last] in {Dimension.ATTN_HEADS, Dimension.SINGLETON}:
        problems.add(
            "at.activation_location_type",
            f"{json_name(location)} has no vectors, which {arm!r} along a direction needs",
        )
    elif at.all_axes[last] is not None:
        problems.add(f"at.axes[{last}]", f"must be the whole axis for {arm!r} along directions")


def check_finite(problems: Violations, path: str, value: float | None) -> None:
    """Note a number that is not finite, or beyond float32."""
    # Comparison is false for NaN.
    problems.check(
        value is None or abs(value) <= MAX_FLOAT32, path, f"must be finite and within float32's range, not {value}"
    )
