from __future__ import annotations

from prometheus_client import CollectorRegistry

from dst_grpc.observability.calls import CallInfo, CallOutcome
from dst_grpc.observability.metrics import CallMetrics


def test_calls_are_counted_and_timed_under_their_method_and_code() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    known = CallInfo(method="/a.B/C", received_bytes=10, sent_bytes=20)
    for call in (known, known, CallInfo(method="/made.up/X", is_known=False)):
        metrics.on_start(call)
    metrics.on_end(None, known, CallOutcome(code="OK", seconds=0.5))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("grpc_server_call_started_total", grpc_method="a.B/C") == 2
    assert value("grpc_server_call_started_total", grpc_method="other") == 1
    assert value("grpc_server_calls_running", grpc_method="a.B/C") == 1
    ended = {"grpc_method": "a.B/C", "grpc_status": "OK"}
    assert value("grpc_server_call_duration_seconds_sum", **ended) == 0.5
    assert value("grpc_server_call_sent_total_compressed_message_size_bytes_sum", **ended) == 20
    assert value("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum", **ended) == 10


def test_refusals_are_counted_by_their_reason() -> None:
    registry = CollectorRegistry()
    metrics, call = CallMetrics(registry), CallInfo(method="/a.B/C")
    for code, reason in (("RESOURCE_EXHAUSTED", "QUEUE_FULL"), ("NOT_FOUND", "MODEL_NOT_FOUND"), ("OK", "")):
        metrics.on_start(call)
        metrics.on_end(None, call, CallOutcome(code=code, seconds=0.1, reason=reason))
    assert registry.get_sample_value("dst_requests_refused_total", {"reason": "queue_full"}) == 1
    assert registry.get_sample_value("dst_requests_refused_total", {"reason": "model_not_found"}) is None
