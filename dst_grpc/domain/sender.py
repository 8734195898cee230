"""Senders: who sent a request, and what belongs to it besides its message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.urgency import WHENEVER

if TYPE_CHECKING:
    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.domain.timeline import Timeline
    from dst_grpc.domain.urgency import Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who sent a request, and what belongs to it besides its message."""

    caller: Caller = LOCAL
    """Who asks."""
    tensors: TensorSource | None = None
    """The store of the caller's tensors."""
    urgency: Urgency = WHENEVER
    """How soon the answer is wanted."""
    request_bytes: int = 0
    """Bytes of the message."""
    timeline: Timeline | None = None
    """Where it is noted what becomes of it; None for a request that nobody observes."""


HERE = Sender()
"""The sender of a request to a pipeline that is used without a server."""
