"""How late the event loop is: whatever computes on it, or holds the interpreter, keeps every caller waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

_INTERVAL_SECONDS = 0.01
_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)


async def measure_lag(observe: Callable[[float], None], interval_seconds: float = _INTERVAL_SECONDS) -> None:
    """Sleep again and again, and *observe* by how many seconds each sleep took too long, until cancelled.

    What blocks the loop for a while is seen as at least that while less the interval.
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_seconds
        await asyncio.sleep(interval_seconds)
        observe(max(0.0, loop.time() - due))


def lag_histogram(registry: CollectorRegistry) -> Histogram:
    """Register a histogram of the event loop's lag with *registry*."""
    name = "dst_event_loop_lag_seconds"
    return Histogram(name, "By how much the event loop is late.", registry=registry, buckets=_BUCKETS)
