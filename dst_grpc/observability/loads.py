"""Metrics of what waits for each device: gauges that are read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dst_grpc.domain.server_info import DeviceLoad


class LoadMetrics(Collector):
    """The load of each device."""

    def __init__(self, registry: CollectorRegistry, loads: Callable[[], Sequence[DeviceLoad]]) -> None:
        """Register the metrics with *registry*; *loads* may be called on any thread."""
        self._loads = loads
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges now."""
        wait = GaugeMetricFamily(
            "dst_expected_wait_seconds", "Time that a caller of whom nothing waits would wait.", labels=["device"]
        )
        waiting = GaugeMetricFamily("dst_queue_requests", "Passes and steps of answers that wait.", labels=["device"])
        for load in self._loads():
            wait.add_metric([load.device], load.expected_wait)
            waiting.add_metric([load.device], load.waiting_requests)
        yield wait
        yield waiting
