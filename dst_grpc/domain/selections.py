"""Selections of a tap's entries: positions along each of its axes, at one layer or at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import check_member, json_name
from dst_grpc.domain.indices import MAX_INDEX, check_number
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionList:
    """Some positions along an axis; the selected entries are in their order."""

    positions: tuple[int, ...]
    """The positions, from 0; none twice."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.positions), "positions", "must not be empty")
        problems.check(len(set(self.positions)) == len(self.positions), "positions", "names a position twice")
        if self.positions and not 0 <= min(self.positions) <= max(self.positions) <= MAX_INDEX:
            for i, position in enumerate(self.positions):
                check_number(problems, f"positions[{i}]", position)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRange:
    """The positions from *start* to before *stop*."""

    start: int
    """The first."""
    stop: int
    """The position after the last."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_number(problems, "start", self.start)
        check_number(problems, "stop", self.stop)
        problems.check(self.start < self.stop, "stop", f"must be above start, {self.start}, not {self.stop}")
        problems.raise_if_any()


AxisSelection = int | PositionList | PositionRange | None
"""Positions along one axis: one, some, a range; None selects all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSelection:
    """Entries of a tap: those whose position is selected along every axis.

    The selected entries have the axes of the tap, without those along which a single position is given.
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
        """Check what needs no model; raises InvalidRequest with all that is wrong, and TypeError for a tap that is no
        member."""
        problems = Violations()
        location = self.activation_location_type
        check_member("activation_location_type", location, ActivationLocationType)
        rank = len(location.dimensions)
        problems.check(
            len(self.axes) <= rank, "axes", f"has {len(self.axes)} entries, but {json_name(location)} has {rank} axes"
        )
        for i, axis in enumerate(self.axes):
            if isinstance(axis, int):
                check_number(problems, f"axes[{i}]", axis)
        if self.layer_index is not None:
            check_number(problems, "layer_index", self.layer_index)
            problems.check(
                not location.has_no_layers,
                "layer_index",
                f"must be absent: {json_name(location)} exists once per model",
            )
        problems.raise_if_any()

    @property
    def site(self) -> tuple[ActivationLocationType, int | None]:
        """The tap, and its layer."""
        return self.activation_location_type, self.layer_index

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
