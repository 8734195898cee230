"""What a server is, and what it holds, as metrics."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from dst_grpc.domain.readings import BuildInfo, ContextsReading, MemoryKind, MemoryReading
from dst_grpc.observability import states


def test_memory_is_told_by_device_and_kind_and_its_bound_where_there_is_one() -> None:
    registry = CollectorRegistry()
    bounded = [MemoryReading(kind=kind, device="cuda:0", used_bytes=7, limit_bytes=9) for kind in MemoryKind]
    free = MemoryReading(kind=MemoryKind.WEIGHTS, used_bytes=5)
    states.Read(registry, lambda: states.memory_metrics([*bounded, free]))
    for kind in ("weights", "runs", "store", "allocator", "unread", "put_tensors", "kept_graphs"):
        labels = {"device": "cuda:0", "kind": kind}
        assert registry.get_sample_value("dst_memory_bytes", labels) == 7
        assert registry.get_sample_value("dst_memory_limit_bytes", labels) == 9
    assert registry.get_sample_value("dst_memory_bytes", {"device": "cpu", "kind": "weights"}) == 5
    assert registry.get_sample_value("dst_memory_limit_bytes", {"device": "cpu", "kind": "weights"}) is None


def test_contexts_are_counted_by_state_and_measured_by_name() -> None:
    registry, reading = CollectorRegistry(), [ContextsReading(by_state={}, bytes_of={}, memory=())]
    states.Read(registry, lambda: states.context_metrics(reading[0]))
    assert registry.get_sample_value("dst_contexts", {"state": "failed"}) is None
    reading[0] = ContextsReading(by_state={"available": 2, "failed": 1}, bytes_of={"tiny": 1000}, memory=())
    assert registry.get_sample_value("dst_contexts", {"state": "failed"}) == 1
    assert registry.get_sample_value("dst_context_bytes", {"context": "tiny"}) == 1000


def test_what_the_server_was_built_from_is_in_labels() -> None:
    registry = CollectorRegistry()
    states.register_build_info(registry, "1.2.3", BuildInfo(torch="2.6", cuda="12.4"))
    labels = {"version": "1.2.3", "torch": "2.6", "cuda": "12.4"}
    assert registry.get_sample_value("dst_build_info", labels) == 1


def test_without_a_certificate_nothing_is_said_of_one() -> None:
    assert not list(states.certificate_expiry(None))
    (family,) = states.certificate_expiry(datetime(2031, 5, 6, tzinfo=UTC))
    assert [sample.value for sample in family.samples] == [datetime(2031, 5, 6, tzinfo=UTC).timestamp()]
