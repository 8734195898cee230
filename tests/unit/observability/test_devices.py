"""What devices do, as metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from dst_grpc.domain.callers import Priority
from dst_grpc.domain.work import JobDone, LoadDone, PassesDone, WorkDone
from dst_grpc.observability.costs import CallerCosts
from dst_grpc.observability.devices import DeviceMetrics, DeviceReadings
from tests.fake_parts import device_reading


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def devices(registry: CollectorRegistry) -> DeviceMetrics:
    return DeviceMetrics(registry, CallerCosts(registry, {"alice"}.__contains__))


def job(caller: str = "alice", *, is_step: bool = False, n_tokens: int = 0, queued_at: float = 10.0) -> JobDone:
    return JobDone(caller, Priority.INTERACTIVE, "tiny", is_step, queued_at, 0.25, n_tokens)


def test_a_batch_is_timed_and_counted_and_so_is_what_it_costs_whom(
    registry: CollectorRegistry, devices: DeviceMetrics
) -> None:
    jobs = (job(n_tokens=5), job("10.0.0.7", n_tokens=3, queued_at=10.5))
    passes = (PassesDone(2, 8, 2, 0.125, 0.375),)
    devices.on_work(WorkDone("cpu", 11.0, jobs, passes))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    waited = {"device": "cpu", "class": "interactive"}
    assert value("dst_queue_wait_seconds_sum", **waited) == 1.5
    assert value("dst_queue_wait_seconds_count", **waited) == 2
    assert value("dst_pass_seconds_sum", model="tiny", device="cpu", kind="forward") == 0.125
    assert value("dst_pass_seconds_sum", model="tiny", device="cpu", kind="backward") == 0.375
    assert value("dst_pass_seconds_sum", model="tiny", device="cpu", kind="step") is None
    assert value("dst_batch_prompts_sum", device="cpu") == 2
    assert value("dst_batch_tokens_sum", device="cpu", kind="real") == 8
    assert value("dst_batch_tokens_sum", device="cpu", kind="padding") == 2
    for caller, n_tokens in (("alice", 5), ("other", 3)):
        assert value("dst_caller_cost_total", caller=caller, kind="tokens") == n_tokens
        assert value("dst_caller_cost_total", caller=caller, kind="seconds") == 0.25


def test_steps_and_loads_are_timed_and_did_not_wait_as_passes_do(
    registry: CollectorRegistry, devices: DeviceMetrics
) -> None:
    devices.on_work(WorkDone("cpu", 11.0, (job(is_step=True),), ()))
    devices.on_load(LoadDone(model="tiny", device="cpu", seconds=2.0))

    def seconds(kind: str) -> float | None:
        return registry.get_sample_value("dst_pass_seconds_sum", {"model": "tiny", "device": "cpu", "kind": kind})

    assert (seconds("step"), seconds("load"), seconds("forward")) == (0.25, 2.0, None)
    labels = {"device": "cpu", "class": "interactive"}
    assert registry.get_sample_value("dst_queue_wait_seconds_count", labels) is None


def test_what_waits_is_read_when_somebody_looks(registry: CollectorRegistry) -> None:
    readings = [device_reading()]
    DeviceReadings(registry, lambda: readings)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"device": "cpu"} | labels)

    assert value("dst_queue_requests", **{"class": "interactive"}) == 3
    assert value("dst_queue_requests", **{"class": "batch"}) == 0
    assert value("dst_queue_oldest_seconds") == 0.5
    assert value("dst_expected_wait_seconds") == 0.25
    assert value("dst_worker_busy_seconds_total") == 2.0
    assert value("dst_store_lookups_total", result="hit") == 5
    assert value("dst_store_lookups_total", result="miss") == 7
    readings.clear()
    assert value("dst_queue_oldest_seconds") is None
