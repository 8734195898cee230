"""What planning finds wrong or missing, told at the paths of the message that was sent.

What is planned is often made from another message: a run of Explain becomes a request to derive. A source map says
where each of its fields came from, so that the rules name fields as they know them and the client reads its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dst_grpc.errors import FieldViolation, PreconditionFailed, Reason, Violations, join_path

if TYPE_CHECKING:
    from dst_grpc.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMap:
    """Where the fields of a request came from. The nearest field that is mentioned decides for those within it."""

    root: str = ""
    """Where the fields that are not mentioned stand in the message that was sent."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Path of a field, and its path in the message that was sent."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """Path of a field, and of the one field of the message that it was made from, fields within it included."""

    def path_sent(self, path: str) -> str:
        """The path, in the message that was sent, of what stands at *path* in the request."""
        known = path
        while known:
            if known in self.made_from:
                return self.made_from[known]
            if known in self.moved:
                return self.moved[known] + path[len(known) :]
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        return join_path(self.root, path)


@dataclass(slots=True, kw_only=True)
class Findings:
    """What is wrong with the fields of a request, and what the request lacks, collected over all its rules."""

    source: SourceMap = SourceMap()
    """Where the request's fields came from."""
    violations: Violations = field(default_factory=Violations)
    """What is wrong, at the paths sent; at first, what reading the message found."""
    missing: dict[FieldViolation, Reason] = field(default_factory=dict)
    """What is missing, each once, at the paths sent."""
    known: tuple[str, ...] = ()
    """Paths sent that reading the message found bad. They hold stand-ins, of which nothing more is said."""
    count: int = 0
    """How many things were found in this request, said or not."""

    @classmethod
    def after(cls, violations: Violations | None, root: str = "") -> Findings:
        """What is found in the request at *root* of a message beside *violations*, which reading found, if any."""
        source = SourceMap(root=root)
        if violations is None:
            return cls(source=source)
        return cls(source=source, violations=violations, known=violations.fields)

    def about(self, source: SourceMap) -> Findings:
        """These findings, to be added to by the rules of a request made from the same message."""
        return replace(self, source=source, count=0)

    def add(self, path: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        """Note a bad field."""
        self.count += 1
        sent = self.source.path_sent(path)
        if not self._is_known(sent):
            self.violations.add(sent, description, reason)

    def check(self, condition: bool, path: str, description: str) -> None:
        """Note a bad field unless *condition* holds."""
        if not condition:
            self.add(path, description)

    def extend(self, error: InvalidRequest, prefix: str = "") -> None:
        """Note what another value found in itself, which stands at *prefix*."""
        for violation in error.violations:
            self.add(join_path(prefix, violation.field), violation.description, error.reason)

    def lack(self, path: str, description: str, reason: Reason = Reason.FIELD_REQUIRED) -> None:
        """Note a field that is missing."""
        self.count += 1
        self.missing.setdefault(FieldViolation(self.source.path_sent(path), description), reason)

    def holds_stand_in(self, path: str) -> bool:
        """Whether what stands at *path*, a part of it, or what it is a part of, was found bad by reading."""
        return bool(self.known) and self._is_known(self.source.path_sent(path))

    def _is_known(self, sent: str) -> bool:
        return any(_is_within(sent, known) or _is_within(known, sent) for known in self.known)

    def error(self) -> InvalidRequest | PreconditionFailed:
        """All that is wrong or, if nothing is, all that is missing, as one error."""
        if self.violations.fields:
            return self.violations.error()
        return PreconditionFailed(self.missing, reason=next(iter(self.missing.values())))


def _is_within(path: str, outer: str) -> bool:
    return path.startswith(outer) and (not outer or path[len(outer) : len(outer) + 1] in {"", ".", "["})
