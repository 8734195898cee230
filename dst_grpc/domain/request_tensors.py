"""Tensors of a request: inline, or stored on the server before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

MAX_HANDLE_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RequestTensor:
    """A tensor of a request: inline, or by the handle of a tensor that was stored before.

    Tensors are equal if their numbers are.
    """

    tensor: np.ndarray[Any, np.dtype[Any]] | None = None
    """The numbers, float32 and finite; None if a handle is given."""
    handle: str | None = None
    """The handle; None if the numbers are given."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given, and the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.tensor is None) == (self.handle is None):
            problems.add("", "give exactly one of tensor and handle")
        if self.handle is not None:
            problems.check(
                0 < len(self.handle) <= MAX_HANDLE_CHARACTERS,
                "handle",
                f"must have between 1 and {MAX_HANDLE_CHARACTERS} characters",
            )
            check_text(problems, "handle", self.handle)
        if self.tensor is not None:
            with np.errstate(over="ignore"):  # numbers beyond float32 are reported below
                numbers = np.ascontiguousarray(self.tensor, dtype=np.float32).reshape(np.shape(self.tensor))
            if numbers.flags.writeable:
                # A copy: the caller may change the array afterwards.
                numbers = numbers.copy()
                numbers.flags.writeable = False
            object.__setattr__(self, "tensor", numbers)
            problems.check(numbers.size > 0, "tensor", "must not be empty")
            problems.check(
                bool(np.isfinite(numbers).all()), "tensor", "must hold finite numbers within float32's range"
            )
        problems.raise_if_any()

    @cached_property
    def identity(self) -> tuple[object, ...]:
        """Its identity: its shape and the SHA-256 of its numbers, or its handle."""
        if self.tensor is None:
            return (self.handle,)
        return (self.tensor.shape, hashlib.sha256(self.tensor.data).hexdigest())

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers, or are the same handle."""
        return isinstance(other, RequestTensor) and self.identity == other.identity

    def __hash__(self) -> int:
        """Hash of its identity."""
        return hash(self.identity)

    def __repr__(self) -> str:
        """Its handle, or its shape and digest: a request's digest is computed from this."""
        return f"RequestTensor{self.identity!r}"


class TensorSource(Protocol):
    """A store of tensors by handle."""

    def get(self, handle: str) -> RequestTensor:
        """The stored tensor; raises NotFound."""
