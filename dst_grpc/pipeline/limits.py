"""Limits of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from dst_grpc.pipeline.arrangement import MAX_BATCH_TOKENS
from dst_grpc.pipeline.door import Bounds
from dst_grpc.pipeline.kept_graphs import DEFAULT_KEPT_GRAPH_BYTES, DEFAULT_KEPT_GRAPH_SECONDS
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES

DEFAULT_RUN_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """Limits of one device."""

    max_run_bytes: int = DEFAULT_RUN_BYTES
    """Estimated memory of all requests that run, without weights."""
    allocator_factor: float = 1.0
    """What the process takes for each byte of tensors: more than one if its allocator loses holes between them."""
    patience: float = 30.0
    """Seconds that a request without a deadline may be expected to take. Items of streams may take longer, as reading
    paces them."""
    max_batch_tokens: int = MAX_BATCH_TOKENS
    """Tokens of a batch, pads included, unless a single prompt is longer."""

    def taken(self, tensor_bytes: int) -> int:
        """What the process takes for tensors of *tensor_bytes*."""
        return int(tensor_bytes * self.allocator_factor)


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
    """Whether callers find one another's plans, recordings and graphs, and can tell by the time that an answer
    takes."""
    kept_graph_bytes: int = DEFAULT_KEPT_GRAPH_BYTES
    """Bytes of attribution graphs kept for later questions; 0 keeps none."""
    kept_graph_seconds: float = DEFAULT_KEPT_GRAPH_SECONDS
    """How long a graph is kept that nobody uses."""
