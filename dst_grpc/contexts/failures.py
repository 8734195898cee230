"""What goes wrong in the cache, as errors of ours."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import torch

from dst_grpc.errors import DstError, Exhausted, Reason, Unavailable

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import Entry

_RETRY_SECONDS = 1.0


def closing() -> Unavailable:
    """Nothing is loaded any more."""
    return Unavailable("the server is shutting down", reason=Reason.DRAINING, retry_after_seconds=_RETRY_SECONDS)


def still_held(entry: Entry, waited_seconds: float) -> Unavailable:
    """An unloaded context is not free yet: somebody keeps a reference outside a lease."""
    return Unavailable(
        f"something still holds on to {entry.name!r}, so its memory is not free yet",
        reason=Reason.CONTEXT_IN_USE,
        retry_after_seconds=waited_seconds,
    )


def does_not_fit(entry: Entry, budget_bytes: int, excess_bytes: int) -> Exhausted:
    """Even with everything idle unloaded, *entry* would be over the budget."""
    needed = entry.parameter_bytes
    used = budget_bytes + excess_bytes - needed
    numbers = f"{needed} bytes beside {used} in use, of a budget of {budget_bytes}"
    return Exhausted(
        f"{entry.name!r} does not fit into memory: it needs {numbers}",
        reason=Reason.MEMORY_BUDGET_EXCEEDED,
        # Waiting helps only if it would fit alone.
        retry_after_seconds=_RETRY_SECONDS if needed <= budget_bytes else None,
        metadata={"needed_bytes": str(needed), "used_bytes": str(used), "budget_bytes": str(budget_bytes)},
    )


def translated(entry: Entry, error: Exception) -> DstError:
    """What a failed load is to those who wait for it; the text of a foreign error stays in the log."""
    if isinstance(error, DstError):
        return error
    failure: DstError
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        failure = Exhausted(
            f"the device ran out of memory while {entry.name!r} was loaded",
            reason=Reason.OUT_OF_MEMORY,
            retry_after_seconds=_RETRY_SECONDS,
        )
    else:
        failure = Unavailable(
            f"{entry.name!r} could not be loaded: {type(error).__name__}",
            reason=Reason.LOAD_FAILED,
            retry_after_seconds=_RETRY_SECONDS,
        )
    failure.__cause__ = error
    return failure


def without_frames(error: DstError) -> DstError:
    """*error* without the frames that it and its causes passed: their variables hold the tensors loaded so far."""
    link: BaseException | None = error
    while link is not None:
        # Cleared as well as dropped, since whoever logged the error may keep the traceback.
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def copied(error: DstError) -> DstError:
    """*error* again, for one who waits: raising the remembered one would hang that one's frames on it for good."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    copy.__cause__ = error.__cause__
    return copy
