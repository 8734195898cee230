"""What waits for devices, as metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from dst_grpc.domain.server_info import DeviceLoad
from dst_grpc.observability.loads import LoadMetrics


def test_each_device_has_its_load_as_it_is_when_asked_for() -> None:
    registry, loads = CollectorRegistry(), [DeviceLoad(device="cpu", expected_wait=0.5, waiting_requests=7)]
    LoadMetrics(registry, lambda: loads)
    loads.append(DeviceLoad(device="cuda:0", expected_wait=0.0, waiting_requests=0))
    for load in loads:
        labels = {"device": load.device}
        assert registry.get_sample_value("dst_expected_wait_seconds", labels) == load.expected_wait
        assert registry.get_sample_value("dst_queue_requests", labels) == load.waiting_requests
