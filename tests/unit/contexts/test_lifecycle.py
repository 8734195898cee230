"""The records of the cache: which state follows which, and what each state counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dst_grpc.contexts import ModelContext, Registry
from dst_grpc.contexts.entries import ModelEntry
from dst_grpc.contexts.lifecycle import CacheRecord, Lifecycle
from dst_grpc.domain.resolution import ContextState, ContextStatus
from dst_grpc.errors import Internal, Unavailable

from .conftest import Clock, FakeLoader

NOT_LOADED, LOADING, AVAILABLE = ContextState.NOT_LOADED, ContextState.LOADING, ContextState.AVAILABLE
UNLOADING, FAILED = ContextState.UNLOADING, ContextState.FAILED
ERROR = Unavailable("broken")


@pytest.fixture
def told() -> list[ContextStatus]:
    return []


@pytest.fixture
def lifecycle(told: list[ContextStatus]) -> Lifecycle:
    return Lifecycle(Clock(), lambda _entry, status: told.append(status))


@pytest.fixture
def entry(registry: Registry) -> ModelEntry:
    return registry.model_entry("a")


@pytest.fixture
def context(entry: ModelEntry) -> ModelContext:
    return FakeLoader().load_model(entry, lambda _: None)


def step(lifecycle: Lifecycle, record: CacheRecord, state: ContextState, context: ModelContext) -> None:
    """The step that leads to *state*."""
    steps: dict[ContextState, Callable[[], None]] = {
        NOT_LOADED: lambda: lifecycle.unloaded(record),
        LOADING: lambda: lifecycle.begin_load(record),
        AVAILABLE: lambda: lifecycle.loaded(record, context),
        UNLOADING: lambda: lifecycle.begin_unload(record),
        FAILED: lambda: lifecycle.failed(record, ERROR),
    }
    steps[state]()


WAYS: dict[ContextState, tuple[ContextState, ...]] = {
    NOT_LOADED: (),
    LOADING: (LOADING,),
    AVAILABLE: (LOADING, AVAILABLE),
    UNLOADING: (LOADING, AVAILABLE, UNLOADING),
    FAILED: (LOADING, FAILED),
}
ALLOWED = {
    (NOT_LOADED, LOADING),
    (LOADING, AVAILABLE),
    (LOADING, FAILED),
    (AVAILABLE, UNLOADING),
    (UNLOADING, NOT_LOADED),
    (FAILED, LOADING),
}


@pytest.mark.parametrize("state", ContextState)
@pytest.mark.parametrize("following", ContextState)
def test_only_the_steps_of_the_picture_are_possible(
    lifecycle: Lifecycle,
    entry: ModelEntry,
    context: ModelContext,
    told: list[ContextStatus],
    state: ContextState,
    following: ContextState,
) -> None:
    record = lifecycle.pin(entry, offered=True)
    lifecycle.unpin(record)
    for each in WAYS[state]:
        step(lifecycle, record, each, context)
    assert tuple(status.state for status in told) == WAYS[state]
    if (state, following) in ALLOWED:
        step(lifecycle, record, following, context)
        assert told[-1].state is record.state is following
    else:
        with pytest.raises(Internal, match=f"cannot be {following} after {state}"):
            step(lifecycle, record, following, context)
        assert record.state is state
    assert all((status.error is ERROR) is (status.state is FAILED) for status in told)


def test_bytes_count_from_before_a_load_until_after_the_unload(
    lifecycle: Lifecycle, entry: ModelEntry, context: ModelContext
) -> None:
    def counted() -> tuple[int, bool]:
        return lifecycle.counted_bytes("cpu"), lifecycle.is_counted(entry)

    record = lifecycle.pin(entry, offered=True)
    lifecycle.begin_load(record)
    assert counted() == (0, False)
    lifecycle.reserve(record)
    assert counted() == (entry.parameter_bytes, True)
    lifecycle.loaded(record, context)
    lifecycle.unpin(record)
    lifecycle.begin_unload(record)
    lifecycle.drop(record)
    assert record.context is None
    assert counted() == (entry.parameter_bytes, False)  # there, but not for long
    lifecycle.unloaded(record)
    assert counted() == (0, False)
    assert lifecycle.find(entry) is None


def test_what_is_used_is_neither_evicted_nor_unloaded(
    lifecycle: Lifecycle, entry: ModelEntry, context: ModelContext
) -> None:
    record = lifecycle.pin(entry, offered=True)
    lifecycle.begin_load(record)
    lifecycle.loaded(record, context)
    assert not lifecycle.evictable()
    with pytest.raises(Internal, match="unloaded while 1 use it"):
        lifecycle.begin_unload(record)
    lifecycle.unpin(record)
    assert lifecycle.evictable() == [record]
    lifecycle.set_pinned(record, pinned=True)
    assert not lifecycle.evictable()
    with pytest.raises(Internal, match="somebody who did not use it"):
        lifecycle.unpin(record)
    assert record.pins == 0


def test_a_context_is_not_wanted_while_it_goes_nor_dropped_before(
    lifecycle: Lifecycle, entry: ModelEntry, context: ModelContext
) -> None:
    record = lifecycle.pin(entry, offered=True)
    lifecycle.begin_load(record)
    with pytest.raises(Internal, match="dropped while it is loading"):
        lifecycle.drop(record)
    lifecycle.loaded(record, context)
    lifecycle.unpin(record)
    lifecycle.begin_unload(record)
    with pytest.raises(Internal, match="wanted while it is being unloaded"):
        lifecycle.pin(entry, offered=True)


def test_a_failed_load_is_forgotten_once_the_registry_withdraws_it(lifecycle: Lifecycle, entry: ModelEntry) -> None:
    record = lifecycle.pin(entry, offered=True)
    lifecycle.begin_load(record)
    lifecycle.failed(record, ERROR)
    assert lifecycle.records() == [record]
    lifecycle.withdraw(record)
    assert not lifecycle.records()
