"""Actions along a direction of a tap's last axis: clamp, project out, swap, and adding in proportion to the norm.

Below, v is the direction's vector, v̂ = v / |v|, x a selected vector, and x·v̂ its inner product with v̂.
"""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.actions import Action, Context, Values, check_finite, check_vectors
from dst_grpc.domain.directions import Direction
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampValue(Action):
    """Brings x·v̂ between two limits; without a direction, every selected entry."""

    arm = "clamp"
    direction: Direction | None = None
    """The direction; None = each entry by itself."""
    minimum: float | None = None
    """The lower limit; None = there is none."""
    maximum: float | None = None
    """The upper limit; None = there is none. If it is the minimum, that is the new value."""

    def __post_init__(self) -> None:
        """Check the limits; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_finite(problems, "minimum", self.minimum)
        check_finite(problems, "maximum", self.maximum)
        if self.minimum is None and self.maximum is None:
            problems.add("", "give minimum, maximum or both")
        elif self.minimum is not None and self.maximum is not None:
            above = f"must not be below minimum, {self.minimum}, but is {self.maximum}"
            problems.check(not self.minimum > self.maximum, "maximum", above)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + (limited(x·v̂) - x·v̂) v̂; without a direction, limited(x)."""
        if self.direction is None:
            return context.limited(x, self.minimum, self.maximum)
        unit = context.unit(self.direction)
        along = context.dot(x, unit)
        return x + (context.limited(along, self.minimum, self.maximum) - along) * unit

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A direction needs vectors."""
        Action.check(self, problems, at)
        if self.direction is not None:
            check_vectors(problems, at, self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOut(Action):
    """Removes the component along a direction, or multiplies it by a factor."""

    arm = "project_out"
    direction: Direction
    """The direction."""
    factor: float = 0.0
    """What the component is multiplied by: 0 removes it, 1 changes nothing."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + (factor - 1) (x·v̂) v̂."""
        unit = context.unit(self.direction)
        return x + context.dot(x, unit) * (self.factor - 1) * unit

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A direction needs vectors."""
        Action.check(self, problems, at)
        check_vectors(problems, at, self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNormScaled(Action):
    """Adds a direction's vector in proportion to the norm of what it is added to."""

    arm = "add_norm_scaled"
    direction: Direction
    """The vector."""
    factor: float
    """Its factor."""
    cap: float | None = None
    """Upper limit of the norm of what is added, in norms of what it is added to; None = there is none."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_finite(problems, "factor", self.factor)
        check_finite(problems, "cap", self.cap)
        if self.cap is not None:
            problems.check(not self.cap < 0, "cap", f"must not be negative, but is {self.cap}")
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + factor |x| v, where what is added is cut to a norm of cap |x|."""
        if self.cap is None:
            return x + context.norm(x) * self.factor * context.vector(self.direction)
        length = context.limited(context.norm(context.vector(self.direction)) * abs(self.factor), None, self.cap)
        sign = -1.0 if self.factor < 0 else 1.0
        return x + context.norm(x) * length * sign * context.unit(self.direction)

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A direction needs vectors."""
        Action.check(self, problems, at)
        check_vectors(problems, at, self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapDirections(Action):
    """Turns the component along one direction into the same component along another."""

    arm = "swap"
    direction: Direction
    """The direction whose component is taken."""
    target: Direction
    """The direction that gets it."""

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + (x·v̂) (t̂ - v̂), t being the target."""
        unit = context.unit(self.direction)
        return x + context.dot(x, unit) * (context.unit(self.target) - unit)

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A direction needs vectors."""
        Action.check(self, problems, at)
        check_vectors(problems, at, self.arm)
