"""Observers that are told of many calls at once are told everything, in order."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from dst_grpc.domain.timeline import Timeline
from dst_grpc.observability import later
from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo
from dst_grpc.observability.costs import CallerCosts
from dst_grpc.observability.later import BeforeReading, Later
from dst_grpc.observability.metrics import CallMetrics

OUTCOME = CallOutcome(code="OK", seconds=0.1)


class Seen:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.is_told = asyncio.Event()

    def on_start(self, call: CallInfo) -> None:
        self.events.append(f"start {call.method}")

    def on_end(self, _token: object, call: CallInfo, outcome: CallOutcome) -> None:
        self.events.append(f"end {call.method} {outcome.code}")
        self.is_told.set()

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        self.events.append(f"item {call.method} {item.index} {outcome.code}")


async def test_what_happened_is_told_soon_and_in_order() -> None:
    seen = Seen()
    watching = Later([seen])
    for method in ("a", "b"):
        call = CallInfo(method=method)
        watching.on_start(call)
        watching.on_item(call, ItemInfo(index=7, request_id="", timeline=Timeline()), OUTCOME)
        watching.on_end(None, call, OUTCOME)
    assert not seen.events
    await asyncio.wait_for(seen.is_told.wait(), 10)
    assert seen.events == ["start a", "item a 7 OK", "end a OK", "start b", "item b 7 OK", "end b OK"]


async def test_no_more_than_so_many_wait() -> None:
    seen = Seen()
    watching = Later([seen])
    for _ in range(later._MOST):
        watching.on_start(CallInfo(method="a"))
    assert len(seen.events) == later._MOST


async def test_metrics_that_are_read_hold_all_that_happened_before() -> None:
    registry = CollectorRegistry()
    observers: list[CallMetrics] = []
    watching = Later(observers)
    BeforeReading(registry, watching.flush)
    observers.append(CallMetrics(registry, CallerCosts(registry, {"alice"}.__contains__)))
    watching.on_start(CallInfo(method="/a.B/C"))
    started = {
        sample.labels["grpc_method"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_call_started_total"
    }
    assert started == {"a.B/C": 1}
