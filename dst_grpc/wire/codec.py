"""One codec between domain values and messages, built from the fields of a class and the descriptor of its message.

A frozen dataclass and the message of its name mirror each other. A field corresponds to the message's field of the same
name; a field that is named like a oneof holds the content of its arm, and its class determines the arm. Enums are
converted by name, tuples are lists, a tuple of a fixed length is a message's fields in order, pairs of a mapping are
sorted. An absent field, an empty string and an unspecified enum are None, everywhere. Exceptions to these rules are in
`particulars` and `tables`.

Reading does not stop at a bad field. It notes the violation and puts a *stand-in* in its place, a valid value, so that
all violations are found: by the rules of the class, and, for requests, by planning. A value is dropped if a field is
bad that the others depend on; its parent then has a stand-in for it. Work is linear in the size of a message, and the
number of violations is bounded (see `errors.MAX_VIOLATIONS`).
"""

from __future__ import annotations

import re
from enum import Enum
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dst_grpc.domain.explanations import NodeTable
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.trace import MAX_TRACE_DEPTH, TraceConfig
from dst_grpc.errors import DataLoss, InvalidRequest, Reason, Violations
from dst_grpc.wire.fields import Fields, fields_of
from dst_grpc.wire.kinds import BAD, Kind, list_reader, within
from dst_grpc.wire.messages import MESSAGES
from dst_grpc.wire.particulars import CHECKS, MESSAGE_NAMES, PART_BY_PART, SPECIFIC, STAND_INS
from dst_grpc.wire.tables import TableGroup, check_table, table_of, texts_of, values_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from dst_grpc.wire.kinds import Read, Write

T = TypeVar("T")

_TRIES_BY_ELEMENT = 3
"""How often single elements of a list are replaced. A rule about all of them together names one at a time: it would be
checked as often as there are elements."""


def to_wire(value: Any) -> Any:
    """The message of a domain value."""
    codec = codec_of(type(value))
    return codec.message_class(**codec.write(value))


def message_class_of(cls: type) -> type[Message]:
    """The class of the messages that hold values of *cls*."""
    return cast("type[Message]", codec_of(cls).message_class)


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

    Bad fields hold stand-ins, whose violations are not to be reported. The value is None if nothing of it is usable.
    """
    problems = Violations()
    value = codec_of(cls).read(message, problems)
    return (None if value is BAD else value), problems


def read_answer(cls: type[T], message: Message) -> T:
    """The value of class *cls* in a *message* that a server sent.

    An answer may come from a newer server, with enum members that this version does not know. Domain values cannot hold
    those, and omitting them would silently falsify the answer, so such a message is refused.

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


class Codec:
    """One class, both ways."""

    def __init__(self, cls: type) -> None:
        """Find the message; the fields are paired when they are first needed."""
        self._cls = cls
        self._check = CHECKS.get(cls)
        self._specific = SPECIFIC.get(cls)
        name = MESSAGE_NAMES.get(cls, cls.__name__)
        if name not in MESSAGES:
            raise TypeError(f"a value of class {cls.__name__} has no message: it is no request")
        self.message_class: Any = MESSAGES[name]

    @cached_property
    def kind(self) -> Kind:
        """How values are converted within others."""
        return Kind(self.write if self._specific is None else _write, self.read, self.stand_in)

    @cached_property
    def fields(self) -> Fields:
        """The fields of the class and of its message."""
        return fields_of(self._cls, self.message_class.DESCRIPTOR, _kind_of)

    @cached_property
    def write(self) -> Write:
        """The function from a value to the argument of the message's constructor."""
        return _writer(self.fields)

    def read(self, message: Any, problems: Violations) -> Any:
        """The value in *message*, or BAD; notes what is wrong, by paths that begin at *message*."""
        if self._specific is not None and getattr(message, self._specific[0]):
            return codec_of(self._specific[1]).read(message, problems)
        start, before = len(problems.listed), problems.count
        values = self._values(message, problems)
        if problems.count == before:
            try:
                value = self._cls(**values)
            except InvalidRequest:
                pass
            else:
                if self._check is not None:
                    self._check(message, value, problems)
                return value if problems.count == before else BAD
        if not problems.is_full:
            return self._mended(values, problems, start)
        # Once no more can be listed, nothing needs to be usable for what else is wrong with it.
        if problems.count == before:
            problems.add("", "")
        return BAD

    def _values(self, message: Any, problems: Violations) -> dict[str, Any]:
        """The values in *message*, by the names of fields; BAD where one cannot be read."""
        fields = self.fields
        values = dict(fields.absent)
        at, seen = len(problems.listed), problems.count
        for field, content in message.ListFields():
            known = fields.reads.get(field)
            if known is None:
                continue
            name, path, read_content = known
            values[name] = content if read_content is None else read_content(content, problems)
            if problems.count != seen:
                problems.move(at, path)
                at, seen = len(problems.listed), problems.count
        for name, (path, complaint) in fields.required.items():
            if name not in values:
                problems.add(path, complaint)
                values[name] = BAD
        return values

    def _mended(self, values: dict[str, Any], problems: Violations, start: int) -> Any:
        """The value of fields of which some are bad, with stand-ins; BAD if it is not usable.

        Notes violations of the class's rules, except at paths that were noted from position *start* on.
        """
        fields = self.fields
        bad = {name for name, value in values.items() if value is BAD}
        known = {violation.field for violation in problems.listed[start:]}
        known |= {path for path, name in fields.names.items() if name in bad}
        # A member in place of an unknown number may exclude the other members of its list.
        known |= {path for path in _lists_of(known) if _is_of_enums(values.get(fields.names.get(path, "")))}
        for name in bad:
            values[name] = fields.stand_ins[name]()
        replaced: set[str] = set()
        n_tries = 0
        while True:
            try:
                value = self._cls(**values)
            except InvalidRequest as error:
                before = len(bad) + len(replaced)
                only_whole = bool(error.omitted) or n_tries >= _TRIES_BY_ELEMENT
                for violation in error.violations:
                    if not n_tries and not _is_within(violation.field, known):
                        problems.add(violation.field, violation.description, error.reason)
                    self._replace(values, violation.field, bad, replaced, only_whole=only_whole)
                if not n_tries:
                    problems.count += error.omitted
                if len(bad) + len(replaced) == before:
                    return BAD
                n_tries += 1
            else:
                return value if self._cls in PART_BY_PART or bad <= fields.optional else BAD

    def _replace(
        self, values: dict[str, Any], path: str, bad: set[str], replaced: set[str], *, only_whole: bool
    ) -> None:
        """Put a stand-in where a rule is violated at *path*: first for the element, then for the field."""
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
        """A valid value, made of the required fields."""
        if self._cls in STAND_INS:
            return STAND_INS[self._cls]()
        fields = self.fields
        return self._cls(**fields.absent, **{name: fields.stand_ins[name]() for name in fields.required})


_PLACE = re.compile(r"(\w*)(?:\[(\d+)\])?")


def _writer(fields: Fields) -> Write:
    """A function from a value to its constructor's arguments; a closure, since it is called for every element of a
    list."""
    plain, values_of, exact, arms = fields.plain, fields.plain_values, fields.exact, fields.arms

    def write(value: Any) -> dict[str, Any]:
        values = values_of(value)
        found: dict[str, Any] = {
            name: each if to_plain is None else to_plain(each)
            for (name, to_plain), each in compress(zip(plain, values, strict=False), values)
        }
        for name, to_exact in exact:
            each = getattr(value, name)
            if each is not None:
                found[name] = each if to_exact is None else to_exact(each)
        for name, convert in arms:
            found.update(convert(getattr(value, name)))
        return found

    return write


def _lists_of(known: set[str]) -> set[str]:
    """Paths of the lists of which an element is one of *known*."""
    return {path[: path.rfind("[")] for path in known if path.endswith("]")}


def _is_of_enums(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Enum)


def _is_within(path: str, known: set[str]) -> bool:
    """Whether *path* is one of *known*, or within one."""
    while path:
        if path in known:
            return True
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return "" in known


class TableCodec(Codec):
    """Tables of nodes, which are columns in the domain and rows in messages. A table may have thousands of rows."""

    @cached_property
    def write(self) -> Write:
        """The function from a value to the argument of the message's constructor."""
        write_node, write_group = cast("Write", codec_of(NodeIndex).kind.write), codec_of(TableGroup).write

        def write(table: NodeTable) -> dict[str, Any]:
            rows = zip(map(write_node, table.nodes), texts_of(table), values_of(table), strict=True)
            known = {} if table.log_normalizer is None else {"log_normalizer": table.log_normalizer}
            return {
                "nodes": [{"node": node, "vocab_token": text, "values": values} for node, text, values in rows],
                "groups": [write_group(group) for group in table.groups],
                **known,
            }

        return write

    @cached_property
    def _read_nodes(self) -> Read:
        read_node = within("node", codec_of(NodeIndex).read)

        def read_row(row: Any, problems: Violations) -> Any:
            if row.HasField("node"):
                return read_node(row.node, problems)
            problems.add("node", "is required")
            return BAD

        return within("nodes", list_reader(read_row))

    @cached_property
    def _read_groups(self) -> Read:
        group = codec_of(TableGroup)
        return within("groups", list_reader(group.read, group.stand_in))

    def read(self, message: Any, problems: Violations) -> Any:
        """The table in *message*, or BAD; notes what is wrong, by paths that begin at *message*."""
        before, rows = problems.count, list(message.nodes)
        nodes, groups = self._read_nodes(rows, problems), self._read_groups(message.groups, problems)
        check_table(rows, groups, problems)
        log_normalizer = message.log_normalizer if message.HasField("log_normalizer") else None
        return BAD if problems.count > before else table_of(nodes, rows, groups, log_normalizer)

    def stand_in(self) -> NodeTable:
        """An empty table."""
        return NodeTable(nodes=(), groups=())


class _Codecs(dict[type, Codec]):
    """The codecs made so far."""

    def __missing__(self, cls: type) -> Codec:
        codec = self[cls] = TableCodec(cls) if cls is NodeTable else Codec(cls)
        return codec


codec_of = _Codecs().__getitem__
"""The codec of a class; raises TypeError if there is no message of its name."""


def _kind_of(cls: type) -> Kind:
    return _TRACE if cls is TraceConfig else codec_of(cls).kind


def _write(value: Any) -> Any:
    return codec_of(type(value)).write(value)


def _read_trace(message: Any, problems: Violations) -> Any:
    """A trace, and those downstream of it; nesting deeper than the longest valid chain is not followed."""
    depth, last = 1, message
    while last.HasField("downstream_trace_config"):
        depth, last = depth + 1, last.downstream_trace_config
    if depth > MAX_TRACE_DEPTH:
        problems.add("", f"makes a chain of {depth} traces; at most {MAX_TRACE_DEPTH} may follow one another")
        return BAD
    return codec_of(TraceConfig).read(message, problems)


_TRACE = Kind(_write, _read_trace)
