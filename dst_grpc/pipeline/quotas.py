"""Quotas: token buckets of device seconds, one for each caller that has a quota."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.errors import Exhausted, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.domain.callers import Grant

_MINUTE = 60.0
_LEAST_RETRY_SECONDS = 1.0


class Quotas:
    """What callers have left of their quotas. Used on the event loop only.

    A bucket holds what a caller may use in a minute, and fills steadily. A request may take it below zero, so that one
    that costs more than a minute's quota can run at all; the next is refused until there is something in it again.
    """

    def __init__(self, grant_of: Callable[[str], Grant], clock: Callable[[], float]) -> None:
        """Start with full buckets; *grant_of* tells what a caller is granted, by its name."""
        self._grant_of, self._clock = grant_of, clock
        self._missing: dict[str, tuple[float, float]] = {}
        """Device seconds that are missing in a bucket, and when that was so. Full buckets are not kept."""

    def check(self, caller: str) -> None:
        """Raise Exhausted (QUOTA_EXCEEDED) if *caller* has nothing left."""
        quota = self._grant_of(caller).cost_seconds_per_minute
        if quota is None:
            return
        excess = self._missing_now(caller, quota) - quota
        if excess >= 0:
            raise Exhausted(
                f"the caller may use {quota:g} seconds of the device in a minute, and has none left",
                reason=Reason.QUOTA_EXCEEDED,
                retry_after_seconds=max(excess * _MINUTE / quota, _LEAST_RETRY_SECONDS) if quota else None,
                metadata={"cost_seconds_per_minute": f"{quota:g}"},
            )

    def charge(self, caller: str, seconds: float) -> None:
        """Take *seconds* from the bucket of *caller*, or give them back if they are negative."""
        quota = self._grant_of(caller).cost_seconds_per_minute
        if quota is None:
            return
        missing = self._missing_now(caller, quota) + seconds
        self._missing.pop(caller, None)
        if missing > 0:
            self._missing[caller] = missing, self._clock()

    def _missing_now(self, caller: str, quota: float) -> float:
        missing, then = self._missing.get(caller, (0.0, 0.0))
        return max(missing - (self._clock() - then) * quota / _MINUTE, 0.0)
