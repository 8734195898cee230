"""Between domain values and messages: one codec, made of the fields of a class and of its message's descriptor.

A frozen dataclass and the message of its name mirror each other. A field is the message's field of the same name;
one that is named like a oneof holds what its arm holds, told by its class. Enums go by name, tuples are lists, a tuple
of a fixed length is a message's fields in order, pairs of a mapping are sorted. None is what is absent, as are an empty
text and an unspecified enum, everywhere. What cannot go by these rules is in `kinds`, `tables`, and in the tables below.

Reading does not stop at a bad field. It notes what is wrong and puts a *stand-in* in its place, a value about which no
rule complains, so that all that is wrong is found: by the rules of the class, and, of requests, by those who look at
the value afterwards. A value is not kept if a field is bad that the others depend on; its parent then has a stand-in
for it. Work is linear in the size of a message, and what is noted is bounded (see `errors.MAX_VIOLATIONS`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property, reduce
from operator import attrgetter, or_
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKRequest
from dst_grpc.domain.explanations import NodeTable, ScalarSum
from dst_grpc.domain.indices import ActivationIndex, AttnSubActivationIndex, AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec, Intervention, RequestTensor, SetValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.put_tensors import PutTensor
from dst_grpc.domain.requests import (
    DeriveRequest,
    DeriveStreamRequest,
    Prompt,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.resolution import RegistryChange, Resolution
from dst_grpc.domain.results import AnswerHeader, AnswerTrailer, TensorInfo
from dst_grpc.domain.server_info import ServerInfo
from dst_grpc.domain.trace import MAX_TRACE_DEPTH, TraceConfig
from dst_grpc.errors import DataLoss, InvalidRequest, Reason, Violations
from dst_grpc.wire import kinds
from dst_grpc.wire.checks import check_header, check_tensor_info
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.kinds import BAD, Kind
from dst_grpc.wire.messages import MESSAGES
from dst_grpc.wire.tables import TableRows, rows_of, table_of

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, OneofDescriptor
    from google.protobuf.message import Message

T = TypeVar("T")
Read = Callable[[Any, Violations], Any]
Write = Callable[[Any], Any]

MESSAGE_NAMES: Mapping[type, str] = {
    AnswerHeader: "Header",
    AnswerTrailer: "Trailer",
    Resolution: "Resolved",
    RegistryChange: "ReloadRegistryResponse",
    ServerInfo: "GetServerInfoResponse",
    PutTensor: "PutTensorResponse",
    AttnSubNodeIndex: "NodeIndex",
    AttnSubActivationIndex: "ActivationIndex",
    TableRows: "NodeTable",
}
"""Messages that do not bear the name of their class."""
SPECIFIC: Mapping[type, tuple[str, type]] = {
    NodeIndex: ("q_k_or_v", AttnSubNodeIndex),
    ActivationIndex: ("q_or_k", AttnSubActivationIndex),
}
"""Classes of which a message holds a more specific one if a field is set."""
COMPUTED: Mapping[type, tuple[str, ...]] = {TensorInfo: ("byte_length",)}
"""Properties that travel too, so that clients need not compute them."""
CHECKS: Mapping[type, Callable[[Any, Any, Violations], None]] = {
    TensorInfo: check_tensor_info,
    AnswerHeader: check_header,
}
"""What is checked of an answer beyond the rules of its classes."""
PART_BY_PART = frozenset(
    {
        DeriveRequest,
        DeriveStreamRequest,
        ExplainRequest,
        ExplainRun,
        ResolveRequest,
        ResolveStreamRequest,
        TopKRequest,
    }
)
"""Requests: what is wrong with one of their fields says nothing of the others, whichever it is."""
STAND_INS: Mapping[tuple[type, str], Any] = {
    (DeriveRequest, "prompt"): Prompt(token_ids=(0,)),
    (ExplainRun, "prompt"): Prompt(token_ids=(0,)),
    (TraceConfig, "node_index"): NodeIndex(node_type=NodeType.ATTENTION_HEAD),
    (NodeAblation, "node_index"): NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(0, 0), layer_index=0),
    (AblationSpec, "index"): ActivationIndex(
        activation_location_type=ActivationLocationType.RESID_POST_EMBEDDING, tensor_indices=(None, None)
    ),
    (Intervention, "action"): SetValue(scalar=0.0),
}
"""Values about which no rule complains, where one made of the defaults of a field's type would not be."""


def to_wire(value: Any) -> Any:
    """The message of a domain value."""
    codec = codec_of(type(value))
    return codec.message_class(**codec.write(value))


def read(cls: type[T], message: Message) -> T:
    """The value of class *cls* in *message*.

    Raises:
        InvalidRequest: listing all that is wrong, by paths that begin at *message*.
    """
    value, problems = read_request(cls, message)
    problems.raise_if_any()
    return cast("T", value)


def read_request(cls: type[T], message: Message) -> tuple[T | None, Violations]:
    """The value in *message*, and all that is wrong with it, by paths that begin at *message*.

    What is wrong is replaced by stand-ins, about which nothing more is to be said. The value is None if nothing of it
    can be looked at.
    """
    problems = Violations()
    value = codec_of(cls).read(message, problems)
    return (None if value is BAD else value), problems


def read_answer(cls: type[T], message: Message) -> T:
    """The value of class *cls* in a *message* that a server sent.

    An answer may come from a newer server, with members of enums that this version does not know. Values of the
    domain cannot hold those, and to leave them out would silently falsify the answer, so such a message is refused.

    Raises:
        DataLoss: naming every field that cannot be read, with reason ANSWER_CORRUPT.
    """
    try:
        return read(cls, message)
    except InvalidRequest as error:
        raise DataLoss(
            f"the server's {message.DESCRIPTOR.name} cannot be read (is the server newer than this client?): "
            f"{error.message}",
            reason=Reason.ANSWER_CORRUPT,
        ) from error


class Fields(NamedTuple):
    """What a class and its message say of their fields. Names are the class's, paths the message's."""

    plain: tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]
    """Names of fields of which something empty is absent, and what gets them of a value."""
    writes: tuple[tuple[str, Write], ...]
    """Those of them that travel in another form, and how to write it."""
    exact: tuple[tuple[str, Write | None], ...]
    """Fields of which only None is absent, and how to write them."""
    arms: tuple[tuple[str, Write], ...]
    """Fields that hold the content of a oneof's arm, and how to write it."""
    reads: Mapping[FieldDescriptor, tuple[str, str, Read | None]]
    """By the message's field: name, path, and how to read it."""
    absent: Mapping[str, Any]
    """What the absence of a field means, where it is not the class's default."""
    required: Mapping[str, tuple[str, str]]
    """Fields that may not be absent: their path, and what is said if they are."""
    stand_ins: Mapping[str, Callable[[], Any]]
    """What makes a value that stands where a field's is bad."""
    elements: Mapping[str, Callable[[], Any]]
    """What makes one that stands where an element of a field is bad."""
    optional: frozenset[str]
    """Fields without which the others make sense."""
    names: Mapping[str, str]
    """The name of the field at a path."""


class Codec:
    """One class, both ways."""

    def __init__(self, cls: type) -> None:
        """Find the message; the fields are looked at when they are first needed."""
        self._cls = cls
        self._check = CHECKS.get(cls)
        self._specific = SPECIFIC.get(cls)
        self.message_class: Any = MESSAGES[MESSAGE_NAMES.get(cls, cls.__name__)]

    @cached_property
    def kind(self) -> Kind:
        """How values travel within others."""
        return Kind(self.write if self._specific is None else _write, self.read, self.stand_in)

    @cached_property
    def fields(self) -> Fields:
        """The fields of the class and of its message."""
        return _fields_of(self._cls, self.message_class.DESCRIPTOR)

    @cached_property
    def write(self) -> Write:
        """Makes what the message's constructor takes."""
        return _writer(self.fields)

    def read(self, message: Any, problems: Violations) -> Any:
        """The value in *message*, or BAD; notes what is wrong, by paths that begin at *message*."""
        if self._specific is not None and getattr(message, self._specific[0]):
            return codec_of(self._specific[1]).read(message, problems)
        fields = self.fields
        values = dict(fields.absent)
        start = at = len(problems.listed)
        before = seen = problems.count
        for field, content in message.ListFields():
            known = fields.reads.get(field)
            if known is None:
                continue
            name, path, convert = known
            values[name] = content if convert is None else convert(content, problems)
            if problems.count != seen:
                problems.move(at, path)
                at, seen = len(problems.listed), problems.count
        for name, (path, complaint) in fields.required.items():
            if name not in values:
                problems.add(path, complaint)
                values[name] = BAD
        if problems.count == before:
            try:
                value = self._cls(**values)
            except InvalidRequest:
                pass
            else:
                if self._check is not None:
                    self._check(message, value, problems)
                return value if problems.count == before else BAD
        return self._mended(values, problems, start)

    def _mended(self, values: dict[str, Any], problems: Violations, start: int) -> Any:
        """The value of fields of which some are bad, with stand-ins; BAD if it is good for nothing.

        Notes what the class's rules find, except of what was noted from position *start* on.
        """
        fields = self.fields
        bad = {name for name, value in values.items() if value is BAD}
        known = {violation.field for violation in problems.listed[start:]}
        known |= {path for path, name in fields.names.items() if name in bad}
        for name in bad:
            values[name] = fields.stand_ins[name]()
        replaced: set[str] = set()
        is_first = True
        while True:
            try:
                value = self._cls(**values)
            except InvalidRequest as error:
                before = len(bad) + len(replaced)
                for violation in error.violations:
                    if is_first and not _is_within(violation.field, known):
                        problems.add(violation.field, violation.description, error.reason)
                    self._replace(values, violation.field, bad, replaced, only_whole=bool(error.omitted))
                if is_first:
                    problems.count += error.omitted
                    is_first = False
                if len(bad) + len(replaced) == before:
                    return BAD
            else:
                return value if self._cls in PART_BY_PART or bad <= fields.optional else BAD

    def _replace(
        self, values: dict[str, Any], path: str, bad: set[str], replaced: set[str], *, only_whole: bool
    ) -> None:
        """Put a stand-in where a rule complains of *path*: for an element at first, then for the field."""
        first, index = cast("re.Match[str]", _PLACE.match(path)).groups()
        name = self.fields.names.get(first)
        if name is None or name in bad:
            return
        place = f"{name}[{index}]"
        if index is None or only_whole or name not in self.fields.elements or place in replaced:
            bad.add(name)
            values[name] = self.fields.stand_ins[name]()
        else:
            replaced.add(place)
            i = int(index)
            values[name] = (*values[name][:i], self.fields.elements[name](), *values[name][i + 1 :])

    def stand_in(self) -> Any:
        """A value about which no rule says anything, made of the fields that must be there."""
        fields = self.fields
        return self._cls(**fields.absent, **{name: fields.stand_ins[name]() for name in fields.required})


_PLACE = re.compile(r"(\w*)(?:\[(\d+)\])?")


def _writer(fields: Fields) -> Write:
    """What makes a constructor's arguments of a value; a closure, since it is called for every element of a list."""
    (names, values_of), writes, exact, arms = fields.plain, fields.writes, fields.exact, fields.arms

    def write(value: Any) -> dict[str, Any]:
        found = {name: each for name, each in zip(names, values_of(value), strict=True) if each}
        for name, convert in writes:
            if name in found:
                found[name] = convert(found[name])
        for name, to_exact in exact:
            each = getattr(value, name)
            if each is not None:
                found[name] = each if to_exact is None else to_exact(each)
        for name, convert in arms:
            found.update(convert(getattr(value, name)))
        return found

    return write


def _is_within(path: str, known: set[str]) -> bool:
    """Whether *path* is one of *known*, or that of something within it."""
    while path:
        if path in known:
            return True
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return "" in known


class TableCodec(Codec):
    """Tables of nodes, which hold columns and travel as rows."""

    @cached_property
    def write(self) -> Write:
        """Makes what the message's constructor takes."""
        write_rows = codec_of(TableRows).write
        return lambda table: write_rows(rows_of(table))

    def read(self, message: Any, problems: Violations) -> Any:
        """The table in *message*, or BAD; notes what is wrong, by paths that begin at *message*."""
        rows = codec_of(TableRows).read(message, problems)
        return BAD if rows is BAD else table_of(rows, problems) or BAD

    def stand_in(self) -> NodeTable:
        """An empty table."""
        return NodeTable(nodes=(), groups=())


@cache
def codec_of(cls: type) -> Codec:
    """The codec of a class; raises KeyError if there is no message of its name."""
    return TableCodec(cls) if cls is NodeTable else Codec(cls)


def _write(value: Any) -> dict[str, Any]:
    return codec_of(type(value)).write(value)


def _fields_of(cls: type, message: Descriptor) -> Fields:
    """Pair the fields of *cls* with those of *message*."""
    pairs = [_pair(cls, field, hint, message) for field, hint in _hinted_fields(cls)]
    plain = [pair for pair in pairs if not (pair.is_exact or pair.is_oneof)]
    names = [*(pair.name for pair in plain), *COMPUTED.get(cls, ())]
    return Fields(
        plain=(tuple(names), _getter(names)),
        writes=tuple((pair.name, pair.write) for pair in plain if pair.write is not None),
        exact=tuple((pair.name, pair.write) for pair in pairs if pair.is_exact),
        arms=tuple((pair.name, pair.write) for pair in pairs if pair.write is not None and pair.is_oneof),
        reads={field: (pair.name, path, convert) for pair in pairs for field, path, convert in pair.reads},
        absent={pair.name: pair.absent for pair in pairs if pair.absent is not BAD},
        required={pair.name: pair.complaint for pair in pairs if pair.absent is BAD and pair.default is None},
        stand_ins={pair.name: pair.stand_in for pair in pairs},
        elements={pair.name: pair.element for pair in pairs if pair.element is not None},
        optional=frozenset(pair.name for pair in pairs if pair.is_optional),
        names={path: pair.name for pair in pairs for _, path, _ in pair.reads},
    )


class _Pair(NamedTuple):
    """A field of a class, and what of the message mirrors it; see `Fields`."""

    name: str
    is_oneof: bool
    is_exact: bool
    write: Write | None
    reads: list[tuple[FieldDescriptor, str, Read | None]]
    default: Callable[[], Any] | None
    """Makes what the class itself has for its absence."""
    absent: Any
    """BAD if the class decides about it."""
    complaint: tuple[str, str]
    is_optional: bool
    stand_in: Callable[[], Any]
    element: Callable[[], Any] | None = None


def _pair(cls: type, field: dataclasses.Field[Any], hint: Any, message: Descriptor) -> _Pair:
    name, default = field.name, _default_of(field)
    inner, may_be_none = _without_none(hint)
    absent: Any = None if may_be_none and default is None else BAD
    element = None
    if name in message.oneofs_by_name:
        arms = Arms(message.oneofs_by_name[name], inner)
        kind, is_exact = arms.kind, False
        reads = [(arm, arm.name, arms.reads[arm.name]) for arm in arms.fields]
        complaint = ("", arms.complaint)
    else:
        wire = message.fields_by_name[name]
        kind = FIELD_KINDS.get((cls, name)) or _kind(wire, hint)
        is_exact = _is_exact(cls, wire, inner)
        reads = [(wire, name, kind.read)]
        complaint = (name, "is required" if wire.enum_type is None else enum_codec(inner).complaint(0))
        if wire.is_repeated:
            absent = ()
            element = kind.element
        elif not (wire.has_presence or wire.enum_type is not None or may_be_none):
            absent = inner()
    special = STAND_INS.get((cls, name))
    return _Pair(
        name=name,
        is_oneof=name in message.oneofs_by_name,
        is_exact=is_exact,
        write=kind.write,
        reads=reads,
        default=default,
        absent=absent,
        complaint=complaint,
        is_optional=default is not None or may_be_none,
        stand_in=(lambda: special)
        if special is not None
        else default or (_none if may_be_none else kind.stand_in or _none),
        element=element,
    )


def _is_exact(cls: type, field: FieldDescriptor, hint: Any) -> bool:
    """Whether something empty in a field differs from absence. Of floats it does, since -0.0 is no 0."""
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return not field.is_repeated
    if not field.has_presence or dataclasses.is_dataclass(hint):
        return False
    return hint is not str or _is_arm(field) or (cls, field.name) in FIELD_KINDS


def _none() -> None:
    """What stands for what may be absent."""


def _hinted_fields(cls: Any) -> Iterable[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their types."""
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    """What makes the default of a field, if it has one."""
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
    """What gets the attributes *names* of a value."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


# Kinds of fields, by what their types say


def _kind(field: FieldDescriptor, hint: Any) -> Kind:
    """How the values of a field travel."""
    inner, may_be_none = _without_none(hint)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return Kind(dict, lambda pairs, _: tuple(sorted(pairs.items())), tuple)
        return _list_kind(_element_kind(field, get_args(inner)[0]))
    return _single_kind(field, inner, may_be_none=may_be_none)


def _element_kind(field: FieldDescriptor, hint: Any) -> Kind:
    """How an element of a list travels."""
    inner, may_be_none = _without_none(hint)
    if may_be_none and field.message_type is None:
        return Kind(lambda number: number or 0, lambda number, _: number or None)  # e.g. no window
    return _single_kind(field, hint if may_be_none else inner, may_be_none=False)


def _single_kind(field: FieldDescriptor, hint: Any, *, may_be_none: bool) -> Kind:
    """How one value travels."""
    message = field.message_type
    if field.enum_type is not None:
        return kinds.enum(hint)
    if message is None:
        return kinds.OPTIONAL_TEXT if hint is str and may_be_none and not _is_arm(field) else kinds.scalar(hint)
    if message.full_name in _WELL_KNOWN:
        return _WELL_KNOWN[message.full_name]
    if get_origin(hint) is tuple:
        return _wrapped_kind(message, hint) if get_args(hint)[-1] is ... else _pair_kind(message)
    if dataclasses.is_dataclass(hint):
        return codec_of(cast("type", hint)).kind
    return Arms(message.oneofs[0], hint).kind


_WELL_KNOWN = {
    "google.protobuf.Duration": kinds.DURATION,
    "google.protobuf.Timestamp": kinds.TIME,
    "google.rpc.Status": kinds.ERROR,
}


def _is_arm(field: FieldDescriptor) -> bool:
    """Whether a field belongs to a oneof that is written as one."""
    oneof = field.containing_oneof
    return oneof is not None and len(oneof.fields) > 1


def _list_kind(element: Kind) -> Kind:
    """A list of any length."""
    write_one, read_one, stand_in, _ = element

    def write(values: Iterable[Any]) -> Iterable[Any]:
        return values if write_one is None else list(map(write_one, values))

    def read(contents: Iterable[Any], problems: Violations) -> Any:
        if read_one is None:
            return tuple(contents)
        found = []
        at, seen = len(problems.listed), problems.count
        for i, content in enumerate(contents):
            value = read_one(content, problems)
            if problems.count != seen:
                problems.move(at, f"[{i}]")
                at, seen = len(problems.listed), problems.count
                value = stand_in() if value is BAD and stand_in is not None else value
            found.append(value)
        return tuple(found)

    return Kind(write, read, tuple, stand_in)


def _wrapped_kind(message: Descriptor, hint: Any) -> Kind:
    """A list in a message of its own, so that it may be absent."""
    (field,) = message.fields
    inner = _list_kind(_element_kind(field, get_args(hint)[0]))
    name, write_list, read_list = field.name, cast("Write", inner.write), cast("Read", inner.read)

    def read(content: Any, problems: Violations) -> Any:
        start = len(problems.listed)
        found = read_list(getattr(content, name), problems)
        problems.move(start, name)
        return found

    return Kind(lambda values: {name: write_list(values)}, read, tuple)


def _pair_kind(message: Descriptor) -> Kind:
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
    """The arms of a oneof, each for a class of values; a bare number is itself, and an arm without content None."""

    def __init__(self, oneof: OneofDescriptor, hint: Any) -> None:
        """Pair the arms with the classes in *hint*: those of a union, or the subclasses of one."""
        self._oneof = oneof.name
        self.fields = tuple(oneof.fields)
        classes = {MESSAGE_NAMES.get(cls, cls.__name__): cls for cls in _classes_in(hint)}
        self._arms: dict[type, str] = {}
        self.reads: dict[str, Read | None] = {}
        for field in self.fields:
            name = None if field.message_type is None else field.message_type.name
            if name in classes:
                self._arms[classes[name]] = field.name
                self.reads[field.name] = codec_of(classes[name]).read
            elif name is None:
                self._arms[int] = field.name
                self.reads[field.name] = None
            elif not field.message_type.fields:
                self._arms[type(None)] = field.name
                self.reads[field.name] = lambda *_: None

    @property
    def complaint(self) -> str:
        """What is said if no arm is set."""
        return f"is required: set one of {', '.join(field.name for field in self.fields)}"

    def write(self, value: Any) -> dict[str, Any]:
        """The arm of *value*, by name, with what its constructor takes."""
        if value is None:
            return {self._arms[type(None)]: {}}
        arm = self._arms.get(type(value))
        return {self._arms[int]: int(value)} if arm is None or type(value) is int else {arm: _write(value)}

    def read(self, message: Any, problems: Violations) -> Any:
        """The value in a *message* that is nothing but this oneof."""
        arm = message.WhichOneof(self._oneof)
        if arm is None:
            problems.add("", self.complaint)
            return BAD
        start = len(problems.listed)
        convert = self.reads[arm]
        value = getattr(message, arm) if convert is None else convert(getattr(message, arm), problems)
        problems.move(start, arm)
        return value

    @property
    def kind(self) -> Kind:
        """How values travel in a message that is nothing but this oneof."""
        return Kind(self.write, self.read, _none)


def _classes_in(hint: Any) -> list[type]:
    """The classes that a type stands for."""
    args = get_args(hint) or (hint,)
    return [cls for arg in args for cls in (arg, *arg.__subclasses__()) if dataclasses.is_dataclass(cls)]


def _downstream(message: Any, problems: Violations) -> Any:
    """The trace downstream of another. A message may nest deeper than any valid chain, and is not followed then."""
    depth, last = 2, message
    while last.HasField("downstream_trace_config"):
        depth, last = depth + 1, last.downstream_trace_config
    if depth > MAX_TRACE_DEPTH:
        problems.add("", f"makes a chain of {depth} traces; at most {MAX_TRACE_DEPTH} may follow one another")
        return BAD
    return codec_of(TraceConfig).read(message, problems)


FIELD_KINDS: Mapping[tuple[type, str], Kind] = {
    (ScalarSum, "values"): kinds.array(Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS),
    (RequestTensor, "tensor"): kinds.array(),
    (TraceConfig, "downstream_trace_config"): Kind(_write, _downstream),
}
"""Fields that travel in a form of their own."""
