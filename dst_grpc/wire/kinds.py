"""How values travel that are no dataclasses: numbers and texts, enums, durations, errors, and arrays of numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dst_grpc.domain.components import Dimension, LossFnName, NodeType, TensorElementType
from dst_grpc.wire.durations import duration_to_wire, seconds_from_wire, time_from_wire, time_to_wire
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.errors import error_from_status, error_to_status
from dst_grpc.wire.tensors import MAX_AXES, Array, stored_as, widened

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

    from google.protobuf.message import Message

    from dst_grpc.errors import Violations


class _Bad:
    """The type of `BAD`."""


BAD: Final = _Bad()
"""What reading gives for what is no value at all; what is wrong with it has been noted."""


class Kind(NamedTuple):
    """How one value travels."""

    write: Callable[[Any], Any] | None = None
    """Makes of a value what a message's constructor takes; None if it takes the value."""
    read: Callable[[Any, Violations], Any] | None = None
    """Makes a value of what a message holds and notes what is wrong with it; None if what it holds is the value."""
    stand_in: Callable[[], Any] | None = None
    """Makes a value to stand where a bad one was; None if reading never finds a bad one."""
    element: Callable[[], Any] | None = None
    """Of lists: makes one to stand where a bad element was."""


def scalar(python_type: type) -> Kind:
    """Numbers, texts, bytes and booleans."""
    return Kind(stand_in=python_type)


OPTIONAL_TEXT = Kind(read=lambda text, _: text or None)
"""A text that may be absent; an empty one is."""
DURATION = Kind(duration_to_wire, lambda message, _: seconds_from_wire(message), float)
"""Seconds."""
TIME = Kind(time_to_wire, lambda message, _: time_from_wire(message))
"""A moment, in UTC."""
ERROR = Kind(error_to_status, lambda message, _: error_from_status(message))
"""Any error of ours."""
_STAND_INS: dict[type[Enum], Enum] = {NodeType: NodeType.LAYER, LossFnName: LossFnName.ZERO}
"""Members about which no rule says anything, where the first is not one."""


def enum(members: type[Enum]) -> Kind:
    """A member of an enum."""
    codec = enum_codec(members)

    def read(number: int, problems: Violations) -> Any:
        member = codec.member_of.get(number)
        if member is None:
            problems.add("", codec.complaint(number))
            return BAD
        return member

    return Kind(codec.number_of.__getitem__, read, lambda: _STAND_INS.get(members) or next(iter(members)))


def array(*dimensions: Dimension) -> Kind:
    """Numbers along the first ones of *dimensions*, in float32; if there are none, along any, and in any floats."""

    def write(values: Array) -> dict[str, Any]:
        axes = [{"size": size} for size in values.shape]
        for axis, dimension in zip(axes, dimensions, strict=False):
            axis["dimension"] = enum_codec(Dimension).number_of[dimension]
        return {
            "element_type": enum_codec(TensorElementType).number_of[TensorElementType.FLOAT32],
            "axes": axes,
            "data": np.ascontiguousarray(values, stored_as(TensorElementType.FLOAT32)).tobytes(),
        }

    def read(message: Any, problems: Violations) -> Any:
        before = problems.count
        element_type = _element_type(message, problems, are_floats=not dimensions)
        shape = [axis.size for axis in message.axes]
        found = [enum_codec(Dimension).member_of.get(axis.dimension) for axis in message.axes]
        if dimensions and (not found or tuple(found) != dimensions[: len(found)]):
            problems.add("axes", f"must run over {', then '.join(dimensions)}")
        expected = element_type.byte_width * math.prod(shape)
        if len(shape) > MAX_AXES:
            problems.add("axes", f"must be at most {MAX_AXES}, not {len(shape)}")
        elif len(message.data) != expected:
            problems.add("data", f"has {len(message.data)} bytes, but the axes make it {expected}")
        elif not expected and any(size > np.iinfo(np.int32).max for size in shape):
            problems.add("axes", "are too long for a tensor without elements")
        if problems.count > before:
            return BAD
        return widened(np.frombuffer(message.data, stored_as(element_type)), element_type).reshape(shape)

    return Kind(write, read, lambda: np.zeros(1, np.float32))


def _element_type(message: Message, problems: Violations, *, are_floats: bool) -> TensorElementType:
    """The element type of a Tensor; float32 stands for what it may not be."""
    number: int = getattr(message, "element_type")
    found = enum_codec(TensorElementType).member_of.get(number)
    if are_floats and (number == 0 or found in _FLOATS):
        return found or TensorElementType.FLOAT32
    if found is not TensorElementType.FLOAT32:
        names = ", ".join(map(enum_codec(TensorElementType).name, _FLOATS if are_floats else _FLOATS[:1]))
        problems.add("element_type", f"must be {names}, not {found or number}")
    return TensorElementType.FLOAT32


_FLOATS = (TensorElementType.FLOAT32, TensorElementType.FLOAT16, TensorElementType.BFLOAT16)
