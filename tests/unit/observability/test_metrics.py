"""Calls and items of streams, as metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo
from dst_grpc.observability.costs import CallerCosts
from dst_grpc.observability.metrics import CallMetrics

CANCELLED = CallOutcome(code="CANCELLED", seconds=0.1)


class Counted:
    """Metrics, and their values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = CallMetrics(self.registry, CallerCosts(self.registry, {"alice"}.__contains__))

    def call(self, call: CallInfo, outcome: CallOutcome) -> None:
        self.metrics.on_start(call)
        self.metrics.on_end(None, call, outcome)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_calls_are_counted_and_timed_under_their_method_and_code(counted: Counted) -> None:
    known = CallInfo(method="/a.B/C", received_bytes=10, sent_bytes=20)
    for call in (known, CallInfo(method="/a.B/C"), CallInfo(method="/made.up/X", is_known=False)):
        counted.metrics.on_start(call)
    counted.metrics.on_end(None, known, CallOutcome(code="OK", seconds=0.5))
    assert counted.value("grpc_server_call_started_total", grpc_method="a.B/C") == 2
    assert counted.value("grpc_server_call_started_total", grpc_method="other") == 1
    assert counted.value("grpc_server_calls_running", grpc_method="a.B/C") == 1
    ended = {"grpc_method": "a.B/C", "grpc_status": "OK"}
    assert counted.value("grpc_server_call_duration_seconds_sum", **ended) == 0.5
    assert counted.value("grpc_server_call_sent_total_compressed_message_size_bytes_sum", **ended) == 20
    assert counted.value("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum", **ended) == 10


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("QUEUE_FULL", "queue_full"),
        ("DEADLINE_UNREACHABLE", "deadline"),
        ("QUOTA_EXCEEDED", "quota"),
        ("MEMORY_BUDGET_EXCEEDED", "memory"),
        ("OUT_OF_MEMORY", "out_of_memory"),
        ("DRAINING", "draining"),
        ("SLOW_READER", "slow_reader"),
    ],
)
def test_refusals_are_counted_by_their_reason(counted: Counted, reason: str, label: str) -> None:
    assert counted.value("dst_requests_refused_total", reason=label) == 0
    refused = CallOutcome(code="RESOURCE_EXHAUSTED", seconds=0.1, reason=reason)
    call = CallInfo(method="/a.B/C")
    counted.call(call, refused)
    counted.metrics.on_item(call, ItemInfo(index=0, request_id="", timeline=Timeline()), refused)
    assert counted.value("dst_requests_refused_total", reason=label) == 2


def test_what_fails_for_other_reasons_is_not_refused_nor_a_watch_that_ends_as_the_server_does(counted: Counted) -> None:
    counted.call(CallInfo(method="/a.B/C"), CallOutcome(code="NOT_FOUND", seconds=0.1, reason="MODEL_NOT_FOUND"))
    draining = CallOutcome(code="UNAVAILABLE", seconds=0.1, reason="DRAINING")
    counted.call(CallInfo(method="/a.B/Watch", sent_messages=1), draining)
    samples = [one for metric in counted.registry.collect() for one in metric.samples]
    assert not any(one.value for one in samples if one.name == "dst_requests_refused_total")


@pytest.mark.parametrize(
    ("now", "label"),
    [
        (Stage.QUEUE, "queued"),
        (Stage.LOAD, "queued"),
        (Stage.PASS, "running"),
        (Stage.DERIVE, "running"),
        (Stage.WRITE, "writing"),
    ],
)
def test_what_is_given_up_is_counted_by_where_it_was(counted: Counted, now: Stage, label: str) -> None:
    call, item = CallInfo(method="/a.B/C"), ItemInfo(index=0, request_id="", timeline=Timeline())
    call.timeline.now = item.timeline.now = now
    counted.call(call, CANCELLED)
    counted.metrics.on_item(call, item, CallOutcome(code="DEADLINE_EXCEEDED", seconds=1))
    counted.call(CallInfo(method="/a.B/Watch"), CANCELLED)  # which was never let in
    assert counted.value("dst_requests_abandoned_total", stage=label) == 2


def test_the_bytes_of_a_caller_are_counted_while_the_call_goes_on_and_each_once(counted: Counted) -> None:
    def sent(caller: str) -> float | None:
        return counted.value("dst_caller_cost_total", caller=caller, kind="bytes")

    call, stranger = (CallInfo(method="/a.B/C", caller=Caller(name=name)) for name in ("alice", "10.0.0.7"))
    for one in (call, stranger):
        counted.metrics.on_start(one)
    call.sent_bytes = stranger.sent_bytes = 10
    counted.metrics.count_running()
    assert (sent("alice"), sent("other"), sent("10.0.0.7")) == (10, 10, None)
    call.sent_bytes = 15
    counted.metrics.on_end(None, call, CANCELLED)
    counted.metrics.count_running()
    assert (sent("alice"), sent("other")) == (15, 10)


def test_the_first_message_is_timed_where_a_device_made_it(counted: Counted) -> None:
    def first(method: str) -> float | None:
        return counted.value("dst_first_chunk_seconds_sum", method=method, device="cuda:0")

    call = CallInfo(method="/a.B/C", started_at=10.0, first_sent_at=10.25)
    item = ItemInfo(index=0, request_id="", timeline=Timeline(), started_at=11.0, first_put_at=11.5)
    outcome = CallOutcome(code="OK", seconds=1)
    counted.call(CallInfo(method="/a.B/Watch", started_at=10.0, first_sent_at=10.25), outcome)
    call.timeline.device = item.timeline.device = "cuda:0"
    counted.call(call, outcome)
    counted.metrics.on_item(CallInfo(method="/a.B/Stream"), item, outcome)
    assert (first("a.B/C"), first("a.B/Stream"), first("a.B/Watch")) == (0.25, 0.5, None)


def test_items_of_streams_are_counted_and_timed_singly(counted: Counted) -> None:
    call = CallInfo(method="/a.B/Stream")
    for code in ("OK", "OK", "INVALID_ARGUMENT"):
        item = ItemInfo(index=0, request_id="", timeline=Timeline())
        counted.metrics.on_item(call, item, CallOutcome(code=code, seconds=0.5))
    labels = {"method": "a.B/Stream", "status": "OK"}
    assert counted.value("dst_stream_item_seconds_count", **labels) == 2
    assert counted.value("dst_stream_item_seconds_sum", **labels) == 1
    assert counted.value("dst_stream_item_seconds_count", method="a.B/Stream", status="INVALID_ARGUMENT") == 1


def test_an_exemplar_leads_to_the_trace_if_it_is_recorded(counted: Counted) -> None:
    class Traced(Timeline):
        @property
        def exemplar(self) -> dict[str, str]:
            return {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}

    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    counted.call(CallInfo(method="/a.B/C"), CallOutcome(code="OK", seconds=0.5))
    assert b"trace_id" not in encode(counted.registry)
    counted.call(CallInfo(method="/a.B/C", timeline=Traced()), CallOutcome(code="OK", seconds=0.5))
    assert b'# {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.5' in encode(counted.registry)
