"""Admission of calls: observers that may refuse a call before anything of it is read."""

from __future__ import annotations

from dst_grpc.errors import Exhausted
from dst_grpc.observability.calls import HEALTH_PREFIX, CallInfo, CallOutcome, ItemInfo
from dst_grpc.rpc.draining import DrainSignal, draining_error


class CallAdmission:
    """Bounds the calls in flight, and refuses new ones while draining.

    Health checks always pass: a full or stopping server must still report it.
    """

    def __init__(self, drain: DrainSignal, max_concurrent_calls: int | None) -> None:
        """Admit up to *max_concurrent_calls* at once; None admits any number."""
        self._drain = drain
        self._max_concurrent_calls = max_concurrent_calls
        self._in_flight = 0

    def on_start(self, call: CallInfo) -> int:
        """Admit or refuse a call; the token is how many calls it counts as."""
        if call.method.startswith(HEALTH_PREFIX):
            return 0
        if self._drain.given:
            raise draining_error()
        limit = self._max_concurrent_calls
        if limit is not None and self._in_flight >= limit:
            raise Exhausted.full("too many calls are in progress", "max_concurrent_calls", limit)
        self._in_flight += 1
        return 1

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Count the call out."""
        del call, outcome
        self._in_flight -= int(bool(token))

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Do nothing."""
