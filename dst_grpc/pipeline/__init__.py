"""From a request to its answer: planning, admission, batching, running, and deriving."""

from dst_grpc.pipeline.admission import Limits
from dst_grpc.pipeline.service import Pipeline

__all__ = ["Limits", "Pipeline"]
