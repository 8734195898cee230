"""Limits of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from dst_grpc.pipeline.door import Bounds
from dst_grpc.pipeline.scheduler import DeviceLimits
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the pipeline."""

    bounds: Bounds = field(default_factory=Bounds)
    """How many requests may wait."""
    of_device: DeviceLimits = field(default_factory=DeviceLimits)
    """What each device may do at once."""
    store_bytes: int = DEFAULT_STORE_BYTES
    """Bytes of recordings kept for later requests about the same run; 0 keeps none."""
    share_recordings: bool = False
    """Whether callers find one another's plans and recordings, and can tell by the time that an answer takes."""
