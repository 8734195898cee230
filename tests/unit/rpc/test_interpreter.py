from __future__ import annotations

import gc
import sys

from dst_grpc.rpc.interpreter import favour_event_loop


def test_what_requests_leave_is_not_looked_through_again_and_again() -> None:
    thresholds, seconds = gc.get_threshold(), sys.getswitchinterval()
    try:
        favour_event_loop()
        before = gc.get_stats()[2]["collections"]
        kept: list[object] = [[] for _ in range(200_000)]
        assert len(kept) == 200_000
        assert gc.get_stats()[2]["collections"] == before
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(seconds)
