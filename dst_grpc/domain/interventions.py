"""Interventions: changes to a run's activations or gradients: a selection of entries of a tap, and an action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.actions import MAX_FLOAT32, UNCHANGED, Action, Context, Positions, Reading, Values, check_finite
from dst_grpc.domain.components import PassType
from dst_grpc.domain.direction_actions import AddNormScaled, ClampValue, ProjectOut, SwapDirections
from dst_grpc.domain.directions import DecoderRow, DifferenceOfMeans, Direction, EncoderRow, UnembeddingRow
from dst_grpc.domain.entry_actions import AddVector, DetachGradient, ScaleValue, SetValue
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.run_actions import CopyFromRun, HoldValue, MeanOverRuns
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations, join_path

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = [
    "FINAL_NORM_DETACHED",
    "MAX_FLOAT32",
    "UNCHANGED",
    "AblationSpec",
    "Action",
    "AddNormScaled",
    "AddVector",
    "ClampValue",
    "Context",
    "CopyFromRun",
    "DecoderRow",
    "DetachGradient",
    "DifferenceOfMeans",
    "Direction",
    "EncoderRow",
    "HoldValue",
    "Intervention",
    "MeanOverRuns",
    "Positions",
    "ProjectOut",
    "Reading",
    "ScaleValue",
    "SetValue",
    "SwapDirections",
    "UnembeddingRow",
    "Values",
]


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
        return self if not self.action.tensors else (self.at, self.action.key)

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs that it reads, each once; UNCHANGED is always known."""
        return tuple(dict.fromkeys(reading.run for reading in self.action.readings))

    def tensor_paths(self) -> Mapping[str, RequestTensor]:
        """The tensors of the request that it reads, by their path below it."""
        return {join_path(self.action.arm, field): tensor for field, tensor in self.action.tensors.items()}

    def with_tensors(self, known: Mapping[RequestTensor, RequestTensor]) -> Intervention:
        """The same intervention with the tensors at the paths of *known* replaced."""
        action = self.action.with_tensors(known)
        return self if action is self.action else replace(self, action=action)


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
            f"must name every one of the {rank} axes of {json_name(location)}, not {len(self.index.tensor_indices)}",
        )
        problems.check(
            self.index.layer_index is None or not location.has_no_layers,
            "index.layer_index",
            f"must be absent: {json_name(location)} exists once per model",
        )
        check_finite(problems, "value", self.value)
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
"""Holds the final norm's scale constant in gradients: direct effects are then shares of a logit difference."""
