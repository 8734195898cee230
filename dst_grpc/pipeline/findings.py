"""What planning finds wrong or missing, with paths of the message that was sent.

The request that is planned is often made from another message: a run of Explain becomes a DeriveRequest. A source map
translates its paths to those of the message that was sent, so that rules need not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import FieldViolation, PreconditionFailed, Reason, Violations, join_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMap:
    """Maps paths of a request to paths of the message it was made from. The nearest enclosing path in the map
    applies."""

    root: str = ""
    """Prefix, in the message that was sent, of paths that are not in the map."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Path of a field, and its path in the message that was sent."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """Path of a field, and of the one field of the message that it, with all fields within it, was made from."""

    def path_sent(self, path: str) -> str:
        """The path, in the message that was sent, of the request's *path*."""
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
    """What is wrong with the fields of a request, and what the request lacks, collected over all its rules.

    Whoever plans asks it all the time, and so it is what stops planning that nobody waits for any more.
    """

    source: SourceMap = SourceMap()
    """The source map of the request."""
    violations: Violations = field(default_factory=Violations)
    """What is wrong, by path sent; initially, the violations found by reading the message."""
    missing: dict[FieldViolation, Reason] = field(default_factory=dict)
    """What is missing, each once, by path sent."""
    known: tuple[str, ...] = ()
    """Paths sent that reading the message found bad. They hold stand-ins, whose violations are not reported."""
    count: int = 0
    """How many violations were found in this request, reported or not."""
    check_wanted: Check = never_cancelled
    """Raises Cancelled once nobody waits for the plan."""
    _bad: frozenset[str] = field(init=False)
    _around_bad: frozenset[str] = field(init=False)
    """Paths that hold bad ones."""

    def __post_init__(self) -> None:
        """Index what is known."""
        self._bad = frozenset(self.known)
        self._around_bad = frozenset(outer for path in self.known for outer in _outer(path))

    @classmethod
    def after(cls, violations: Violations | None, root: str = "", *, check_wanted: Check = never_cancelled) -> Findings:
        """Empty findings for the request at *root* of a message, after reading found *violations*, if any."""
        source = SourceMap(root=root)
        if violations is None:
            return cls(source=source, check_wanted=check_wanted)
        return cls(source=source, violations=violations, known=violations.fields, check_wanted=check_wanted)

    def about(self, source: SourceMap) -> Findings:
        """The same findings, with the source map of a request made from the same message."""
        self.check_wanted()
        return replace(self, source=source, count=0)

    @property
    def are_full(self) -> bool:
        """Whether further violations are only counted."""
        return self.violations.is_full and not self.known

    def add(self, path: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        """Note a bad field."""
        self.check_wanted()
        self.count += 1
        if self.are_full:
            self.violations.count += 1
            return
        sent = self.source.path_sent(path)
        if not self._is_known(sent):
            self.violations.add(sent, description, reason)

    def check(self, condition: bool, path: str, description: str) -> None:
        """Note a bad field unless *condition* holds."""
        self.check_wanted()
        if not condition:
            self.add(path, description)

    def extend(self, error: InvalidRequest, prefix: str = "") -> None:
        """Note the violations of the value at *prefix*."""
        for violation in error.violations:
            self.add(join_path(prefix, violation.field), violation.description, error.reason)

    def lack(self, path: str, description: str, reason: Reason = Reason.FIELD_REQUIRED) -> None:
        """Note a field that is missing."""
        self.count += 1
        self.missing.setdefault(FieldViolation(self.source.path_sent(path), description), reason)

    def holds_stand_in(self, path: str) -> bool:
        """Whether the field at *path*, one within it, or one around it, was found bad by reading."""
        self.check_wanted()
        return bool(self.known) and self._is_known(self.source.path_sent(path))

    def _is_known(self, sent: str) -> bool:
        return sent in self._around_bad or not self._bad.isdisjoint(_outer(sent))

    def error(self) -> InvalidRequest | PreconditionFailed:
        """All that is wrong or, if nothing is, all that is missing, as one error."""
        if self.violations.fields:
            return self.violations.error()
        return PreconditionFailed(self.missing, reason=next(iter(self.missing.values())))


def _outer(path: str) -> Iterator[str]:
    """*path*, and the paths of what it lies in."""
    while path:
        yield path
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    yield ""
