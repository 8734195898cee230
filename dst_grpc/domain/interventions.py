"""Interventions: changes to a run's activations or gradients. Each is a selection of entries of a tap, and an action.

An action is a value with its own formula: the new entries as a function of the selected ones, written with the
arithmetic that every array library has. A new kind of intervention is a new subclass of `Action`, and an arm of the
message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import json_name, json_names
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
    """An array with arithmetic; in the engine, a tensor."""

    def __add__(self, other: Any, /) -> Values:
        """Sum by entries."""

    def __mul__(self, other: Any, /) -> Values:
        """Product by entries."""


class Context(Protocol):
    """What an action may read besides the entries that it changes."""

    def tensor(self, tensor: RequestTensor) -> Values:
        """A tensor of the request, in the run's element type and on its device."""

    def of_run(self, name: str) -> Values:
        """The same entries as recorded in another run, one that `Action.runs` names."""


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
        _check_finite(problems, "scalar", self.scalar)
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
    vector: RequestTensor
    """The vector, broadcast to the selected entries as in numpy."""
    factor: float = 1.0
    """The factor."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        _check_finite(problems, "factor", self.factor)
        problems.raise_if_any()

    def apply(self, x: Values, context: Context) -> Values | float:
        """Return x + factor * vector."""
        return x + context.tensor(self.vector) * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleValue(Action):
    """Multiplies the selected entries by a factor: 0 ablates them, 1 changes nothing."""

    arm = "scale"
    factor: float
    """The factor."""

    def __post_init__(self) -> None:
        """Check the factor; raises InvalidRequest."""
        problems = Violations()
        _check_finite(problems, "factor", self.factor)
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


def _check_finite(problems: Violations, path: str, value: float | None) -> None:
    # Comparison is false for NaN.
    problems.check(
        value is None or abs(value) <= MAX_FLOAT32, path, f"must be finite and within float32's range, not {value}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """A change to some entries of a tap, in the forward pass, or to their gradients, in the backward pass.

    The rest of the pass is computed from the changed entries.
    """

    at: TapSelection
    """Which entries."""
    action: Action
    """How they are changed."""

    def __post_init__(self) -> None:
        """Check that the action is possible there; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        self.action.check(problems, self.at)
        problems.raise_if_any()

    @property
    def key(self) -> Hashable:
        """Equal for equal interventions, and hashable: tensors are represented by their identity."""
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
        """The same intervention with the tensors at the paths of *known* replaced."""
        changed: dict[str, Any] = {
            field: known[tensor] for field, tensor in self.action.tensors.items() if tensor in known
        }
        return replace(self, action=replace(self.action, **changed)) if changed else self


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSpec:
    """Entries of a tap to overwrite with one number (0: zero ablation): the simplest intervention."""

    index: ActivationIndex
    """The entries. `layer_index` None at a tap with layers means every layer."""
    value: float
    """The number; finite, and rounded to float32 when it is used."""

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
"""Holds the final norm's scale constant in gradients: direct effects are then shares of the loss."""
