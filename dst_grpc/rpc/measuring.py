"""All metrics of a server, and the port that they are read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from dst_grpc import __version__
from dst_grpc.domain.readings import MemoryReading
from dst_grpc.observability import states
from dst_grpc.observability.calls import CallObserver
from dst_grpc.observability.costs import CallerCosts
from dst_grpc.observability.devices import DeviceMetrics, DeviceReadings
from dst_grpc.observability.event_loop import lag_histogram, measure_lag
from dst_grpc.observability.exposition import MetricsServer
from dst_grpc.observability.later import BeforeReading, Later
from dst_grpc.observability.logs import dropped_records
from dst_grpc.observability.metrics import CallMetrics
from dst_grpc.rpc.certificates import Certificates
from dst_grpc.rpc.identity import Identity
from dst_grpc.rpc.listening import why_not
from dst_grpc.rpc.metrics_access import MetricsAccess
from dst_grpc.rpc.parts import Parts, StartupError
from dst_grpc.rpc.reloading import ReadFile
from dst_grpc.rpc.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What metrics are read from."""

    parts: Parts
    """The objects behind the services."""
    identity: Identity
    """Knows the names of callers."""
    memory: Sequence[Callable[[], MemoryReading]]
    """What takes memory besides the parts. Called on any thread."""
    certificates: Certificates
    """The server's certificates in use."""


class Measuring:
    """The metrics of one server."""

    def __init__(self, settings: Settings, sources: Sources) -> None:
        """Measure what *sources* give; nothing is served yet."""
        self._settings, self._sources = settings, sources
        self._registry = CollectorRegistry()
        self._access = MetricsAccess(settings)

    @property
    def files(self) -> Sequence[ReadFile]:
        """What is read at the start, and at each reload."""
        return self._access.files

    def observers(self, later: Later) -> Sequence[CallObserver]:
        """Register everything; returns the observers of calls, that *later* must tell."""
        registry, parts = self._registry, self._sources.parts

        def update() -> None:
            later.flush()
            calls.count_running()

        BeforeReading(registry, update)  # what is registered first is also read first
        costs = CallerCosts(registry, self._sources.identity.is_configured)
        calls = CallMetrics(registry, costs)
        devices = DeviceMetrics(registry, costs)
        parts.pipeline.observe(later.telling(devices.on_work))
        parts.cache.observe(later.telling(devices.on_load))
        DeviceReadings(registry, parts.pipeline.readings)
        states.Read(registry, self._read)
        states.register_build_info(registry, __version__, parts.build)
        ProcessCollector(registry=registry)
        return [calls]

    async def measure_lag(self) -> None:
        """Measure by how much the event loop is late, until cancelled."""
        await measure_lag(lag_histogram(self._registry).observe)

    def serve(self, stack: AsyncExitStack) -> int:
        """Serve the metrics until *stack* is closed; returns the port.

        Raises:
            StartupError: The port cannot be used.
        """
        settings, access = self._settings, self._access
        assert settings.metrics_port is not None  # noqa: S101  or there would be nothing to serve
        host, port = settings.metrics_address
        try:
            server = MetricsServer(self._registry, host, port, tls=lambda: access.tls, is_allowed=access.is_allowed)
        except (OSError, UnicodeError) as error:
            reason = why_not(host, port) or error
            raise StartupError(f"metrics_port {port} of {host} cannot be used: {reason}") from None
        stack.push_async_callback(asyncio.to_thread, server.close)
        return server.port

    def _read(self) -> Iterator[Metric]:
        contexts = self._sources.parts.cache.readings()
        yield from states.context_metrics(contexts)
        yield from states.memory_metrics(self._memory(contexts.memory))
        yield from states.certificate_expiry(self._sources.certificates.expires_at)
        help_text = "Records dropped as nobody read the log."
        yield from states.counted("dst_log_records_dropped", help_text, dropped_records())

    def _memory(self, weights: Iterable[MemoryReading]) -> Iterator[MemoryReading]:
        yield from weights
        for device in self._sources.parts.pipeline.readings():
            yield from device.memory
        for read in self._sources.memory:
            yield read()
