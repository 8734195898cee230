"""The worst requests that there are, one after the other: nobody else waits long meanwhile.

`python -m benchmarks loop_lag` measures the same from within, and each; here a health check is what waits, on whatever
machine this is, so that the bound is generous.
"""

from __future__ import annotations

from itertools import groupby

from benchmarks.worst_requests import worst_requests
from tests.load.common import Findings, Target, call, health_checked, quantile

_SECONDS = 15.0
_STALL = 0.5


async def attack(target: Target, found: Findings) -> None:
    """Send them, and look at the waits of each method's."""
    ordered = sorted(worst_requests(), key=lambda request: request.method)
    async with target.channel() as channel:
        for method, requests in groupby(ordered, key=lambda request: request.method):
            codes = set()
            async with health_checked(target) as waits:
                for request in requests:
                    codes.add((await call(channel, method, *request.messages, within=_SECONDS)).code)
            stall = max(waits, default=0.0)
            measured = f"{stall:.3f} s, p99 {quantile(waits, 0.99):.3f} s, {' '.join(sorted(codes))}"
            is_right = stall <= _STALL and not codes & {"INTERNAL", "UNKNOWN"}
            found.say(method.rpartition("/")[2], measured, f"<= {_STALL} s", is_right)
