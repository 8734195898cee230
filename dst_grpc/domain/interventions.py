"""Interventions: what is changed in a run. Each is a selection of entries of a tap, and an action on them.

An action is a value with its own formula: what it makes of the selected entries, with nothing but the arithmetic that
every array library has. A new kind of intervention is a new subclass of `Action`, and an arm of the message.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from dst_grpc.domain.components import PassType
from dst_grpc.domain.indices import MAX_INDEX, ActivationIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations, join_path

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest finite float32."""
MAX_HANDLE_CHARACTERS = 256

# What is selected


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionList:
    """Some positions along an axis; what is selected stands in their order."""

    positions: tuple[int, ...]
    """The positions, from 0; none twice."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.positions), "positions", "must not be empty")
        problems.check(len(set(self.positions)) == len(self.positions), "positions", "names a position twice")
        for i, position in enumerate(self.positions):
            _check_index(problems, f"positions[{i}]", position)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRange:
    """The positions from *start* to before *stop*."""

    start: int
    """The first."""
    stop: int
    """The first that is not meant any more."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        _check_index(problems, "start", self.start)
        _check_index(problems, "stop", self.stop)
        problems.check(self.start < self.stop, "stop", f"must be above start, {self.start}, not {self.stop}")
        problems.raise_if_any()


AxisSelection = int | PositionList | PositionRange | None
"""Positions along one axis: one, some, a range; None selects all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSelection:
    """Entries of a tap: those whose position is selected along every axis.

    They have an axis for each of the tap's along which not one single position is given.
    """

    activation_location_type: ActivationLocationType
    """Which tap."""
    axes: tuple[AxisSelection, ...] = ()
    """Positions along each axis of the tap, outermost first; omitted trailing axes are whole."""
    layer_index: int | None = None
    """Layer from 0; None for a tap outside any layer, and for every layer of one with layers."""
    pass_type: PassType = PassType.FORWARD
    """The value, or the gradient that flows on upstream."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        location = self.activation_location_type
        rank = len(location.dimensions)
        problems.check(len(self.axes) <= rank, "axes", f"has {len(self.axes)} entries, but {location} has {rank} axes")
        for i, axis in enumerate(self.axes):
            if isinstance(axis, int):
                _check_index(problems, f"axes[{i}]", axis)
        if self.layer_index is not None:
            _check_index(problems, "layer_index", self.layer_index)
            problems.check(
                not location.has_no_layers, "layer_index", f"must be absent: {location} exists once per model"
            )
        problems.raise_if_any()

    @property
    def all_axes(self) -> tuple[AxisSelection, ...]:
        """The selection along every axis of the tap."""
        return (*self.axes, *(None,) * (len(self.activation_location_type.dimensions) - len(self.axes)))

    def shape(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Shape of the selected entries of a tap of these *sizes*."""
        found = []
        for axis, size in zip(self.all_axes, sizes, strict=True):
            match axis:
                case None:
                    found.append(size)
                case PositionList():
                    found.append(len(axis.positions))
                case PositionRange():
                    found.append(axis.stop - axis.start)
        return tuple(found)


def _check_index(problems: Violations, path: str, index: int) -> None:
    problems.check(0 <= index <= MAX_INDEX, path, f"must be between 0 and {MAX_INDEX}, not {index}")


# What requests bring


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RequestTensor:
    """Numbers that a request brings: themselves, or by the handle of a tensor that was put before.

    Tensors are equal if their numbers are, whatever is in memory twice.
    """

    tensor: np.ndarray[Any, np.dtype[Any]] | None = None
    """The numbers, float32 and finite; None if a handle is given."""
    handle: str | None = None
    """The handle; None if the numbers are given."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given, and the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.tensor is None) == (self.handle is None):
            problems.add("", "give exactly one of tensor and handle")
        if self.handle is not None:
            problems.check(
                0 < len(self.handle) <= MAX_HANDLE_CHARACTERS,
                "handle",
                f"must have between 1 and {MAX_HANDLE_CHARACTERS} characters",
            )
            check_text(problems, "handle", self.handle)
        if self.tensor is not None:
            with np.errstate(over="ignore"):  # what float32 cannot hold is told of below
                numbers = np.ascontiguousarray(self.tensor, dtype=np.float32).reshape(np.shape(self.tensor))
            if numbers.flags.writeable:
                # Of its own: whoever made it may go on changing it.
                numbers = numbers.copy()
                numbers.flags.writeable = False
            object.__setattr__(self, "tensor", numbers)
            problems.check(numbers.size > 0, "tensor", "must not be empty")
            problems.check(
                bool(np.isfinite(numbers).all()), "tensor", "must hold finite numbers within float32's range"
            )
        problems.raise_if_any()

    @cached_property
    def identity(self) -> tuple[object, ...]:
        """What tells it from others: its shape and the SHA-256 of its numbers, or its handle."""
        if self.tensor is None:
            return (self.handle,)
        return (self.tensor.shape, hashlib.sha256(self.tensor.data).hexdigest())

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers, or are the same handle."""
        return isinstance(other, RequestTensor) and self.identity == other.identity

    def __hash__(self) -> int:
        """Hash of what tells it from others."""
        return hash(self.identity)

    def __repr__(self) -> str:
        """Its handle, or its shape and digest, which stand for its numbers in a request's digest."""
        return f"RequestTensor{self.identity!r}"


class TensorSource(Protocol):
    """Where tensors are kept that were put before."""

    def get(self, handle: str) -> RequestTensor:
        """The numbers at *handle*, in the form of a tensor; raises NotFound."""


# What is done to it


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
