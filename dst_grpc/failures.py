"""Exceptions that are none of ours: what they mean for a caller, and what their tracebacks keep alive."""

from __future__ import annotations

import errno
import traceback
from asyncio import CancelledError
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.errors import Exhausted, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

ErrorT = TypeVar("ErrorT", bound=BaseException)

_TORCH_OUT_OF_MEMORY = "OutOfMemoryError"
_TEXTS_OF_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",  # torch, on a CPU
    "CUDA error: out of memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "Arena alloc failed",  # protobuf, parsing
    "Failed to serialize proto",  # protobuf: nothing else that it writes here can fail
    "can't start new thread",
    "annot allocate memory",  # a file that cannot be mapped
)


def failure_of(error: BaseException) -> Exception:
    """*error* as an Exception: libraries written in Rust panic, which is none, and passes those who catch them.

    Raises:
        BaseException: *error* itself if it does not say that something failed, but asks for an end.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
        raise error
    failure = RuntimeError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether *error* says that memory ran out: Python's, a device's, or that of a library without a class for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == _TORCH_OUT_OF_MEMORY:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    has_no_class = isinstance(error, RuntimeError) or type(error).__module__.startswith("google.")
    return has_no_class and any(text in str(error) for text in _TEXTS_OF_OUT_OF_MEMORY)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise *error* again if it says that memory ran out, so that it is not taken for a fault of what was read."""
    if is_out_of_memory(error):
        raise error


def out_of_memory(device: str = "the server") -> Exhausted:
    """The error of a request for which *device* had not enough memory."""
    message = f"{device} ran out of memory; ask for fewer derived scalars, layers or tokens"
    return Exhausted(message, reason=Reason.OUT_OF_MEMORY)


def without_locals(error: ErrorT) -> ErrorT:
    """*error* without the variables of the frames that it passed through, nor those of its causes.

    They may be large tensors, which would live as long as the error: until its caller has read all that was sent
    before. Where it passed is still told by its traceback.
    """
    for link in links(error):
        traceback.clear_frames(link.__traceback__)
    return error


def without_frames(error: ErrorT) -> ErrorT:
    """*error* without its traceback and those of its causes."""
    for link in links(without_locals(error)):  # cleared as well as dropped, since a logger may keep the traceback
        link.__traceback__ = None
    return error


def links(error: BaseException) -> Iterator[BaseException]:
    """*error*, what caused it, and what it interrupted."""
    seen: dict[int, BaseException] = {}
    found = [error]
    while found:
        link = found.pop()
        if id(link) not in seen:
            seen[id(link)] = link
            found += [one for one in (link.__cause__, link.__context__) if one is not None]
    yield from seen.values()
