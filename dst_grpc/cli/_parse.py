"""Parses ablations, scalings, patches and traces from the command line.

attn.qk_probs@2[:,:,1]=0     overwrite head 1 of layer 2, for every pair of tokens, with 0
mlp.post_act@2[5:9,(1,4)]=0  neurons 1 and 4 of layer 2, at the tokens 5 to 8
mlp.post_act@2[13,5]*0.5     halve neuron 5 of layer 2 at token 13; without @2, of every layer
resid.post_mlp@1[13,:]       patch: the residual after layer 1 at token 13, from the run of another prompt
resid.post_mlp@1             all entries of a tap: of every token
mlp.post_act@2[13,5]         the activation of neuron 5 of layer 2 at token 13

Traces, and ablations of `explain`, may also be nodes as written in tables: see `_nodes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TypeVar

from dst_grpc.cli._nodes import ABLATION_FORMS, TRACE_FORMS, read_ablation, read_trace
from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    AttentionTraceType,
    Intervention,
    NodeAblation,
    TapSelection,
    TraceConfig,
)
from dst_grpc.client._requests import member
from dst_grpc.domain.interventions import CopyFromRun, ScaleValue, SetValue
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange
from dst_grpc.errors import InvalidRequest

T = TypeVar("T")

_SELECTION = r"(?P<location>[a-z_.]+)(@(?P<layer>\d+))?(\[(?P<positions>[\d:,()\s]*)\])?"
_NUMBER = r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)"
_ABLATION = re.compile(rf"{_SELECTION}={_NUMBER}")
_SCALE = re.compile(rf"{_SELECTION}\*{_NUMBER}")
_TRACE = re.compile(_SELECTION)
_AXIS = re.compile(r"\s*(?:(?P<all>:)|(?P<start>\d+):(?P<stop>\d+)|(?P<at>\d+)|\((?P<list>[\d,\s]+)\))\s*(?:,|$)")
_ENTRIES = "LOCATION@LAYER[i,:,j]"
_TAPS = frozenset(location.value for location in ActivationLocationType)
_POSITIONS = "each axis is a number, a list (1,4), a range 2:5 or all of it, :"


def _of(option: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Has the errors of a function that reads what *option* is given say which text is wrong."""

    def decorated(read: Callable[[str], T]) -> Callable[[str], T]:
        @wraps(read)
        def run(text: str) -> T:
            try:
                return read(text)
            except InvalidRequest as error:
                if all(violation.field == option for violation in error.violations):
                    raise
                raise InvalidRequest.of(option, f"{text!r}: {error}") from None

        return run

    return decorated


@_of("--ablate")
def parse_ablation(text: str) -> AblationSpec | Intervention:
    """Read `LOCATION@LAYER[i,:,j]=VALUE`; without `@LAYER` it means every layer, without axes all entries.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    match = _ABLATION.fullmatch(text)
    if match is None:
        raise InvalidRequest.of(
            "--ablate", f"{text!r} is not of the form {_ENTRIES}=VALUE, e.g. attn.qk_probs@2[:,:,1]=0; {_POSITIONS}"
        )
    at, value = _selection(match), float(match["number"])
    index = _index_of(at)
    if index is None:
        return Intervention(at=at, action=SetValue(scalar=value))
    return AblationSpec(index=index, value=value)


@_of("--scale")
def parse_scale(text: str) -> Intervention:
    """Read `LOCATION@LAYER[i,:,j]*FACTOR`; without `@LAYER` it means every layer, without axes all entries.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    match = _SCALE.fullmatch(text)
    if match is None:
        raise InvalidRequest.of(
            "--scale", f"{text!r} is not of the form {_ENTRIES}*FACTOR, e.g. attn.qk_probs@2[:,:,1]*0.5; {_POSITIONS}"
        )
    return Intervention(at=_selection(match), action=ScaleValue(factor=float(match["number"])))


SOURCE = "source"
"""Name of the run that the command line patches from."""


@_of("--patch")
def parse_patch(text: str) -> Intervention:
    """Read `LOCATION@LAYER[i,:,j]`, entries to take from the run SOURCE; without `@LAYER` it means every layer.

    Trailing axes may be left out, and are whole.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    match = _TRACE.fullmatch(text)
    if match is None:
        raise InvalidRequest.of(
            "--patch", f"{text!r} is not of the form {_ENTRIES}, e.g. resid.post_mlp@2[13]; {_POSITIONS}"
        )
    return Intervention(at=_selection(match), action=CopyFromRun(run=SOURCE))


@_of("--trace")
def parse_trace(text: str) -> TraceConfig:
    """Read a node, or `LOCATION@LAYER[i,j]`: the activation to start a backward pass from.

    Raises:
        InvalidRequest: If the text has another form, or names no single activation that can be traced.
    """
    node = read_trace(text)
    if node is not None:
        return node
    match = _TRACE.fullmatch(text)
    index = None if match is None or not match["positions"] else _index_of(_selection(match))
    if index is None:
        raise InvalidRequest.of(
            "--trace",
            f"{text!r} is neither a node, e.g. {TRACE_FORMS}, nor LOCATION@LAYER[i,j], as mlp.post_act@2[13,5]",
        )
    if index.layer_index is None:
        raise InvalidRequest.of("--trace", f"{text!r}: of which layer? e.g. mlp.post_act@2[13,5]")
    return TraceConfig.from_activation_index(index)


def parse_path(texts: list[str]) -> TraceConfig | None:
    """The trace at the end of a path that begins at the output; None without steps.

    A step through V is projected on the gradient of the step before it; any other step starts from its own activation.

    Raises:
        InvalidRequest: If a step has another form, or names no single activation that can be traced.
    """
    path: TraceConfig | None = None
    for text in texts:
        step = parse_trace(text)
        through_value = step.attention_trace_type is AttentionTraceType.V
        path = replace(step, downstream_trace_config=path) if through_value else step
    return path


@_of("--ablate")
def parse_what_to_ablate(text: str) -> NodeAblation | AblationSpec | Intervention:
    """Read a node, with `=VALUE` unless it is to be 0, or the form of `parse_ablation`.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    node = read_ablation(text)
    if node is not None:
        return node
    match = _ABLATION.fullmatch(text)
    if match is None or (match["positions"] is None and match["location"] not in _TAPS):
        raise InvalidRequest.of("--ablate", f"{text!r} is neither a node, e.g. {ABLATION_FORMS}, nor {_ENTRIES}=VALUE")
    return parse_ablation(text)


def _selection(match: re.Match[str]) -> TapSelection:
    """The entries that are named. Raises InvalidRequest."""
    location = member(ActivationLocationType, match["location"], "tap")
    layer = None if match["layer"] is None else int(match["layer"])
    axes = () if match["positions"] is None else _axes(match["positions"])
    return TapSelection(activation_location_type=location, axes=axes, layer_index=layer)


def _axes(text: str) -> tuple[AxisSelection, ...]:
    """The positions along each axis. Raises InvalidRequest."""
    axes: list[AxisSelection] = []
    place = 0
    while place < len(text) or not axes:
        axis = _AXIS.match(text, place)
        if axis is None:
            raise InvalidRequest.of("", _POSITIONS)
        place = axis.end()
        if axis["all"]:
            axes.append(None)
        elif axis["at"]:
            axes.append(int(axis["at"]))
        elif axis["list"]:
            positions = tuple(int(position) for position in axis["list"].split(",") if position.strip())
            axes.append(PositionList(positions=positions))
        else:
            axes.append(PositionRange(start=int(axis["start"]), stop=int(axis["stop"])))
    return tuple(axes)


def _index_of(at: TapSelection) -> ActivationIndex | None:
    """The selection as an index, which has one or all positions of each axis; None if that does not suffice, or axes
    are left out."""
    positions = tuple(axis for axis in at.axes if axis is None or isinstance(axis, int))
    if len(positions) < len(at.axes) or not at.axes:
        return None
    return ActivationIndex(
        activation_location_type=at.activation_location_type, tensor_indices=positions, layer_index=at.layer_index
    )
