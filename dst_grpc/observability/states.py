"""Metrics of what a server is, and of what it holds: read when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dst_grpc.domain.readings import BuildInfo, ContextsReading, MemoryReading


class Read(Collector):
    """Metrics that a function gives when they are asked for."""

    def __init__(self, registry: CollectorRegistry, read: Callable[[], Iterable[Metric]]) -> None:
        """Register what *read* gives with *registry*; it is called on any thread."""
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        return iter(self._read())


def memory_metrics(readings: Iterable[MemoryReading]) -> Iterator[GaugeMetricFamily]:
    """Bytes that are used, and may be, by device and kind."""
    labels = ("device", "kind")
    used = GaugeMetricFamily("dst_memory_bytes", "Bytes of memory in use.", labels=labels)
    limit = GaugeMetricFamily("dst_memory_limit_bytes", "Most bytes that may be in use.", labels=labels)
    for one in readings:
        key = one.device, one.kind.value
        used.add_metric(key, one.used_bytes)
        if one.limit_bytes is not None:
            limit.add_metric(key, one.limit_bytes)
    yield used
    yield limit


def context_metrics(reading: ContextsReading) -> Iterator[GaugeMetricFamily]:
    """Contexts by state, and bytes of each of the registry."""
    states = GaugeMetricFamily("dst_contexts", "Models and autoencoder sets.", labels=("state",))
    for state, count in reading.by_state.items():
        states.add_metric((state,), count)
    sizes = GaugeMetricFamily("dst_context_bytes", "Bytes that a context of the registry takes.", labels=("context",))
    for name, byte_count in reading.bytes_of.items():
        sizes.add_metric((name,), byte_count)
    yield states
    yield sizes


def counted(name: str, help_text: str, count: float) -> Iterator[CounterMetricFamily]:
    """A counter of something that is counted elsewhere."""
    yield CounterMetricFamily(name, help_text, value=count)


def certificate_expiry(expires_at: datetime | None) -> Iterator[GaugeMetricFamily]:
    """When the certificate in use expires, in seconds since 1970; nothing without one."""
    if expires_at is not None:
        name, help_text = "dst_certificate_expiry_timestamp_seconds", "When the server's certificate expires."
        yield GaugeMetricFamily(name, help_text, value=expires_at.timestamp())


def register_build_info(registry: CollectorRegistry, version: str, build: BuildInfo) -> None:
    """Register what the server was built from with *registry*."""
    labels = {"version": version, **asdict(build)}
    Gauge("dst_build_info", "What the server was built from; always 1.", tuple(labels), registry=registry).labels(
        **labels
    ).set(1)
