"""Prometheus metrics of the calls, under the names of gRFC A66 as Prometheus spells them.

The grpc.aio server reports none of these itself. Each server has a registry of its own, so that two servers in one
process count separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo

# The bucket bounds that gRFC A66 prescribes, so that dashboards fit servers in every language.
_SECONDS = (
    0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013,
    0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5,
    10, 20, 50, 100,
)  # fmt: skip
_BYTES = (0, *(2.0**power for power in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)))
_OTHER = "other"


class CallMetrics:
    """Counts and times calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics with *registry*."""
        by_method = ("grpc_method",)
        by_outcome = ("grpc_method", "grpc_status")
        self._started = Counter("grpc_server_call_started", "Calls started.", by_method, registry=registry)
        self._running = Gauge("grpc_server_calls_running", "Calls in progress.", by_method, registry=registry)
        self._seconds = Histogram(
            "grpc_server_call_duration_seconds",
            "Time from a call's start to its end.",
            by_outcome,
            registry=registry,
            buckets=_SECONDS,
        )
        self._sent = Histogram(
            "grpc_server_call_sent_total_compressed_message_size_bytes",
            "Bytes of response messages of a call.",
            by_outcome,
            registry=registry,
            buckets=_BYTES,
        )
        self._received = Histogram(
            "grpc_server_call_rcvd_total_compressed_message_size_bytes",
            "Bytes of request messages of a call.",
            by_outcome,
            registry=registry,
            buckets=_BYTES,
        )
        self._refused = Counter(
            "dst_requests_refused", "Calls that ended as RESOURCE_EXHAUSTED.", ("reason",), registry=registry
        )

        # Finding them by their labels takes longer than counting. There are as many as methods and codes.
        self._of_method = cache(self._metrics_of_method)
        self._of_outcome = cache(self._metrics_of_outcome)

    def on_start(self, call: CallInfo) -> None:
        """Count the start."""
        started, running = self._of_method(_label(call))
        started.inc()
        running.inc()

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Count the end."""
        del token
        method = _label(call)
        seconds, sent, received = self._of_outcome(method, outcome.code)
        self._of_method(method)[1].dec()
        seconds.observe(outcome.seconds)
        sent.observe(call.sent_bytes)
        received.observe(call.received_bytes)
        if outcome.code == "RESOURCE_EXHAUSTED":
            self._refused.labels(outcome.reason.lower()).inc()

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Do nothing."""

    def _metrics_of_method(self, method: str) -> tuple[Counter, Gauge]:
        return self._started.labels(method), self._running.labels(method)

    def _metrics_of_outcome(self, method: str, code: str) -> tuple[Histogram, Histogram, Histogram]:
        labels = method, code
        return self._seconds.labels(*labels), self._sent.labels(*labels), self._received.labels(*labels)


def follow_bytes(registry: CollectorRegistry, name: str, help_text: str, byte_count: Callable[[], int]) -> None:
    """Register a gauge, with *registry*, of something that is counted in bytes elsewhere."""
    Gauge(name, help_text, registry=registry).set_function(byte_count)


def follow_count(registry: CollectorRegistry, name: str, help_text: str, count: Callable[[], int]) -> None:
    """Register a counter, with *registry*, of something that is counted elsewhere, and never less than before."""
    registry.register(_Followed(name, help_text, count))


class _Followed(Collector):
    def __init__(self, name: str, help_text: str, count: Callable[[], int]) -> None:
        self._name, self._help_text, self._count = name, help_text, count

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._help_text, value=self._count())


def _label(call: CallInfo) -> str:
    """The method without its leading slash; unknown methods share a label, so that callers cannot create labels."""
    return call.method.removeprefix("/") if call.is_known else _OTHER


class MetricsServer:
    """Serves a registry over HTTP, in a thread of its own, at /metrics."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Listen at once; raises OSError if the port is taken."""
        self._server: WSGIServer
        self._thread: Thread
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)

    @property
    def port(self) -> int:
        """The port, chosen by the system if 0 was asked for."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
