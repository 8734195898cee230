"""From bytes to messages: counts what they hold, then parses them. Bad bytes raise InvalidRequest.

Whether the values make sense is checked elsewhere.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from dst_grpc.errors import InvalidRequest, Reason, join_path
from dst_grpc.failures import raise_if_out_of_memory
from dst_grpc.wire.limits import MAX_ENTRIES, MAX_FIELDS, MAX_LONG_TEXT_BYTES, MAX_TEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import Descriptor

M = TypeVar("M", bound=Message)

_SMALL_BYTES = 1024
"""A message of so few bytes is within every limit that matters: counting it would take longer than reading it."""
_LIGHT_FIELDS = 1000
_NUMBERS_PER_FIELD = 4
"""Packed numbers are read that many times faster than fields."""
_MAX_DEPTH = 100
"""Protobuf's own limit."""
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MORE = 0x80
"""The bit that is set in every byte of a varint but its last."""
_LONGER = bytes(range(_MORE, 256))


def parse(message_type: type[M], data: bytes) -> M:
    """Parse *data* as a message of *message_type*.

    Raises:
        InvalidRequest: with reason MALFORMED_MESSAGE, if the bytes are not such a message or nest too deeply; with the
            path of a list or text that is larger than `limits` allows.
    """
    if len(data) > _SMALL_BYTES:
        _check(message_type, data, MAX_FIELDS)
    try:
        return message_type.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise_if_out_of_memory(error)
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequest.of(
            "",
            f"the {len(data)} bytes are no {name}: corrupt, nested deeper than {_MAX_DEPTH} messages, or text that is"
            " not UTF-8",
            reason=Reason.MALFORMED_MESSAGE,
        ) from None


def is_light(message_type: type[Message], data: bytes) -> bool:
    """Whether *data* holds so little, or is so wrong, that parsing and reading it takes a few milliseconds at most."""
    if len(data) <= _SMALL_BYTES:
        return True
    try:
        _check(message_type, data, _LIGHT_FIELDS)
    except _TooManyFieldsError:
        return False
    except InvalidRequest:
        return True
    return True


def text_at(message_type: type[Message], data: bytes, path: str) -> str | None:
    """The text at *path* in *data*, which need not be parsed: an id, of a message that is refused.

    None if the first message of the path is not found among the first fields; empty if only the text is not.
    """
    found: list[bytes | None] = [data]
    descriptor: Any = message_type.DESCRIPTOR
    for name in path.split("."):
        field = descriptor.fields_by_name[name]
        found.append(_content(found[-1] or b"", field.number << 3 | _LENGTH_DELIMITED))
        descriptor = field.message_type
    if found[1] is None:
        return None
    return (found[-1] or b"")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def _content(data: bytes, wanted: int) -> bytes | None:
    """What the first field of the tag *wanted* holds."""
    at = 0
    try:
        for _ in range(_LIGHT_FIELDS):
            tag, at = _varint(data, at)
            after = _end_of(data, at, tag & 7)
            if tag == wanted:
                _, at = _varint(data, at)
                return data[at:after]
            at = after
    except IndexError:
        pass
    return None


class _TooManyFieldsError(InvalidRequest):
    """The message holds more fields than were to be counted."""


class _Kind(Enum):
    """What a field of a message holds."""

    TEXT = auto()
    NUMBERS = auto()
    MESSAGE = auto()


class _Field(NamedTuple):
    """A field that is counted."""

    name: str
    kind: _Kind
    is_list: bool
    max_entries: int
    max_bytes: int
    entry_bytes: int
    """Bytes of a packed number; 0 if it varies."""
    content: Descriptor | None
    """Of what message."""


_Layout = dict[int, _Field]
"""The fields that are counted, by tag."""


@cache
def _layout(descriptor: Descriptor) -> _Layout:
    return {tag: found for field in descriptor.fields for tag, found in _tagged(field).items()}


def _tagged(field: FieldDescriptor) -> Mapping[int, _Field]:
    """*field* by the tags that it may have; nothing if it holds one number."""
    kind = _Kind.NUMBERS
    if field.message_type is not None:
        kind = _Kind.MESSAGE
    elif field.type == FieldDescriptor.TYPE_STRING:
        kind = _Kind.TEXT
    elif field.type == FieldDescriptor.TYPE_BYTES or not field.is_repeated:
        return {}
    wire_type = _WIRE_TYPES.get(field.type, _VARINT)
    found = _Field(
        name=field.name,
        kind=kind,
        is_list=field.is_repeated,
        max_entries=MAX_ENTRIES.get(field.full_name, MAX_FIELDS),
        max_bytes=MAX_LONG_TEXT_BYTES.get(field.full_name, MAX_TEXT_BYTES),
        entry_bytes=_FIXED_BYTES.get(wire_type, 0),
        content=field.message_type,
    )
    # Numbers may be packed or not, whatever the schema says.
    return {field.number << 3 | each: found for each in (_LENGTH_DELIMITED, *((wire_type,) * (kind is _Kind.NUMBERS)))}


_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: _FIXED64,
    FieldDescriptor.TYPE_FIXED64: _FIXED64,
    FieldDescriptor.TYPE_SFIXED64: _FIXED64,
    FieldDescriptor.TYPE_FLOAT: _FIXED32,
    FieldDescriptor.TYPE_FIXED32: _FIXED32,
    FieldDescriptor.TYPE_SFIXED32: _FIXED32,
}


def _check(message_type: type[Message], data: bytes, max_fields: int) -> None:
    """Raise InvalidRequest if *data*, a message of *message_type*, is beyond a limit."""
    descriptor: Any = message_type.DESCRIPTOR
    _Counter(data, max_fields).count(0, len(data), descriptor, {}, "", _MAX_DEPTH)


class _Counter:
    """Counts the fields of a message, from its first to its last or to one that is beyond a limit."""

    def __init__(self, data: bytes, max_fields: int) -> None:
        self._data = data
        self._max_fields = max_fields
        self._left = max_fields

    def count(self, at: int, end: int, descriptor: Descriptor, seen: dict[int, object], path: str, depth: int) -> None:
        """Count the fields between *at* and *end*.

        Args:
            at: where a message of *descriptor* begins.
            end: where it ends.
            descriptor: what it is.
            seen: what earlier parts of the same message held, by number of the field: entries of a list, or the same
                of a message.
            path: of the message, for the error.
            depth: how many messages more may be within one another.
        """
        data, layout = self._data, _layout(descriptor)
        try:
            while at < end:
                self._spend(1)
                tag = data[at]
                at += 1
                if tag & _MORE:
                    tag, at = _varint(data, at - 1)
                after = _end_of(data, at, tag & 7)
                field = layout.get(tag)
                if field is not None:
                    if tag & 7 == _LENGTH_DELIMITED:
                        _, at = _varint(data, at)
                    self._count_field(field, tag, at, min(after, end), seen, path, depth)
                at = after
        except IndexError:
            return  # It ends too soon; parsing says so.

    def _count_field(
        self, field: _Field, tag: int, at: int, after: int, seen: dict[int, object], path: str, depth: int
    ) -> None:
        """Count the content of *field*, between *at* and *after*."""
        number, place = tag >> 3, field.name
        if field.is_list:
            before = seen.get(number, 0)
            assert isinstance(before, int)  # noqa: S101  of a list, it is
            n_entries = 1
            if field.kind is _Kind.NUMBERS and tag & 7 == _LENGTH_DELIMITED:
                n_entries = self._n_packed(at, after, field.entry_bytes)
            seen[number] = n_found = before + n_entries
            if n_found > field.max_entries:
                description = f"must hold at most {field.max_entries} entries"
                raise InvalidRequest.of(join_path(path, place), description)
            self._spend(n_entries // _NUMBERS_PER_FIELD)
            place = f"{place}[{before}]"
        if field.kind is _Kind.TEXT and after - at > field.max_bytes:
            description = f"must take at most {field.max_bytes} bytes, not {after - at}"
            raise InvalidRequest.of(join_path(path, place), description)
        if field.content is not None and depth:
            within: dict[int, object] = {}
            if not field.is_list:
                found = seen.setdefault(number, within)
                assert isinstance(found, dict)  # noqa: S101  of a message, it is
                within = found
            self.count(at, after, field.content, within, join_path(path, place), depth - 1)

    def _n_packed(self, at: int, after: int, entry_bytes: int) -> int:
        if entry_bytes:
            return (after - at) // entry_bytes
        return len(self._data[at:after].translate(None, _LONGER))

    def _spend(self, n_fields: int) -> None:
        self._left -= n_fields
        if self._left < 0:
            description = f"the message holds more than {self._max_fields} fields"
            raise _TooManyFieldsError.of("", description)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and the position after it; raises IndexError if there is none."""
    value = shift = 0
    while data[at] & _MORE:
        value |= (data[at] & ~_MORE) << shift
        shift += 7
        at += 1
        if shift > _MAX_SHIFT:
            raise IndexError
    return value | data[at] << shift, at + 1


_MAX_SHIFT = 63


def _end_of(data: bytes, at: int, wire_type: int) -> int:
    """The position after the content at *at* of a field of *wire_type*."""
    if wire_type == _LENGTH_DELIMITED:
        size, at = _varint(data, at)
        return at + size
    if wire_type == _VARINT:
        return _varint(data, at)[1]
    return at + _FIXED_BYTES.get(wire_type, 0)  # groups are counted as if their fields were the message's
