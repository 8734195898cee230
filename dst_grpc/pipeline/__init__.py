"""From a request to its answer: planning, the door, scheduling, batching, running, and deriving."""

from dst_grpc.pipeline.door import Bounds
from dst_grpc.pipeline.limits import DeviceLimits, Limits
from dst_grpc.pipeline.service import Pipeline

__all__ = ["Bounds", "DeviceLimits", "Limits", "Pipeline"]
