"""Prometheus metrics of calls, and of the items of streams. Those of gRFC A66 have the names that Prometheus spells.

The grpc.aio server reports none of these itself. Each server has a registry of its own, so that two servers in one
process count separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo
from dst_grpc.observability.costs import OTHER, CallerCosts, CostKind

# The bucket bounds that gRFC A66 prescribes, so that dashboards fit servers in every language.
_SECONDS = (
    0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013,
    0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5,
    10, 20, 50, 100,
)  # fmt: skip
_BYTES = (0, *(2.0**power for power in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)))
WAIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bucket bounds of waits and of work, from a small prompt on a GPU to a load or a long answer."""
_REFUSED = {
    "QUEUE_FULL": "queue_full",
    "DEADLINE_UNREACHABLE": "deadline",
    "QUOTA_EXCEEDED": "quota",
    "MEMORY_BUDGET_EXCEEDED": "memory",
    "OUT_OF_MEMORY": "out_of_memory",
    "DRAINING": "draining",
    "SLOW_READER": "slow_reader",
}
"""What is counted as refused: reasons of errors, and how the metric calls them."""
_GIVEN_UP = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})
_ABANDONED = {
    Stage.QUEUE: "queued",
    Stage.LOAD: "queued",
    Stage.PASS: "running",
    Stage.DERIVE: "running",
    Stage.WRITE: "writing",
}
"""By the stage that a request was in when it was given up."""


class CallMetrics:
    """Counts and times calls, and items of streams singly."""

    def __init__(self, registry: CollectorRegistry, costs: CallerCosts) -> None:
        """Register the metrics with *registry*; the bytes that are sent to a caller are added to *costs*."""
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
        self._item_seconds = Histogram(
            "dst_stream_item_seconds",
            "Time from the arrival of an item of a stream to its end.",
            ("method", "status"),
            registry=registry,
            buckets=WAIT_SECONDS,
        )
        self._first_chunk = Histogram(
            "dst_first_chunk_seconds",
            "Time from the start of a call, or the arrival of an item, to the first message of its answer.",
            ("method", "device"),
            registry=registry,
            buckets=WAIT_SECONDS,
        )
        refused = Counter("dst_requests_refused", "Calls and items that were refused.", ("reason",), registry=registry)
        self._refused = {reason: refused.labels(label) for reason, label in _REFUSED.items()}
        abandoned = Counter(
            "dst_requests_abandoned",
            "Calls and items that were cancelled, or whose deadline passed, by where they were.",
            ("stage",),
            registry=registry,
        )
        self._abandoned = {stage: abandoned.labels(label) for stage, label in _ABANDONED.items()}
        self._costs = costs
        self._open: dict[CallInfo, int] = {}
        """Bytes that have been counted of each call in progress."""
        self._lock = Lock()
        """Metrics are read on another thread."""

        # Finding them by their labels takes longer than counting. There are as many as methods and codes.
        self._of_method = cache(self._metrics_of_method)
        self._of_outcome = cache(self._metrics_of_outcome)
        self._of_item = cache(self._item_seconds.labels)
        self._of_first = cache(self._first_chunk.labels)

    def on_start(self, call: CallInfo) -> None:
        """Count the start."""
        started, running = self._of_method(_label(call))
        started.inc()
        running.inc()
        with self._lock:
            self._open[call] = 0

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Count the end."""
        del token
        method, exemplar = _label(call), call.timeline.exemplar
        seconds, sent, received = self._of_outcome(method, outcome.code)
        self._of_method(method)[1].dec()
        observe(seconds, outcome.seconds, exemplar)
        sent.observe(call.sent_bytes)
        received.observe(call.received_bytes)
        with self._lock:
            self._count_bytes(call)
            del self._open[call]
        if outcome.reason != "DRAINING" or not call.sent_messages:  # watches end so too
            self._count_end(call.timeline, outcome)
        self._count_first(method, call.started_at, call.first_sent_at, call.timeline)

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Count an item."""
        method = _label(call)
        observe(self._of_item(method, outcome.code), outcome.seconds, item.timeline.exemplar)
        self._count_end(item.timeline, outcome)
        self._count_first(method, item.started_at, item.first_put_at, item.timeline)

    def count_running(self) -> None:
        """Count the bytes that calls in progress have sent so far, as streams may go on for hours. On any thread."""
        with self._lock:
            for call in self._open:
                self._count_bytes(call)

    def _count_bytes(self, call: CallInfo) -> None:
        sent = call.sent_bytes
        self._costs.add(call.caller.name, CostKind.BYTES, sent - self._open[call])
        self._open[call] = sent

    def _count_end(self, timeline: Timeline, outcome: CallOutcome) -> None:
        refused = self._refused.get(outcome.reason)
        if refused is not None:
            refused.inc()
        elif outcome.code in _GIVEN_UP and timeline.now is not None:
            self._abandoned[timeline.now].inc()

    def _count_first(self, method: str, started: float, first: float | None, timeline: Timeline) -> None:
        if first is not None and timeline.device:
            observe(self._of_first(method, timeline.device), first - started, timeline.exemplar)

    def _metrics_of_method(self, method: str) -> tuple[Counter, Gauge]:
        return self._started.labels(method), self._running.labels(method)

    def _metrics_of_outcome(self, method: str, code: str) -> tuple[Histogram, Histogram, Histogram]:
        labels = method, code
        return self._seconds.labels(*labels), self._sent.labels(*labels), self._received.labels(*labels)


def observe(histogram: Histogram, amount: float, exemplar: Mapping[str, str] | None) -> None:
    """Add *amount* to *histogram*; those who read OpenMetrics find the labels of *exemplar* beside it."""
    histogram.observe(amount, None if exemplar is None else dict(exemplar))


def _label(call: CallInfo) -> str:
    """The method without its leading slash; unknown methods share a label, so that callers cannot create labels."""
    return call.method.removeprefix("/") if call.is_known else OTHER
