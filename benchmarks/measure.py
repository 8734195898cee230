"""Measuring: interleaved rounds, medians, and the peak of tensors' memory."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def medians(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of *work*; rounds are interleaved so that a slow minute slows all alike."""
    for piece in work.values():
        piece()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, piece in work.items():
            started = time.perf_counter()
            piece()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors, beyond those that were there before, at any moment of *work*.

    Counted from every allocation that torch reports: resident memory would show what the allocator keeps for itself.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or the profiler tells standard error of its start and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak
