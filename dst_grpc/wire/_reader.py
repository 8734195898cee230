"""Reads the fields of one message and collects what is wrong with them; the one place where violations gather.

A bad field does not stop the reading. It yields a *stand-in*, a value about which no rule of its parent complains, so
that the parent's rules about all its other fields still run; since the violation is noted, the value made of stand-ins
is never handed out. What a message means is the business of the modules that use this one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from dst_grpc.errors import DataLoss, InvalidRequest, Reason, Violations
from dst_grpc.wire.paths import wire_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from dst_grpc.wire.enums import EnumCodec

E = TypeVar("E", bound=Enum)
M = TypeVar("M", bound="Message")
T = TypeVar("T")


class Reader:
    """One message being read."""

    def __init__(self, message: Message) -> None:
        """Start reading *message*."""
        self._message = message
        self._problems = Violations()
        self._failed: set[str] = set()

    def note(self, field: str, description: str) -> None:
        """Note that *field* is wrong."""
        self._failed.add(field)
        self._problems.add(field, description)

    def failed(self, field: str) -> bool:
        """Whether anything was wrong with *field* itself."""
        return field in self._failed

    def enum(self, field: str, codec: EnumCodec[E], default: T) -> E | T:
        """The member in *field*; *default* if unspecified, or, noted, if unknown."""
        number: int = getattr(self._message, field)
        member = codec.from_wire(number)
        if member is None and number != 0:
            self.note(field, codec.complaint(number))
        return default if member is None else member

    def required_enum(self, field: str, codec: EnumCodec[E], stand_in: E) -> E:
        """The member in *field*; *stand_in*, noted, if unspecified or unknown."""
        number: int = getattr(self._message, field)
        member = codec.from_wire(number)
        if member is None:
            self.note(field, codec.complaint(number))
            return stand_in
        return member

    def enums(self, field: str, codec: EnumCodec[E]) -> tuple[E, ...]:
        """The members in a repeated *field*; unspecified and unknown ones are noted."""
        numbers: list[int] = list(getattr(self._message, field))
        found: list[E] = []
        for i, number in enumerate(numbers):
            member = codec.from_wire(number)
            if member is None:
                self.note(f"{field}[{i}]", codec.complaint(number))
            else:
                found.append(member)
        return tuple(found)

    def present(self, field: str) -> Any:
        """The value of a field with presence, or None if it is absent."""
        return getattr(self._message, field) if self._message.HasField(field) else None

    def child(self, field: str, convert: Callable[[Any], T]) -> T | None:
        """The message in *field*, converted; None if it is absent or, noted, bad."""
        if not self._message.HasField(field):
            return None
        return self._convert(field, convert, getattr(self._message, field))

    def required_child(self, field: str, convert: Callable[[Any], T], stand_in: T) -> T:
        """The message in *field*, converted; *stand_in*, noted, if it is absent or bad."""
        if not self._message.HasField(field):
            self.note(field, "is required")
            return stand_in
        value = self._convert(field, convert, getattr(self._message, field))
        return stand_in if value is None else value

    def children(self, field: str, convert: Callable[[Any], T]) -> tuple[T, ...]:
        """The messages in a repeated *field*, converted; bad ones are noted and left out."""
        found = (self._convert(f"{field}[{i}]", convert, item) for i, item in enumerate(getattr(self._message, field)))
        return tuple(value for value in found if value is not None)

    def finish(self, make: Callable[[], T]) -> T:
        """Make the value out of what was read.

        Raises:
            InvalidRequest: with all that was noted, and what *make* itself complains about, except where that was
                noted already.
        """
        try:
            value = make()
        except InvalidRequest as error:
            for violation in error.violations:
                path = wire_path(violation.field)
                if not self._stems_from_a_failed_field(path):
                    self._problems.add(path, violation.description, error.reason)
            self._problems.raise_if_any()
            raise
        self._problems.raise_if_any()
        return value

    def _convert(self, field: str, convert: Callable[[Any], T], message: Any) -> T | None:
        try:
            return convert(message)
        except InvalidRequest as error:
            self._failed.add(field)
            self._problems.extend(error, field)
            return None

    def _stems_from_a_failed_field(self, path: str) -> bool:
        return any(path == field or path.startswith((f"{field}.", f"{field}[")) for field in self._failed)


def read_answer(convert: Callable[[M], T], message: M) -> T:
    """Convert a message that a server sent.

    An answer may come from a newer server, with members of enums that this version does not know. Values of the
    domain cannot hold those, and to leave them out would silently falsify the answer, so such a message is refused.

    Raises:
        DataLoss: naming every field that cannot be read, with reason ANSWER_CORRUPT.
    """
    try:
        return convert(message)
    except InvalidRequest as error:
        name = message.DESCRIPTOR.name
        raise DataLoss(
            f"the server's {name} cannot be read (is the server newer than this client?): {error.message}",
            reason=Reason.ANSWER_CORRUPT,
        ) from error
