"""Functions that make interventions: which entries of a tap, and how to change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, TypeAlias

import numpy as np

from dst_grpc.client._directions import DirectionLike, TensorLike, direction_of, tensor_of
from dst_grpc.client._given import given, integer, integers, tuple_of
from dst_grpc.client._requests import member
from dst_grpc.domain.components import PassType
from dst_grpc.domain.interventions import (
    AddNormScaled,
    AddVector,
    ClampValue,
    CopyFromRun,
    DetachGradient,
    Direction,
    HoldValue,
    Intervention,
    MeanOverRuns,
    ProjectOut,
    ScaleValue,
    SetValue,
    SwapDirections,
)
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from dst_grpc.errors import InvalidRequest

TapLike: TypeAlias = ActivationLocationType | str
"""A tap by member or by its name, e.g. `resid.post_mlp`."""
AxisLike: TypeAlias = SupportsIndex | slice | Sequence[SupportsIndex] | None
"""Positions along one axis: one, a range, several, or None for all."""


def steer(
    tap: TapLike, vector: DirectionLike, *, factor: float = 1.0, layer: int | None = None, at: Sequence[AxisLike] = ()
) -> Intervention:
    """Add a vector, times a factor, at a tap (steering).

    Args:
        tap: The tap.
        vector: The vector; broadcast to the selected entries as in numpy. Or a direction that the server finds: see
            `unembedding_row`, `encoder_row`, `decoder_row` and `difference_of_means`.
        factor: Its factor.
        layer: Layer from 0; None for a tap outside any layer, or every layer.
        at: Positions along the tap's axes, outermost first; omitted trailing axes are whole. `at=[-1]` is refused:
            positions count from 0.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    action = (
        given("", AddVector, direction=vector, factor=factor)
        if isinstance(vector, Direction)
        else given("", AddVector, vector=tensor_of(vector), factor=factor)
    )
    return Intervention(at=_at(tap, layer, at), action=action)


def set_value(
    tap: TapLike,
    value: float | TensorLike,
    *,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
    pass_type: PassType | str = PassType.FORWARD,
) -> Intervention:
    """Overwrite entries of a tap with one number, or one for each; gradients (`backward`) only with one number.

    The other arguments and errors are those of `steer`.
    """
    is_number = isinstance(value, int | float | np.number)
    action = SetValue(scalar=float(value)) if is_number else SetValue(tensor=tensor_of(value))  # type: ignore[arg-type]
    return Intervention(at=_at(tap, layer, at, pass_type), action=action)


def scale(tap: TapLike, factor: float, *, layer: int | None = None, at: Sequence[AxisLike] = ()) -> Intervention:
    """Multiply entries of a tap: 0 ablates them, 1 changes nothing. Arguments and errors are those of `steer`."""
    return Intervention(at=_at(tap, layer, at), action=given("", ScaleValue, factor=factor))


def detach_gradient(tap: TapLike, *, layer: int | None = None, at: Sequence[AxisLike] = ()) -> Intervention:
    """Stop the gradient at entries of a tap. Arguments and errors are those of `steer`."""
    return Intervention(at=_at(tap, layer, at, PassType.BACKWARD), action=DetachGradient())


def patch(
    tap: TapLike,
    run: str,
    *,
    subspace: TensorLike | None = None,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Replace entries of a tap by what they are in another run (activation patching).

    Positions correspond by their numbers. With a run of another prompt it is resample ablation.

    Args:
        tap: The tap.
        run: Name of one of the request's `source_runs`; `unchanged` is this run without any intervention.
        subspace: Vectors [k, n] that span the subspace in which entries are replaced (interchange intervention, DAS);
            None = all of it.
        layer: As for `steer`.
        at: As for `steer`.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    rows = None if subspace is None else tensor_of(subspace)
    return Intervention(at=_at(tap, layer, at), action=given("", CopyFromRun, run=run, subspace=rows))


def hold(tap: TapLike, *, layer: int | None = None, at: Sequence[AxisLike] = ()) -> Intervention:
    """Keep entries of a tap as they are without any intervention (freezing). Arguments and errors are those of
    `steer`."""
    return Intervention(at=_at(tap, layer, at), action=HoldValue())


def mean_over(
    tap: TapLike,
    runs: Sequence[str],
    *,
    over_positions: bool = False,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Replace entries of a tap by their mean over other runs (mean ablation).

    Args:
        tap: The tap.
        runs: Names of some of the request's `source_runs`.
        over_positions: Whether the mean is over all tokens of the runs too; else it is by position.
        layer: As for `steer`.
        at: As for `steer`.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    return Intervention(
        at=_at(tap, layer, at),
        action=given("", MeanOverRuns, runs=tuple_of("runs", runs), over_positions=over_positions),
    )


def clamp(
    tap: TapLike,
    direction: DirectionLike | None = None,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Bring the component along a direction between two limits, which may be equal; without a direction, every entry.

    Args:
        tap: The tap.
        direction: A vector, or a direction that the server finds; None = each entry by itself.
        minimum: The lower limit; None = there is none.
        maximum: The upper limit; None = there is none.
        layer: As for `steer`.
        at: As for `steer`.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    along = None if direction is None else direction_of(direction)
    action = ClampValue(direction=along, minimum=minimum, maximum=maximum)
    return Intervention(at=_at(tap, layer, at), action=action)


def project_out(
    tap: TapLike,
    direction: DirectionLike,
    *,
    factor: float = 0.0,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Remove the component along a direction, or multiply it by a factor. The other arguments and errors are those of
    `clamp`."""
    return Intervention(
        at=_at(tap, layer, at), action=given("", ProjectOut, direction=direction_of(direction), factor=factor)
    )


def add_norm_scaled(
    tap: TapLike,
    direction: DirectionLike,
    *,
    factor: float,
    cap: float | None = None,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Add a vector in proportion to the norm of what it is added to; its own norm is cut at *cap* times that. The other
    arguments and errors are those of `clamp`."""
    action = AddNormScaled(direction=direction_of(direction), factor=factor, cap=cap)
    return Intervention(at=_at(tap, layer, at), action=action)


def swap(
    tap: TapLike,
    direction: DirectionLike,
    target: DirectionLike,
    *,
    layer: int | None = None,
    at: Sequence[AxisLike] = (),
) -> Intervention:
    """Turn the component along a direction into the same component along a target. The other arguments and errors are
    those of `clamp`."""
    action = SwapDirections(direction=direction_of(direction), target=direction_of(target))
    return Intervention(at=_at(tap, layer, at), action=action)


def _at(
    tap: TapLike, layer: int | None, at: Sequence[AxisLike], pass_type: PassType | str = PassType.FORWARD
) -> TapSelection:
    return given(
        "at",
        TapSelection,
        activation_location_type=member(ActivationLocationType, tap, "at.activation_location_type"),
        axes=tuple(_axis(axis, f"at.axes[{i}]") for i, axis in enumerate(tuple_of("at.axes", at))),
        layer_index=layer,
        pass_type=member(PassType, pass_type, "at.pass_type"),
    )


def _axis(axis: AxisLike, path: str) -> AxisSelection:
    if axis is None:
        return None
    if isinstance(axis, slice):
        return _range(axis, path)
    if isinstance(axis, Sequence):
        return given(path, PositionList, positions=integers(path, axis))
    return integer(path, axis)


def _range(axis: slice, path: str) -> AxisSelection:
    if axis.step not in {None, 1}:
        raise InvalidRequest.of(path, f"a range has no step, but {axis.step} was given")
    if axis.start is None and axis.stop is None:
        return None
    if axis.stop is None:
        raise InvalidRequest.of(path, "a range needs an end: the length of an axis is not known here")
    return given(path, PositionRange, start=axis.start or 0, stop=axis.stop)
