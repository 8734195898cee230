"""The error classes of this package, and the reason codes they carry.

This module imports nothing else of this package and nothing of gRPC: `wire.errors` maps these classes to status codes,
and rebuilds them on the client.

    DstError
    ├── InvalidRequest       a bad field, an impossible combination, a malformed message
    ├── NotFound             an unknown model, autoencoder or context
    ├── PreconditionFailed   the request lacks what a derived scalar type needs
    ├── Exhausted            a queue, a memory budget or a quota is full
    ├── Unavailable          draining, or a failure that may pass
    ├── DataLoss             a checkpoint or an answer is corrupt or not what it claims to be
    ├── Unauthenticated      no credentials, or bad ones
    ├── NotAllowed           the caller, or a path, is not permitted
    ├── DeadlineExceeded     the caller's deadline passed first
    ├── Cancelled            the caller went away
    ├── OutOfRange           a run has values that are not finite, beyond what its numbers can hold
    ├── Unimplemented        the server has no such method
    └── Internal             anything else; its text stays in the server's log
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

_RETRY_SECONDS = 1.0
"""When to ask again where too many ask."""

T = TypeVar("T")


class Reason(StrEnum):
    """Why a call failed, for machines. Mirrors `dst.v1.ErrorReason` member for member."""

    INVALID_FIELD = "INVALID_FIELD"
    IMPOSSIBLE_COMBINATION = "IMPOSSIBLE_COMBINATION"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    NOT_ONE_TOKEN = "NOT_ONE_TOKEN"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    AUTOENCODER_NOT_FOUND = "AUTOENCODER_NOT_FOUND"
    CONTEXT_NOT_FOUND = "CONTEXT_NOT_FOUND"
    ORIGIN_REQUIRED = "ORIGIN_REQUIRED"
    AUTOENCODER_REQUIRED = "AUTOENCODER_REQUIRED"
    FIELD_REQUIRED = "FIELD_REQUIRED"
    CONTEXT_IN_USE = "CONTEXT_IN_USE"
    QUEUE_FULL = "QUEUE_FULL"
    MEMORY_BUDGET_EXCEEDED = "MEMORY_BUDGET_EXCEEDED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    DRAINING = "DRAINING"
    LOAD_FAILED = "LOAD_FAILED"
    CHECKPOINT_CORRUPT = "CHECKPOINT_CORRUPT"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    SELF_CHECK_FAILED = "SELF_CHECK_FAILED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    PATH_NOT_ALLOWED = "PATH_NOT_ALLOWED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
    ANSWER_TRUNCATED = "ANSWER_TRUNCATED"
    ANSWER_CORRUPT = "ANSWER_CORRUPT"
    UNSUPPORTED_BY_MODEL = "UNSUPPORTED_BY_MODEL"
    CONTEXT_PINNED = "CONTEXT_PINNED"
    TENSOR_NOT_FOUND = "TENSOR_NOT_FOUND"
    METHOD_NOT_FOUND = "METHOD_NOT_FOUND"
    TENSOR_CORRUPT = "TENSOR_CORRUPT"
    NOT_FINITE = "NOT_FINITE"
    SLOW_READER = "SLOW_READER"
    DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"
    GRAPH_NOT_FOUND = "GRAPH_NOT_FOUND"
    UNREACHABLE = "UNREACHABLE"


MAX_VIOLATIONS = 100
"""Most violations that one error lists; further ones are counted."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field."""

    field: str
    """Path from the message's root, e.g. `config.trace_config.node_index.layer_index`; empty for the whole."""
    description: str
    """A full sentence saying what is wrong and, where it can, what would be right."""

    def __str__(self) -> str:
        """Both, for a sentence or a line."""
        return f"{self.field}: {self.description}" if self.field else self.description

    def under(self, prefix: str) -> FieldViolation:
        """The same violation, seen from the message that holds this one at `prefix`."""
        return FieldViolation(join_path(prefix, self.field), self.description)


def join_path(prefix: str, field: str) -> str:
    """Join two segments of a field path; a subscript (`[2]`) follows without a dot."""
    if not prefix or not field:
        return prefix or field
    return f"{prefix}{field}" if field.startswith("[") else f"{prefix}.{field}"


def first_of(names: Iterable[str], count: int = 8) -> str:
    """*names* for a sentence: the first *count*, and how many there are if there are more."""
    known = list(names)
    shown = ", ".join(known[:count])
    return shown if len(known) <= count else f"{shown}, ... ({len(known)} in all)"


class DstError(Exception):
    """Base of every error this package raises on purpose."""

    default_reason: Reason = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make the error; *metadata* repeats the message's dynamic parts for machines."""
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidRequest(DstError):
    """The request can never succeed as it stands.

    `violations` lists every bad field, the first `MAX_VIOLATIONS` of many; `omitted` counts the others.
    """

    default_reason = Reason.INVALID_FIELD

    def __init__(
        self,
        violations: Iterable[FieldViolation],
        *,
        omitted: int = 0,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make the error from one or more violations; the message joins them."""
        self.violations = tuple(violations)
        self.omitted = omitted
        sentences = [*map(str, self.violations), *([f"and {omitted} more"] if omitted else [])]
        super().__init__("; ".join(sentences), reason=reason, metadata=metadata)

    @classmethod
    def of(cls, field: str, description: str, *, reason: Reason | None = None) -> InvalidRequest:
        """The error for a single field."""
        return cls([FieldViolation(field, description)], reason=reason)

    def under(self, prefix: str) -> InvalidRequest:
        """The same error with every path moved below *prefix*."""
        return InvalidRequest(
            [v.under(prefix) for v in self.violations],
            omitted=self.omitted,
            reason=self.reason,
            metadata=self.metadata,
        )


class Violations:
    """Collects what is wrong with a value, so that all of it is reported at once."""

    __slots__ = ("_reasons", "count", "listed")

    def __init__(self) -> None:
        """Start empty."""
        self.listed: list[FieldViolation] = []
        """The first `MAX_VIOLATIONS` that were found."""
        self.count = 0
        """How many were found, listed or not."""
        self._reasons: set[Reason] = set()

    def add(self, field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        """Note one violation."""
        self.count += 1
        if len(self.listed) < MAX_VIOLATIONS:
            self.listed.append(FieldViolation(field, description))
            self._reasons.add(reason)

    @property
    def is_full(self) -> bool:
        """Whether further ones are only counted."""
        return len(self.listed) >= MAX_VIOLATIONS

    def check(self, condition: bool, field: str, description: str) -> None:
        """Note a violation unless *condition* holds."""
        if not condition:
            self.add(field, description)

    def extend(self, error: InvalidRequest, prefix: str = "") -> None:
        """Add the violations of a nested value, with *prefix* before their paths."""
        for violation in error.violations:
            self.add(join_path(prefix, violation.field), violation.description, error.reason)
        self.count += error.omitted

    def move(self, start: int, prefix: str) -> None:
        """Put *prefix* before the paths of those that are listed from position *start* on."""
        if start < len(self.listed):
            self.listed[start:] = [violation.under(prefix) for violation in self.listed[start:]]

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths of the listed violations."""
        return tuple(violation.field for violation in self.listed)

    def error(self) -> InvalidRequest:
        """One error of all violations, without repetitions. Its reason is that of the violations if they share one."""
        reason = next(iter(self._reasons)) if len(self._reasons) == 1 else Reason.INVALID_FIELD
        return InvalidRequest(dict.fromkeys(self.listed), omitted=self.count - len(self.listed), reason=reason)

    def raise_if_any(self) -> None:
        """Raise the error if anything was found, or return."""
        if self.count:
            raise self.error()


class NotFound(DstError):
    """A name the server does not know. `nearest` holds similar names that exist."""

    default_reason = Reason.MODEL_NOT_FOUND

    def __init__(
        self,
        message: str,
        *,
        resource_type: str = "",
        resource_name: str = "",
        nearest: Iterable[str] = (),
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make the error; see `unknown` for the usual way."""
        super().__init__(message, reason=reason, metadata=metadata)
        self.resource_type = resource_type
        self.resource_name = resource_name
        self.nearest = tuple(nearest)

    @classmethod
    def unknown(cls, resource_type: str, name: str, known: Iterable[str], *, reason: Reason) -> NotFound:
        """The error for *name*, which is not among *known*; suggests the nearest ones, if any is near."""
        candidates = sorted(filter(None, known))
        nearest = difflib.get_close_matches(name, candidates, n=3, cutoff=0.4)
        if nearest:
            hint = f"the nearest are {', '.join(map(repr, nearest))}"
        else:
            hint = f"known are {first_of(map(repr, candidates))}" if candidates else "none is registered"
        return cls(
            f"unknown {resource_type} {name!r}; {hint}",
            resource_type=resource_type,
            resource_name=name,
            nearest=nearest,
            reason=reason,
            metadata={"resource_type": resource_type, "resource_name": name},
        )


class PreconditionFailed(DstError):
    """The request is well formed, but lacks something: an origin, an autoencoder, a field.

    `violations` names the field that would satisfy it and says how.
    """

    default_reason = Reason.FIELD_REQUIRED

    def __init__(
        self,
        violations: Iterable[FieldViolation],
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make the error from what is missing."""
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, self.violations)), reason=reason, metadata=metadata)

    def under(self, prefix: str) -> PreconditionFailed:
        """The same error with every path moved below *prefix*."""
        return PreconditionFailed(
            [v.under(prefix) for v in self.violations], reason=self.reason, metadata=self.metadata
        )


class _Retryable(DstError):
    """An error after which the same request may succeed later."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make the error; *retry_after_seconds* None means that waiting does not help."""
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_seconds = retry_after_seconds


class Exhausted(_Retryable):
    """A queue, a memory budget or a quota is full; refused before any work."""

    default_reason = Reason.QUEUE_FULL

    @classmethod
    def full(cls, what: str, name: str, limit: int) -> Self:
        """The error where as much of *what* is there already as the limit *name* allows, for the time being."""
        return cls(f"{what} already ({name}: {limit})", retry_after_seconds=_RETRY_SECONDS, metadata={name: str(limit)})


class Unavailable(_Retryable):
    """The server is draining or cannot be reached, or something failed that may pass."""

    default_reason = Reason.UNREACHABLE


class DataLoss(DstError):
    """A checkpoint is corrupt, its digest differs, or it fails its self-check; or an answer arrived damaged."""

    default_reason = Reason.CHECKPOINT_CORRUPT


class Unauthenticated(DstError):
    """No credentials, or bad ones."""

    default_reason = Reason.UNAUTHENTICATED


class NotAllowed(DstError):
    """The caller is known but may not do this, or a path lies outside the allowed roots."""

    default_reason = Reason.PERMISSION_DENIED


class DeadlineExceeded(DstError):
    """The deadline passed, or the request did not come in; the work was stopped."""

    default_reason = Reason.DEADLINE_EXCEEDED


class Cancelled(DstError):
    """The caller cancelled; the work was stopped."""

    default_reason = Reason.CANCELLED


class OutOfRange(DstError):
    """A run has values that are not finite: they left the range of the numbers that the model is loaded with."""

    default_reason = Reason.NOT_FINITE


class Unimplemented(DstError):
    """The server has no such method; it may be older than the client."""

    default_reason = Reason.METHOD_NOT_FOUND


class Internal(DstError):
    """A fault of ours. `error_id` finds the text in the server's log."""

    def __init__(self, message: str, *, error_id: str = "", metadata: Mapping[str, str] | None = None) -> None:
        """Make the error with the id that the log carries too."""
        super().__init__(message, reason=Reason.INTERNAL, metadata=metadata)
        self.error_id = error_id


def require(value: T | None) -> T:
    """*value*, which planning guarantees to be present; raises Internal if it is None."""
    if value is None:
        raise Internal("a value is missing that the plan should have made sure of")
    return value
