"""From a request to its answer: plan it, run it, derive from it; and the queue before the device."""

from dst_grpc.pipeline.admission import Limits
from dst_grpc.pipeline.service import Pipeline

__all__ = ["Limits", "Pipeline"]
