"""Arbitrary messages: every field may be absent, and enums may hold numbers that nobody knows."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.arbitrary.basic import kept, names, texts, uint32, uint64

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 5) | uint32,
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 5) | uint64,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


_maps = st.dictionaries(texts, texts, max_size=2)


@st.composite
def messages(draw: st.DrawFn, message_type: type[Message], depth: int = 6) -> Any:
    """Any message of a type: every field may be absent, enums may hold numbers that nobody knows."""
    message = message_type()
    _fill(draw, message, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        if (is_message and depth == 0) or not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update(draw(_maps))
        elif field.is_repeated:
            for _ in range(draw(st.integers(1, 3))):
                if is_message:
                    _fill(draw, getattr(message, field.name).add(), depth - 1)
                else:
                    getattr(message, field.name).append(draw(_scalar(field)))
        elif is_message:
            child = getattr(message, field.name)
            child.SetInParent()
            _fill(draw, child, depth - 1)
        else:
            setattr(message, field.name, draw(_scalar(field)))


@kept
def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        known = st.sampled_from([value.number for value in field.enum_type.values])
        return known | known | st.integers(-(2**31), 2**31 - 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=8) if field.type == FieldDescriptor.TYPE_BYTES else texts | names
    return _SCALARS[field.cpp_type]
