"""Constructors of the cache's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.errors import DstError, Exhausted, FieldViolation, NotFound, PreconditionFailed, Reason, Unavailable
from dst_grpc.failures import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.contexts.entries import ContextEntry

_RETRY_SECONDS = 1.0


def closing() -> Unavailable:
    """The cache is closing, and loads nothing more."""
    return Unavailable("the server is shutting down", reason=Reason.DRAINING, retry_after_seconds=_RETRY_SECONDS)


def still_held(entry: ContextEntry, waited_seconds: float) -> Unavailable:
    """The memory of an unloaded context is not free: it is still referenced outside a lease."""
    return Unavailable(
        f"something still holds on to {entry.name!r}, so its memory is not free yet",
        reason=Reason.CONTEXT_IN_USE,
        retry_after_seconds=waited_seconds,
    )


def does_not_fit(entries: Sequence[ContextEntry], needed_bytes: int, budget_bytes: int, excess_bytes: int) -> Exhausted:
    """Even with everything idle unloaded, *entries*, of *needed_bytes* together, would be over the budget."""
    used = budget_bytes + excess_bytes - needed_bytes
    names = " and ".join(repr(entry.name) for entry in entries)
    numbers = f"{needed_bytes} bytes needed beside {used} in use, of a budget of {budget_bytes}"
    return Exhausted(
        f"no room for {names} on {entries[0].device}: {numbers}",
        reason=Reason.MEMORY_BUDGET_EXCEEDED,
        # Waiting helps only if it would fit alone.
        retry_after_seconds=_RETRY_SECONDS if needed_bytes <= budget_bytes else None,
        metadata={"needed_bytes": str(needed_bytes), "used_bytes": str(used), "budget_bytes": str(budget_bytes)},
    )


def is_pinned(entry: ContextEntry) -> PreconditionFailed:
    """An operator pinned *entry*, so it is not unloaded."""
    problem = f"{entry.name!r} is pinned; unpin it first"
    return PreconditionFailed([FieldViolation("context", problem)], reason=Reason.CONTEXT_PINNED)


def is_in_use(entry: ContextEntry, pins: int) -> PreconditionFailed:
    """Requests use *entry*, so it is not unloaded."""
    problem = f"{entry.name!r} is in use by {pins} requests; try again when they are done"
    return PreconditionFailed([FieldViolation("context", problem)], reason=Reason.CONTEXT_IN_USE)


def not_loaded(ref: str) -> NotFound:
    """The context *ref* is not loaded."""
    return NotFound(
        f"{ref!r} is not loaded",
        resource_type="context",
        resource_name=ref,
        reason=Reason.CONTEXT_NOT_FOUND,
        metadata={"resource_type": "context", "resource_name": ref},
    )


def translated(entry: ContextEntry, error: Exception) -> DstError:
    """*error* of a load as the error of its waiters; the text of an error that is not a DstError stays in the log."""
    if isinstance(error, DstError):
        return error
    failure: DstError
    if is_out_of_memory(error):
        failure = Exhausted(
            f"{entry.device} ran out of memory while {entry.name!r}, of {entry.parameter_bytes} bytes, was loaded",
            reason=Reason.OUT_OF_MEMORY,
            retry_after_seconds=_RETRY_SECONDS,
            metadata={"needed_bytes": str(entry.parameter_bytes)},
        )
    else:
        failure = Unavailable(
            f"{entry.name!r} could not be loaded: {type(error).__name__}",
            reason=Reason.LOAD_FAILED,
            retry_after_seconds=_RETRY_SECONDS,
        )
    failure.__cause__ = error
    return failure


def copied(error: DstError) -> DstError:
    """A copy of *error* for one waiter: raising the original would attach the waiter's frames to it."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    copy.__cause__ = error.__cause__
    return copy
