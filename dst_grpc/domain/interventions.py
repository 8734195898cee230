"""Interventions: what is changed in a run. Each is a selection of entries of a tap, and an action on them.

An action is a value with its own formula: what it makes of the selected entries, with nothing but the arithmetic that
every array library has. A new kind of intervention is a new subclass of `Action`, and an arm of the message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dst_grpc.domain.components import PassType
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations, join_path

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest finite float32."""


class Values(Protocol):
    """Numbers with arithmetic: of the engine, its tensors."""

    def __add__(self, other: Any, /) -> Values:
        """Sum by entries."""

    def __mul__(self, other: Any, /) -> Values:
        """Product by entries."""


class Context(Protocol):
    """What an action may look at besides the entries that it changes."""

    def tensor(self, tensor: RequestTensor) -> Values:
        """The numbers that the request brought, beside the run's own."""

    def of_run(self, name: str) -> Values:
        """The same entries as another run recorded them: one that `Action.runs` names."""


UNCHANGED = "unchanged"
"""The name of this run itself, as it is without any intervention."""


@dataclass(frozen=True, slots=True)
class Action(ABC):
    """What an intervention does. A subclass is a frozen dataclass whose fields are those of its message."""

    arm: ClassVar[str]
    """Its name among the arms of Intervention."""
    pass_types: ClassVar[frozenset[PassType]] = frozenset({PassType.FORWARD})
    """Passes in which it makes sense."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs whose values it reads; UNCHANGED is always known."""
        return ()

    @abstractmethod
    def apply(self, x: Values, context: Context) -> Values | float:
        """What stands in place of the selected entries *x* afterwards, or a number for all of them."""

    def check(self, problems: Violations, at: TapSelection) -> None:
        """Note, by fields of Intervention, what is wrong with it at a selection."""
        if at.pass_type not in self.pass_types:
            known = " or ".join(sorted(each.value for each in self.pass_types))
            problems.add("at.pass_type", f"must be {known} for {self.arm!r}, not {at.pass_type}")

    @property
    def tensors(self) -> Mapping[str, RequestTensor]:
        """The tensors of the request that it reads, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, RequestTensor)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetValue(Action):
    """Puts numbers in place of the selected entries."""

    arm = "set"
    pass_types = frozenset(PassType)
    scalar: float | None = None
    """One number for all; None if a tensor is given. Rounded to the model's element type when it is used."""
    tensor: RequestTensor | None = None
    """A number for each, stretched to the selected entries as numpy does."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.scalar is None) == (self.tensor is None):
            problems.add("", "give exactly one of scalar and tensor")
        _check_finite(problems, "scalar", self.scalar)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """The numbers."""
        del x
        return context.tensor(self.tensor) if self.scalar is None and self.tensor is not None else self.scalar or 0.0

    def check(self, problems: Violations, at: TapSelection) -> None:
        """Of gradients only one number."""
        Action.check(self, problems, at)
        if at.pass_type is PassType.BACKWARD and self.tensor is not None:
            problems.add("set.tensor", "must be absent: gradients are set to one number")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddVector(Action):
    """Adds a vector, times a factor, to the selected entries: steering."""

    arm = "add"
    vector: RequestTensor
    """What to add, stretched to the selected entries as numpy does."""
    factor: float = 1.0
    """What to multiply it by."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        _check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """X + factor vector."""
        return x + context.tensor(self.vector) * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleValue(Action):
    """Multiplies the selected entries: 0 switches off, 1 changes nothing."""

    arm = "scale"
    factor: float
    """The factor."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        _check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Factor x."""
        del context
        return x * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachGradient(Action):
    """Lets no gradient pass: of gradients only."""

    arm = "detach"
    pass_types = frozenset({PassType.BACKWARD})

    def apply(self, x: Values, context: Context) -> Values | float:
        """0."""
        del x, context
        return 0.0


def _check_finite(problems: Violations, path: str, value: float | None) -> None:
    # Comparison is false for NaN.
    problems.check(
        value is None or abs(value) <= MAX_FLOAT32, path, f"must be finite and within float32's range, not {value}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """A change of some entries of a tap, in the forward pass or, of gradients, in the backward pass.

    Whatever comes later in the pass is computed from what it makes.
    """

    at: TapSelection
    """Which entries."""
    action: Action
    """What is done to them."""

    def __post_init__(self) -> None:
        """Check that the action makes sense there; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        self.action.check(problems, self.at)
        problems.raise_if_any()

    @property
    def key(self) -> Hashable:
        """What tells it from others, without the numbers of tensors."""
        tensors = self.action.tensors
        if not tensors:
            return self
        values = ((field.name, getattr(self.action, field.name)) for field in fields(self.action))
        parts = tuple(tensors[name].identity if name in tensors else value for name, value in values)
        return self.at, type(self.action), parts

    def tensor_paths(self) -> Mapping[str, RequestTensor]:
        """The tensors of the request that it reads, by their path below it."""
        return {join_path(self.action.arm, field): tensor for field, tensor in self.action.tensors.items()}

    def with_tensors(self, known: Mapping[RequestTensor, RequestTensor]) -> Intervention:
        """It with each of its tensors that *known* has replaced by what stands there."""
        changed: dict[str, Any] = {
            field: known[tensor] for field, tensor in self.action.tensors.items() if tensor in known
        }
        return replace(self, action=replace(self.action, **changed)) if changed else self


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSpec:
    """Entries of a tap to overwrite with one number: the plain case of an intervention."""

    index: ActivationIndex
    """The entries. `layer_index` None at a tap with layers means every layer."""
    value: float
    """What to put there; finite, and rounded to float32 when it is used."""

    def __post_init__(self) -> None:
        """Check rule 28; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        location = self.index.activation_location_type
        rank = len(location.dimensions)
        problems.check(
            len(self.index.tensor_indices) == rank,
            "index.tensor_indices",
            f"must name every one of the {rank} axes of {location}, not {len(self.index.tensor_indices)}",
        )
        problems.check(
            self.index.layer_index is None or not location.has_no_layers,
            "index.layer_index",
            f"must be absent: {location} exists once per model",
        )
        _check_finite(problems, "value", self.value)
        problems.raise_if_any()

    @property
    def intervention(self) -> Intervention:
        """The same as an intervention."""
        at = TapSelection(
            activation_location_type=self.index.activation_location_type,
            axes=self.index.tensor_indices,
            layer_index=self.index.layer_index,
            pass_type=self.index.pass_type,
        )
        return Intervention(at=at, action=SetValue(scalar=self.value))


FINAL_NORM_DETACHED = Intervention(
    at=TapSelection(
        activation_location_type=ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE, pass_type=PassType.BACKWARD
    ),
    action=DetachGradient(),
)
"""Lets no gradient through the final norm's scale: direct effects are then shares of the loss."""
