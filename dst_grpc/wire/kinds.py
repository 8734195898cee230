"""Conversion of values that are not dataclasses: numbers, strings, enums, durations, errors, arrays, lists, oneofs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dst_grpc.domain.components import Dimension, LossFnName, NodeType, TensorElementType
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.put_tensors import MAX_AXES
from dst_grpc.wire.durations import duration_to_wire, is_valid_duration, seconds_from_wire, time_from_wire, time_to_wire
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.errors import error_from_status, error_to_status
from dst_grpc.wire.tensors import Array, is_beyond_any, stored_as, widened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from enum import Enum

    from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

    from dst_grpc.errors import Violations

    Write = Callable[[Any], Any]
    """From a value to the argument of a message's constructor."""
    Read = Callable[[Any, Violations], Any]
    """From the content of a message to a value, noting violations."""


class _Bad:
    """The type of `BAD`."""


BAD: Final = _Bad()
"""The result of reading an invalid value, whose violation has been noted."""


class Kind(NamedTuple):
    """How values of one type are converted."""

    write: Write | None = None
    """Writes it; None if a message's constructor takes the value as it is."""
    read: Read | None = None
    """Reads it; None if a message holds the value as it is."""
    stand_in: Callable[[], Any] | None = None
    """Makes a stand-in for a bad value; None if reading never fails."""
    element: Callable[[], Any] | None = None
    """For lists: makes a stand-in for a bad element."""


def scalar(python_type: type) -> Kind:
    """Numbers, strings, bytes and booleans."""
    return Kind(stand_in=python_type)


OPTIONAL_TEXT = Kind(read=lambda text, _: text or None)
"""A string that may be absent; an empty one is absent."""
NUMBER_OR_NONE = Kind(lambda number: number or 0, lambda number, _: number or None)
"""An element of a list that may be None, written as 0."""
MAPPING = Kind(dict, lambda pairs, _: tuple(sorted(pairs.items())), tuple)
"""Pairs of strings, ascending by key."""


def _read_duration(message: Any, problems: Violations) -> Any:
    if not is_valid_duration(message):
        problems.add("", f"has seconds {message.seconds} and nanos {message.nanos}, which is no valid Duration")
        return BAD
    return seconds_from_wire(message)


DURATION = Kind(duration_to_wire, _read_duration, float)
"""Seconds."""
TIME = Kind(time_to_wire, lambda message, _: time_from_wire(message))
"""A time, in UTC."""
ERROR = Kind(error_to_status, lambda message, _: error_from_status(message))
"""Any error of this package."""
_STAND_INS: dict[type[Enum], Enum] = {
    NodeType: NodeType.LAYER,
    LossFnName: LossFnName.ZERO,
    ActivationLocationType: ActivationLocationType.ATTN_QK_PROBS,  # has layers, and no tap has more axes
}
"""Members that are valid everywhere, for enums whose first member is not."""


def enum(members: type[Enum]) -> Kind:
    """A member of an enum."""
    codec = enum_codec(members)

    def read(number: int, problems: Violations) -> Any:
        member = codec.member_of.get(number)
        if member is None:
            problems.add("", "" if problems.is_full else codec.complaint(number))
            return BAD
        return member

    return Kind(codec.number_of.__getitem__, read, lambda: _STAND_INS.get(members) or next(iter(members)))


def array(*dimensions: Dimension) -> Kind:
    """A float32 array whose axes are the first of *dimensions*; without *dimensions*, any axes and any float type."""

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
            problems.add("axes", f"has {len(shape)} entries, but a tensor has at most {MAX_AXES} axes")
        elif len(message.data) != expected:
            problems.add("data", f"has {len(message.data)} bytes, but the axes make it {expected}")
        elif is_beyond_any(shape):
            problems.add("axes", "are too long for a tensor without elements")
        if problems.count > before:
            return BAD
        return widened(np.frombuffer(message.data, stored_as(element_type)), element_type).reshape(shape)

    return Kind(write, read, lambda: np.zeros(1, np.float32))


def column(element_type: TensorElementType) -> Kind:
    """An array of one axis whose elements are of *element_type*."""
    stored = stored_as(element_type)

    def write(values: Array) -> dict[str, Any]:
        return {
            "element_type": enum_codec(TensorElementType).number_of[element_type],
            "axes": [{"size": len(values)}],
            "data": np.ascontiguousarray(values, stored).tobytes(),
        }

    def read(message: Any, problems: Violations) -> Any:
        before = problems.count
        found = enum_codec(TensorElementType).member_of.get(message.element_type)
        if found is not element_type:
            problems.add("element_type", f"must be {json_name(element_type)}")
        if len(message.axes) != 1:
            problems.add("axes", f"must be one, not {len(message.axes)}")
        elif len(message.data) != (expected := message.axes[0].size * stored.itemsize):
            problems.add("data", f"has {len(message.data)} bytes, but the axis makes it {expected}")
        return BAD if problems.count > before else np.frombuffer(message.data, stored)

    return Kind(write, read, lambda: np.empty(0, stored))


def _element_type(message: Any, problems: Violations, *, are_floats: bool) -> TensorElementType:
    """The element type of a Tensor; float32 if it is invalid."""
    number: int = message.element_type
    found = enum_codec(TensorElementType).member_of.get(number)
    if are_floats and (number == 0 or found in _FLOATS):
        return found or TensorElementType.FLOAT32
    if found is not TensorElementType.FLOAT32:
        names = json_names(_FLOATS if are_floats else _FLOATS[:1])
        problems.add("element_type", f"must be {names}, not {json_name(found) if found else number}")
    return TensorElementType.FLOAT32


_FLOATS = (TensorElementType.FLOAT32, TensorElementType.FLOAT16, TensorElementType.BFLOAT16)


def within(name: str, read: Read) -> Read:
    """*read* for the content of the field *name*: what it notes is noted by paths that begin there."""

    def read_within(content: Any, problems: Violations) -> Any:
        at, before = len(problems.listed), problems.count
        value = read(content, problems)
        if problems.count != before:
            problems.move(at, name)
        return value

    return read_within


def list_of(element: Kind) -> Kind:
    """A list of any length."""
    write_one, read_one, stand_in, _ = element
    write = None if write_one is None else lambda values: list(map(write_one, values))
    return Kind(write, list_reader(read_one, stand_in), tuple, stand_in)


def list_reader(read_one: Read | None, stand_in: Callable[[], Any] | None = None) -> Read:
    """Reads a list; *stand_in*, if there is one, makes an element in the place of a bad one."""
    if read_one is None:
        return lambda contents, _: tuple(contents)

    def read(contents: Iterable[Any], problems: Violations) -> Any:
        found = []
        at, seen = len(problems.listed), problems.count
        for i, content in enumerate(contents):
            value = read_one(content, problems)
            if problems.count != seen:
                problems.move(at, f"[{i}]")
                at, seen = len(problems.listed), problems.count
                if value is BAD and stand_in is not None and not problems.is_full:
                    value = stand_in()
            found.append(value)
        return tuple(found)

    return read


def wrapped_list(name: str, elements: Kind) -> Kind:
    """A list in a message of its own, so that it can be absent."""
    write_list = list_of(elements).write
    read_elements = within(name, list_reader(elements.read, elements.stand_in))

    def write(values: Iterable[Any]) -> dict[str, Any]:
        return {name: values if write_list is None else write_list(values)}

    def read(content: Any, problems: Violations) -> Any:
        return read_elements(getattr(content, name), problems)

    return Kind(write, read, tuple)


def fields_in_order(message: Descriptor) -> Kind:
    """A tuple of a fixed length: the fields of a message, in order."""
    names = [field.name for field in message.fields]
    may_be_none = [field.has_presence for field in message.fields]

    def write(values: Iterable[Any]) -> dict[str, Any]:
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def read(content: Any, _: Violations) -> Any:
        return tuple(
            None if optional and not content.HasField(name) else getattr(content, name)
            for name, optional in zip(names, may_be_none, strict=True)
        )

    return Kind(write, read)


class Arms:
    """The arms of a oneof, each for a class of values; a number is the arm's own value, and an empty message None."""

    def __init__(self, oneof: OneofDescriptor, classes: Mapping[str, tuple[type, Kind]]) -> None:
        """Pair the arms with *classes* and their kinds, by the names of their messages."""
        self._oneof = oneof.name
        self._arms: dict[type, tuple[str, Write | None]] = {}
        self.reads: dict[FieldDescriptor, Read | None] = {}
        """Reads the content of an arm."""
        for field in oneof.fields:
            cls, kind = (int, Kind()) if field.message_type is None else classes.get(field.message_type.name, _NOTHING)
            self._arms[cls] = field.name, kind.write
            self.reads[field] = kind.read
        self._by_name = {
            field.name: None if read is None else within(field.name, read) for field, read in self.reads.items()
        }

    @property
    def complaint(self) -> str:
        """The violation if no arm is set."""
        return f"is required: set one of {', '.join(field.name for field in self.reads)}"

    def write(self, value: Any) -> dict[str, Any]:
        """The arm of *value*, by name, with the argument of its constructor."""
        arm, write = self._arms.get(type(value)) or self._arms[int]
        return {arm: value if write is None else write(value)}

    def read(self, message: Any, problems: Violations) -> Any:
        """The value in a *message* that has only this oneof."""
        arm = message.WhichOneof(self._oneof)
        if arm is None:
            problems.add("", self.complaint)
            return BAD
        read, content = self._by_name[arm], getattr(message, arm)
        return content if read is None else read(content, problems)

    @property
    def kind(self) -> Kind:
        """The kind of a message that has only this oneof."""
        return Kind(self.write, self.read, int)


def none() -> None:
    """The stand-in of an optional value: None."""


_NOTHING = (type(None), Kind(lambda _: {}, lambda *_: None))
