"""The fields of a class paired with those of its message, and how each is converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce
from operator import attrgetter, or_
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor

from dst_grpc.wire import kinds
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.kinds import BAD, Arms, Kind, none
from dst_grpc.wire.particulars import ARRAYS, COMPUTED, MESSAGE_NAMES, STAND_INS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.descriptor import Descriptor

    from dst_grpc.wire.kinds import Read, Write

KindOf = Callable[[type], Kind]
"""How the values of a class are converted."""


class Fields(NamedTuple):
    """The fields of a class and its message. Names are the class's, paths the message's."""

    plain: tuple[tuple[str, Write | None], ...]
    """Fields whose empty value is written as absent, and how to write them."""
    plain_values: Callable[[Any], tuple[Any, ...]]
    """A getter of them."""
    exact: tuple[tuple[str, Write | None], ...]
    """Fields of which only None is written as absent, and how to write them."""
    arms: tuple[tuple[str, Write], ...]
    """Fields that hold the content of a oneof's arm, and how to write it."""
    reads: Mapping[FieldDescriptor, tuple[str, str, Read | None]]
    """By the message's field: name, path, and how to read it."""
    absent: Mapping[str, Any]
    """The value of an absent field, where it is not the class's default."""
    required: Mapping[str, tuple[str, str]]
    """Required fields: their path, and the violation if they are absent."""
    stand_ins: Mapping[str, Callable[[], Any]]
    """Makes a stand-in for a bad field."""
    elements: Mapping[str, Callable[[], Any]]
    """Makes a stand-in for a bad element of a field."""
    optional: frozenset[str]
    """Fields that the others do not depend on."""
    names: Mapping[str, str]
    """The name of the field at a path."""


def fields_of(cls: type, message: Descriptor, kind_of: KindOf) -> Fields:
    """Pair the fields of *cls* with those of *message*; *kind_of* says how values of other classes are converted."""
    pairs = [_pair(cls, field, hint, message, kind_of) for field, hint in _hinted_fields(cls)]
    plain = [pair for pair in pairs if not (pair.is_exact or pair.is_oneof)]
    computed = COMPUTED.get(cls, ())
    return Fields(
        plain=(*((pair.name, pair.write) for pair in plain), *((name, None) for name in computed)),
        plain_values=_getter([*(pair.name for pair in plain), *computed]),
        exact=tuple((pair.name, pair.write) for pair in pairs if pair.is_exact),
        arms=tuple((pair.name, pair.write) for pair in pairs if pair.write is not None and pair.is_oneof),
        reads={field: (pair.name, field.name, read) for pair in pairs for field, read in pair.reads.items()},
        absent={pair.name: pair.absent for pair in pairs if pair.absent is not BAD},
        required={pair.name: pair.complaint for pair in pairs if pair.absent is BAD and not pair.is_optional},
        stand_ins={pair.name: pair.stand_in for pair in pairs},
        elements={pair.name: pair.element for pair in pairs if pair.element is not None},
        optional=frozenset(pair.name for pair in pairs if pair.is_optional),
        names={field.name: pair.name for pair in pairs for field in pair.reads},
    )


class _Pair(NamedTuple):
    """A field of a class and its counterpart in the message; see `Fields`."""

    name: str
    is_oneof: bool
    is_exact: bool
    write: Write | None
    reads: Mapping[FieldDescriptor, Read | None]
    absent: Any
    """BAD if the class decides about it."""
    complaint: tuple[str, str]
    is_optional: bool
    stand_in: Callable[[], Any]
    element: Callable[[], Any] | None


def _pair(cls: type, field: dataclasses.Field[Any], hint: Any, message: Descriptor, kind_of: KindOf) -> _Pair:
    name, default = field.name, _default_of(field)
    inner, may_be_none = _without_none(hint)
    oneof = message.oneofs_by_name.get(name)
    absent: Any = None if may_be_none and default is None else BAD
    if oneof is not None:
        arms = _arms(oneof, inner, kind_of)
        kind, is_exact, reads, complaint = arms.kind, False, arms.reads, ("", arms.complaint)
    else:
        wire = message.fields_by_name[name]
        kind = ARRAYS.get((cls, name)) or _kind(wire, hint, kind_of)
        is_exact = _is_exact(cls, wire, inner)
        reads = {wire: kind.read}
        complaint = (name, "is required")
        if wire.is_repeated:
            absent = ()
        elif wire.enum_type is not None:
            complaint = (name, enum_codec(inner).complaint(0))
        elif not (wire.has_presence or may_be_none):
            absent = inner()
    return _Pair(
        name=name,
        is_oneof=oneof is not None,
        is_exact=is_exact,
        write=kind.write,
        reads=reads,
        absent=absent,
        complaint=complaint,
        is_optional=default is not None or may_be_none,
        stand_in=STAND_INS.get((cls, name)) or default or (none if may_be_none else kind.stand_in or none),
        element=kind.element,
    )


def _is_exact(cls: type, field: FieldDescriptor, hint: Any) -> bool:
    """Whether an empty value of a field differs from absence. For floats it does, since -0.0 is not 0."""
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return not field.is_repeated
    if not field.has_presence or dataclasses.is_dataclass(hint):
        return False
    return hint is not str or _is_arm(field) or (cls, field.name) in ARRAYS


def _hinted_fields(cls: Any) -> Iterable[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their types."""
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    """Makes the default of a field, if it has one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is not dataclasses.MISSING:
        return lambda: field.default
    return None


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether it had it."""
    args = get_args(hint)
    if get_origin(hint) not in {Union, UnionType} or type(None) not in args:
        return hint, False
    return reduce(or_, [arg for arg in args if arg is not type(None)]), True


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A getter of the attributes *names* of a value."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _kind(field: FieldDescriptor, hint: Any, kind_of: KindOf) -> Kind:
    """How the values of a field are converted."""
    inner, may_be_none = _without_none(hint)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return kinds.MAPPING
        return kinds.list_of(_element_kind(field, get_args(inner)[0], kind_of))
    return _single_kind(field, inner, kind_of, may_be_none=may_be_none)


def _element_kind(field: FieldDescriptor, hint: Any, kind_of: KindOf) -> Kind:
    """How an element of a list is converted."""
    if field.message_type is None and _without_none(hint)[1]:
        return kinds.NUMBER_OR_NONE
    return _single_kind(field, hint, kind_of, may_be_none=False)


def _single_kind(field: FieldDescriptor, hint: Any, kind_of: KindOf, *, may_be_none: bool) -> Kind:
    """How a single value is converted."""
    message = field.message_type
    if field.enum_type is not None:
        return kinds.enum(hint)
    if message is None:
        return kinds.OPTIONAL_TEXT if hint is str and may_be_none and not _is_arm(field) else kinds.scalar(hint)
    if message.full_name in _WELL_KNOWN:
        return _WELL_KNOWN[message.full_name]
    if get_origin(hint) is tuple:
        element, *more = get_args(hint)
        if more != [...]:
            return kinds.fields_in_order(message)
        (elements,) = message.fields
        return kinds.wrapped_list(elements.name, _element_kind(elements, element, kind_of))
    if dataclasses.is_dataclass(hint):
        return kind_of(cast("type", hint))
    return _arms(message.oneofs[0], hint, kind_of).kind


_WELL_KNOWN = {
    "google.protobuf.Duration": kinds.DURATION,
    "google.protobuf.Timestamp": kinds.TIME,
    "google.rpc.Status": kinds.ERROR,
}


def _is_arm(field: FieldDescriptor) -> bool:
    """Whether a field is one of several arms of a oneof."""
    oneof = field.containing_oneof
    return oneof is not None and len(oneof.fields) > 1


def _arms(oneof: Any, hint: Any, kind_of: KindOf) -> Arms:
    """The arms of a oneof for values of a union, or of the subclasses of a class."""
    alternatives: tuple[type, ...] = get_args(hint) or (hint, *hint.__subclasses__())
    names = {field.message_type.name for field in oneof.fields if field.message_type is not None}
    named = {MESSAGE_NAMES.get(cls, cls.__name__): cls for cls in alternatives}
    return Arms(oneof, {name: (cls, kind_of(cls)) for name, cls in named.items() if name in names})
