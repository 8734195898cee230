"""Measuring: interleaved rounds, ratios with their spread, and the peak of tensors' memory."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Spread:
    """Values that were measured: their median, and the ends of their middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of two or more *values*."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        """Such as "1.29 (1.27 to 1.33)"."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Rounds:
    """How long each piece of work took in each round."""

    seconds: Mapping[str, Sequence[float]]
    """By the name of the piece."""

    def milliseconds(self, name: str) -> float:
        """The median of a piece."""
        return statistics.median(self.seconds[name]) * 1e3

    def over(self, name: str, *bases: str) -> Spread:
        """The time of a piece over that of others together, in each round."""
        totals = map(sum, zip(*(self.seconds[base] for base in bases), strict=True))
        return Spread.of(one / total for one, total in zip(self.seconds[name], totals, strict=True))


def interleaved(work: Mapping[str, Callable[[], object]], n_rounds: int) -> Rounds:
    """The time of each piece of *work*, after one round that does not count.

    Pieces take turns, so that a slow minute slows all alike.
    """
    for piece in work.values():
        piece()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(n_rounds):
        for name, piece in work.items():
            started = time.perf_counter()
            piece()
            seconds[name].append(time.perf_counter() - started)
    return Rounds(seconds)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread within the block."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def conditions(n_rounds: int) -> str:
    """How times were measured, for the head of a report."""
    return f"{torch.get_num_threads()} threads, {n_rounds} rounds, medians and the middle half"


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident memory of this process: now, or at most since `forget_peak` ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the system does not tell {field}")


def forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


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
