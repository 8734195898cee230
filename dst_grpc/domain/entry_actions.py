"""Actions that change entries by numbers of the request: set, add, scale, and stopping the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.actions import Action, Context, Values, check_finite, check_vectors
from dst_grpc.domain.components import PassType
from dst_grpc.domain.directions import Direction
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class SetValue(Action):
    """Overwrites the selected entries."""

    arm = "set"
    pass_types = frozenset(PassType)
    scalar: float | None = None
    """One number for all; None if a tensor is given. Rounded to the model's element type when it is used."""
    tensor: RequestTensor | None = None
    """A number for each, broadcast to the selected entries as in numpy."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.scalar is None) == (self.tensor is None):
            problems.add("", "give exactly one of scalar and tensor")
        check_finite(problems, "scalar", self.scalar)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """The numbers."""
        del x
        return context.tensor(self.tensor) if self.scalar is None and self.tensor is not None else self.scalar or 0.0

    def check(self, problems: Violations, at: TapSelection) -> None:
        """Gradients can only be set to one number."""
        Action.check(self, problems, at)
        if at.pass_type is PassType.BACKWARD and self.tensor is not None:
            problems.add("set.tensor", "must be absent: gradients are set to one number")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddVector(Action):
    """Adds a vector, times a factor, to the selected entries (steering)."""

    arm = "add"
    vector: RequestTensor | None = None
    """The vector, broadcast to the selected entries as in numpy; None if a direction is given."""
    factor: float = 1.0
    """The factor."""
    direction: Direction | None = None
    """The vector as a direction, along the last axis; None if a vector is given."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given, and the factor; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.vector is None) == (self.direction is None):
            problems.add("", "give exactly one of vector and direction")
        check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + factor * vector."""
        if self.direction is not None:
            return x + context.vector(self.direction) * self.factor
        return x if self.vector is None else x + context.tensor(self.vector) * self.factor

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A direction needs vectors."""
        Action.check(self, problems, at)
        if self.direction is not None:
            check_vectors(problems, at, self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleValue(Action):
    """Multiplies the selected entries by a factor: 0 ablates them, 1 changes nothing."""

    arm = "scale"
    factor: float
    """The factor."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return factor * x."""
        del context
        return x * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachGradient(Action):
    """Stops the gradient at the selected entries. For gradients only."""

    arm = "detach"
    pass_types = frozenset({PassType.BACKWARD})

    def apply(self, x: Values, context: Context) -> Values | float:
        """0."""
        del x, context
        return 0.0
