"""What all fake answers say of their run."""

from __future__ import annotations

from dst_grpc.domain.results import (
    Provenance,
    RunStatistics,
    RunSummary,
)

MODEL_HANDLE = "tiny@0123456789ab:float32:cpu"

SUMMARY = RunSummary(
    statistics=RunStatistics(forward_passes=1, backward_passes=0),
    provenance=Provenance(model=MODEL_HANDLE, model_digest="0" * 64),
)
