from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from prometheus_client import CollectorRegistry

from dst_grpc.observability.event_loop import lag_histogram, measure_lag

INTERVAL = 0.001
BLOCK = 0.06


async def test_what_blocks_the_loop_is_seen() -> None:
    seen: list[float] = []
    observed = asyncio.Semaphore(0)

    def observe(seconds: float) -> None:
        seen.append(seconds)
        observed.release()

    measuring = asyncio.create_task(measure_lag(observe, INTERVAL))
    await observed.acquire()
    time.sleep(BLOCK)  # noqa: ASYNC251  what is to be seen
    await observed.acquire()
    measuring.cancel()
    with suppress(asyncio.CancelledError):
        await measuring
    assert max(seen) >= BLOCK - INTERVAL
    assert min(seen) >= 0


def test_lag_has_a_bucket_for_what_is_right() -> None:
    registry = CollectorRegistry()
    lag_histogram(registry).observe(0.02)
    counts = {
        bound: registry.get_sample_value("dst_event_loop_lag_seconds_bucket", {"le": bound})
        for bound in ("0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0", "+Inf")
    }
    assert counts == {bound: float(bound not in {"0.001", "0.005", "0.01"}) for bound in counts}
