from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.errors import Exhausted, NotFound, Reason
from dst_grpc.rpc import tensor_store
from dst_grpc.rpc.tensor_store import KeptTensor, TensorLimits, TensorStore

KIB = 1024


class Clock:
    """Stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Timers:
    """One at most, which a test fires."""

    def __init__(self) -> None:
        self.pending: Callable[[], None] | None = None

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> Timers:
        assert self.pending is None
        self.pending = callback
        return self

    def cancel(self) -> None:
        self.pending = None

    def fire(self) -> None:
        callback, self.pending = self.pending, None
        assert callback is not None
        callback()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def store(clock: Clock, timers: Timers) -> TensorStore:
    limits = TensorLimits(max_caller_bytes=8 * KIB, max_total_bytes=12 * KIB, max_ttl_seconds=100.0)
    return TensorStore(limits, clock=clock, call_later=timers.call_later)


def put(store: TensorStore, caller: str = "a", kib: int = 1, ttl_seconds: float | None = None) -> KeptTensor:
    values = np.zeros(kib * KIB // 4, np.float32)
    with store.arriving(caller, values.size) as keep:
        return keep(RequestTensor(tensor=values), ttl_seconds)


def test_a_tensor_is_its_callers_own(store: TensorStore) -> None:
    kept = put(store)
    assert store.get("a", kept.handle) is kept.tensor
    for caller, handle in (("b", kept.handle), ("a", "tensor-none"), ("a", "")):
        with pytest.raises(NotFound) as caught:
            store.get(caller, handle)
        assert caught.value.reason is Reason.TENSOR_NOT_FOUND
        with pytest.raises(NotFound):
            store.delete(caller, handle)
    assert put(store).handle != kept.handle


def test_a_deleted_tensor_is_gone_and_counts_no_more(store: TensorStore) -> None:
    kept = put(store, kib=8)
    with pytest.raises(Exhausted):
        put(store)
    store.delete("a", kept.handle)
    with pytest.raises(NotFound):
        store.get("a", kept.handle)
    assert store.byte_count == 0
    put(store, kib=8)


def test_a_caller_has_a_quota_and_all_together_have_one(store: TensorStore) -> None:
    put(store, "a", kib=8)
    with pytest.raises(Exhausted) as caught:
        put(store, "a")
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.metadata == {"max_put_tensor_bytes": str(8 * KIB)}
    put(store, "b", kib=4)
    with pytest.raises(Exhausted, match="of all callers"):
        put(store, "c")
    assert store.byte_count == 12 * KIB


def test_a_tensor_that_never_arrives_counts_only_meanwhile(store: TensorStore) -> None:
    with store.arriving("a", 2 * KIB):
        assert store.byte_count == 8 * KIB
    assert store.byte_count == 0


def test_small_tensors_count_for_what_keeping_them_takes(store: TensorStore) -> None:
    with store.arriving("a", 1) as keep:
        assert keep(RequestTensor(tensor=np.ones(1, np.float32)), None).byte_count == KIB


def test_a_tensor_expires_at_its_time_or_at_the_longest_there_is(store: TensorStore, clock: Clock) -> None:
    soon, late, never = put(store, ttl_seconds=10.0), put(store, ttl_seconds=1000.0), put(store)
    assert (soon.expires_at, late.expires_at, never.expires_at) == (10.0, 100.0, 100.0)
    clock.now = 10.0
    with pytest.raises(NotFound):
        store.get("a", soon.handle)
    assert store.get("a", late.handle) is late.tensor


def test_what_has_expired_makes_room(store: TensorStore, clock: Clock) -> None:
    put(store, kib=8, ttl_seconds=10.0)
    clock.now = 11.0
    put(store, kib=8)


def test_memory_of_what_has_expired_is_freed_while_nobody_calls(
    store: TensorStore, clock: Clock, timers: Timers
) -> None:
    put(store, ttl_seconds=10.0)
    put(store, ttl_seconds=20.0)
    clock.now = 15.0
    timers.fire()
    assert store.byte_count == KIB
    clock.now = 25.0
    timers.fire()
    assert store.byte_count == 0
    assert not timers.pending
    put(store)
    store.close()
    assert not timers.pending


def test_what_is_gone_before_its_time_is_not_remembered_for_long(
    store: TensorStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each expiry is noted until its time, so that a tensor that is refused need not look through all that are kept."""
    monkeypatch.setattr(tensor_store, "_LEAST_STALE", 3)
    late, early = put(store, ttl_seconds=50), put(store, ttl_seconds=20)
    for _ in range(30):
        store.delete("a", put(store, ttl_seconds=30).handle)
    assert len(store._expiring) <= 2 * 2 + 3
    clock.now = 25.0
    put(store, kib=7)  # for which there is room only without the one that has expired
    with pytest.raises(NotFound):
        store.get("a", early.handle)
    assert store.get("a", late.handle) is late.tensor
    clock.now = 60.0
    put(store, kib=1)
    with pytest.raises(NotFound):
        store.get("a", late.handle)
