"""Errors as google.rpc.Status with details, and back. The table from error classes to status codes.

A status is sent in the trailing metadata, where peers allow 8 KiB for everything, base64 included; longer details are
trimmed and say so. Nothing here raises: any error has a status, and any status has an error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status

from dst_grpc.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    DstError,
    Exhausted,
    FieldViolation,
    Internal,
    InvalidRequest,
    NotAllowed,
    NotFound,
    OutOfRange,
    PreconditionFailed,
    Reason,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from dst_grpc.wire.durations import duration_to_wire, seconds_from_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

D = TypeVar("D", bound=Message)

DOMAIN = "dstgrpc.io"
"""The domain of our ErrorInfo."""

MAX_STATUS_BYTES = 4608
"""Largest status: as base64, and with its message repeated beside it, it stays below 8 KiB."""
MAX_MESSAGE_BYTES = 512
"""Longest message; violations are listed in the details anyway."""

_MAX_TEXT_BYTES = 256
_MAX_DESCRIPTION_BYTES = 512
_MAX_METADATA_BYTES = 1024
_RESERVED_BYTES = 160  # the type's address in its Any, and "and N more"
_OVERHEAD_BYTES = 4  # tag and length of a repeated message
_NEAREST = "nearest: "

CODE_OF_ERROR: Mapping[type[DstError], int] = {
    Cancelled: 1,
    InvalidRequest: 3,
    DeadlineExceeded: 4,
    NotFound: 5,
    NotAllowed: 7,
    Exhausted: 8,
    PreconditionFailed: 9,
    OutOfRange: 11,
    Unimplemented: 12,
    Internal: 13,
    Unavailable: 14,
    DataLoss: 15,
    Unauthenticated: 16,
}
"""The numeric gRPC status code of each class of error."""

_ERROR_OF_CODE = {code: error for error, code in CODE_OF_ERROR.items()}
_OTHER_CODES = {
    0: "OK",
    2: "UNKNOWN",
    6: "ALREADY_EXISTS",
    10: "ABORTED",
}


def code_of(error: DstError) -> int:
    """The status code of *error*, by its nearest class in the table; INTERNAL for a class of its own."""
    return next((CODE_OF_ERROR[cls] for cls in type(error).__mro__ if cls in CODE_OF_ERROR), CODE_OF_ERROR[Internal])


def error_to_status(error: DstError) -> Status:
    """The status of *error*, at most MAX_STATUS_BYTES serialised.

    An Internal error's own text stays in the server's log: the status carries its id only.
    """
    code = code_of(error)
    message, metadata = error.message, error.metadata
    if code == CODE_OF_ERROR[Internal]:
        error_id = getattr(error, "error_id", "")
        message = f"internal error; the server's log has it under {error_id}" if error_id else "internal error"
        metadata = {"error_id": error_id} if error_id else {}
    status = Status(code=code, message=_clip(message, MAX_MESSAGE_BYTES))
    info = details_pb.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=_trimmed(metadata))
    status.details.add().Pack(info)
    for detail in _details(error, status):
        status.details.add().Pack(detail)
    return status


def _details(error: DstError, status: Status) -> Iterable[Message]:
    """The details besides the ErrorInfo."""
    room = MAX_STATUS_BYTES - status.ByteSize() - _RESERVED_BYTES
    if isinstance(error, InvalidRequest):
        yield details_pb.BadRequest(field_violations=_fitting(error.violations, _field_violation, room, error.omitted))
    elif isinstance(error, PreconditionFailed):
        yield details_pb.PreconditionFailure(violations=_fitting(error.violations, _precondition(error.reason), room))
    elif isinstance(error, NotFound):
        yield details_pb.ResourceInfo(
            resource_type=_clip(error.resource_type, _MAX_TEXT_BYTES),
            resource_name=_clip(error.resource_name, _MAX_TEXT_BYTES),
            description=_nearest_to_text(error.nearest),
        )
    elif isinstance(error, (Exhausted, Unavailable)):
        if isinstance(error, Exhausted):
            violation = details_pb.QuotaFailure.Violation(subject=error.reason.value, description=status.message)
            yield details_pb.QuotaFailure(violations=[violation])
        if error.retry_after_seconds is not None:
            yield details_pb.RetryInfo(retry_delay=duration_to_wire(error.retry_after_seconds))


def _field_violation(violation: FieldViolation) -> details_pb.BadRequest.FieldViolation:
    return details_pb.BadRequest.FieldViolation(
        field=_clip(violation.field, _MAX_TEXT_BYTES),
        description=_clip(violation.description, _MAX_DESCRIPTION_BYTES),
    )


def _precondition(reason: Reason) -> Callable[[FieldViolation], details_pb.PreconditionFailure.Violation]:
    def convert(violation: FieldViolation) -> details_pb.PreconditionFailure.Violation:
        return details_pb.PreconditionFailure.Violation(
            type=reason.value,
            subject=_clip(violation.field, _MAX_TEXT_BYTES),
            description=_clip(violation.description, _MAX_DESCRIPTION_BYTES),
        )

    return convert


def _fitting(
    violations: tuple[FieldViolation, ...], convert: Callable[[FieldViolation], D], room: int, omitted: int = 0
) -> Iterable[D]:
    """As many violations as fit, and one that counts the others, with those that are *omitted* already."""
    for i, violation in enumerate(violations):
        converted = convert(violation)
        room -= converted.ByteSize() + _OVERHEAD_BYTES
        if room < 0:
            omitted += len(violations) - i
            break
        yield converted
    if omitted:
        yield convert(FieldViolation("", f"and {omitted} more"))


def _trimmed(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that fit, long values cut."""
    room, kept = _MAX_METADATA_BYTES, {}
    for key, value in metadata.items():
        short_key, short_value = _clip(key, _MAX_TEXT_BYTES), _clip(value, _MAX_TEXT_BYTES)
        room -= len(short_key.encode()) + len(short_value.encode()) + 2 * _OVERHEAD_BYTES
        if room < 0:
            break
        kept[short_key] = short_value
    return kept


def _nearest_to_text(nearest: tuple[str, ...]) -> str:
    """The names as JSON strings, so that they can be read back whatever they contain."""
    shown: list[str] = []
    for name in nearest:
        shown.append(json.dumps(_clip(name, _MAX_TEXT_BYTES), ensure_ascii=False))
        if len(", ".join(shown).encode()) > _MAX_DESCRIPTION_BYTES:
            shown.pop()
            break
    return _NEAREST + ", ".join(shown) if shown else ""


def _clip(text: str, max_bytes: int) -> str:
    """*text*, cut at a character so that its UTF-8 has at most *max_bytes*; lone surrogates become question marks."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return data.decode()
    ellipsis = "..."
    return data[: max_bytes - len(ellipsis)].decode("utf-8", "ignore") + ellipsis


def error_from_status(status: Status) -> DstError:
    """The error that *status* was made from by `error_to_status`, except for trimmed details.

    A status without our details (made by a proxy, or by gRPC itself) gives the class of its code with that class's
    default reason; a code that no class has gives Internal, which names it. Details that cannot be decoded, and reasons
    that this version does not know, are ignored; the reason's name is then in the metadata.
    """
    details = _Details(status)
    cls = _ERROR_OF_CODE.get(status.code, Internal)
    metadata = dict(details.info.metadata)
    reason: Reason | None = None
    if details.info.reason in Reason.__members__:
        reason = Reason(details.info.reason)
    elif details.info.reason:
        metadata.setdefault("reason", details.info.reason)
    message = status.message or f"the server gave no reason (status code {status.code})"
    if cls is InvalidRequest:
        fields = details.get(details_pb.BadRequest).field_violations
        found = [FieldViolation(v.field, v.description) for v in fields] or [FieldViolation("", message)]
        return InvalidRequest(found, reason=reason, metadata=metadata)
    if cls is PreconditionFailed:
        failures = details.get(details_pb.PreconditionFailure).violations
        found = [FieldViolation(v.subject, v.description) for v in failures] or [FieldViolation("", message)]
        return PreconditionFailed(found, reason=reason, metadata=metadata)
    if cls is NotFound:
        resource = details.get(details_pb.ResourceInfo)
        return NotFound(
            message,
            resource_type=resource.resource_type,
            resource_name=resource.resource_name,
            nearest=_nearest_from_text(resource.description),
            reason=reason,
            metadata=metadata,
        )
    if cls in (Exhausted, Unavailable):
        retry = details.get(details_pb.RetryInfo)
        seconds = seconds_from_wire(retry.retry_delay) if retry.HasField("retry_delay") else None
        return cls(message, retry_after_seconds=seconds, reason=reason, metadata=metadata)
    if cls is Internal:
        if status.code != CODE_OF_ERROR[Internal]:
            message = f"{message} (status {_OTHER_CODES.get(status.code, status.code)})"
        return Internal(message, error_id=metadata.get("error_id", ""), metadata=metadata)
    return cls(message, reason=reason, metadata=metadata)


class _Details:
    """The details of a status, each type at most once; missing ones are empty messages."""

    def __init__(self, status: Status) -> None:
        self._anys = list(status.details)
        infos = (info for info in self._all(details_pb.ErrorInfo) if info.domain == DOMAIN)
        self.info = next(infos, details_pb.ErrorInfo())

    def get(self, message_type: type[D]) -> D:
        return next(self._all(message_type), message_type())

    def _all(self, message_type: type[D]) -> Iterator[D]:
        for packed in self._anys:
            if packed.TypeName() != message_type.DESCRIPTOR.full_name:
                continue
            message = message_type()
            try:
                packed.Unpack(message)
            except (DecodeError, RecursionError):
                continue
            yield message


def _nearest_from_text(text: str) -> tuple[str, ...]:
    if not text.startswith(_NEAREST):
        return ()
    try:
        names = json.loads(f"[{text.removeprefix(_NEAREST)}]")
    except (ValueError, RecursionError):
        return ()
    return tuple(name for name in names if isinstance(name, str))
