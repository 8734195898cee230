"""Tensors that clients store on the server for later requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.errors import Violations

MAX_AXES = 16
"""More axes than any tensor of a model has."""
MAX_ELEMENTS = 2**48
"""More elements than any memory holds, so that arithmetic on sizes cannot overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDescription:
    """Type, sizes and lifetime of a tensor whose bytes follow."""

    element_type: TensorElementType
    """Type of the elements: float32, float16 or bfloat16."""
    sizes: tuple[int, ...] = ()
    """Sizes of the axes, outermost first; none: a single number."""
    ttl: float | None = None
    """How long it is kept, in seconds; None = as long as the server allows."""
    checksum: int | None = None
    """CRC-32 of the bytes; None = not checked."""

    def __post_init__(self) -> None:
        """Check what needs no server; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if not self.element_type.is_float:
            floats = json_names(each for each in TensorElementType if each.is_float)
            problems.add("element_type", f"must be {floats}, not {json_name(self.element_type)}")
        axes = len(self.sizes)
        problems.check(axes <= MAX_AXES, "sizes", f"has {axes} entries, but a tensor has at most {MAX_AXES} axes")
        for i, size in enumerate(self.sizes):
            problems.check(0 < size <= MAX_ELEMENTS, f"sizes[{i}]", f"must be between 1 and {MAX_ELEMENTS}, not {size}")
        if not problems.count:
            problems.check(self.element_count <= MAX_ELEMENTS, "sizes", f"make more than {MAX_ELEMENTS} elements")
        problems.check(self.ttl is None or self.ttl > 0, "ttl", f"must be longer than 0 seconds, not {self.ttl}")
        problems.raise_if_any()

    @property
    def element_count(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)

    @property
    def byte_count(self) -> int:
        """How many bytes follow."""
        return self.element_count * self.element_type.byte_width


@dataclass(frozen=True, slots=True, kw_only=True)
class PutTensor:
    """A tensor that the server has stored."""

    handle: str
    """What requests name it by."""
    byte_count: int
    """Bytes that count against the caller's quota."""
    expire_time: datetime
    """When it is deleted."""
