"""Metrics of devices: what waits for them, what they do, and what that costs whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dst_grpc.domain.callers import Priority
from dst_grpc.domain.readings import DeviceReading
from dst_grpc.domain.work import LoadDone, WorkDone
from dst_grpc.observability.costs import CallerCosts, CostKind
from dst_grpc.observability.metrics import WAIT_SECONDS, observe

_PROMPTS = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192)


class DeviceMetrics:
    """Times what devices do, and counts it for the callers."""

    def __init__(self, registry: CollectorRegistry, costs: CallerCosts) -> None:
        """Register the metrics with *registry*; what callers cost is added to *costs*."""
        self._costs = costs
        wait = Histogram(
            "dst_queue_wait_seconds",
            "Time that a pass waited for its device.",
            ("device", "class"),
            registry=registry,
            buckets=WAIT_SECONDS,
        )
        passes = Histogram(
            "dst_pass_seconds",
            "Time of a batch's forward pass, of its gradient passes, of a further step of an answer, of a load.",
            ("model", "device", "kind"),
            registry=registry,
            buckets=WAIT_SECONDS,
        )
        prompts = Histogram(
            "dst_batch_prompts", "Runs that ran together.", ("device",), registry=registry, buckets=_PROMPTS
        )
        tokens = Histogram(
            "dst_batch_tokens", "Tokens that ran together.", ("device", "kind"), registry=registry, buckets=_TOKENS
        )

        # As of calls: finding them by their labels takes longer than counting.
        @cache
        def wait_of(device: str, priority: Priority) -> Histogram:
            return wait.labels(device, priority.value)

        @cache
        def pass_of(model: str, device: str, kind: str) -> Histogram:
            return passes.labels(model, device, kind)

        @cache
        def batch_of(device: str) -> tuple[Histogram, Histogram, Histogram]:
            return prompts.labels(device), tokens.labels(device, "real"), tokens.labels(device, "padding")

        self._wait_of, self._pass_of, self._batch_of = wait_of, pass_of, batch_of

    def on_work(self, work: WorkDone) -> None:
        """Count what a device has done."""
        first = work.jobs[0]
        for job in work.jobs:
            self._costs.add(job.caller, CostKind.SECONDS, job.device_seconds)
            self._costs.add(job.caller, CostKind.TOKENS, job.n_tokens)
            if not job.is_step:
                observe(self._wait_of(work.device, job.priority), work.started_at - job.queued_at, job.exemplar)
        if first.is_step:
            observe(self._pass_of(first.model, work.device, "step"), first.device_seconds, first.exemplar)
        for one in work.passes:
            prompts, real, padding = self._batch_of(work.device)
            prompts.observe(one.n_prompts)
            real.observe(one.n_tokens)
            padding.observe(one.n_padding)
            observe(self._pass_of(first.model, work.device, "forward"), one.forward_seconds, first.exemplar)
            if one.backward_seconds is not None:
                observe(self._pass_of(first.model, work.device, "backward"), one.backward_seconds, first.exemplar)

    def on_load(self, load: LoadDone) -> None:
        """Count a load."""
        self._pass_of(load.model, load.device, "load").observe(load.seconds)


class DeviceReadings(Collector):
    """What is read when somebody looks: queues, how busy devices are, and their stores."""

    def __init__(self, registry: CollectorRegistry, readings: Callable[[], Sequence[DeviceReading]]) -> None:
        """Register the metrics with *registry*; *readings* may be called on any thread."""
        self._readings = readings
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics now."""
        waiting = GaugeMetricFamily(
            "dst_queue_requests", "Passes and steps of answers that wait.", labels=("device", "class")
        )
        oldest = GaugeMetricFamily(
            "dst_queue_oldest_seconds", "Time that the oldest of them has waited; 0 if none waits.", labels=("device",)
        )
        wait = GaugeMetricFamily(
            "dst_expected_wait_seconds",
            "Time that a caller of whom nothing waits would wait for its turn.",
            labels=("device",),
        )
        busy = CounterMetricFamily(
            "dst_worker_busy_seconds", "Time that a device has worked; its rate is utilisation.", labels=("device",)
        )
        lookups = CounterMetricFamily(
            "dst_store_lookups", "Looks into the store of recordings and answers.", labels=("device", "result")
        )
        for one in self._readings():
            for priority, count in one.waiting.items():
                waiting.add_metric((one.device, priority.value), count)
            oldest.add_metric((one.device,), one.oldest_seconds)
            wait.add_metric((one.device,), one.expected_wait)
            busy.add_metric((one.device,), one.busy_seconds)
            lookups.add_metric((one.device, "hit"), one.store_hits)
            lookups.add_metric((one.device, "miss"), one.store_misses)
        yield from (waiting, oldest, wait, busy, lookups)
