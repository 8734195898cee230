"""The cache: one load for all who want the same, pins, eviction by bytes and recency, states that tell the truth."""

from __future__ import annotations

import asyncio
import errno
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing

import pytest
import torch

from dst_grpc.contexts import ContextCache, ModelContext, Registry
from dst_grpc.contexts.entries import ModelEntry
from dst_grpc.domain.resolution import ContextState, ContextStatus, LoadProgress
from dst_grpc.domain.work import LoadDone
from dst_grpc.errors import (
    DataLoss,
    DstError,
    Exhausted,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Reason,
    Unavailable,
)

from .conftest import Clock, FakeLoader, Panic, leased

NOT_LOADED, LOADING, AVAILABLE = ContextState.NOT_LOADED, ContextState.LOADING, ContextState.AVAILABLE
UNLOADING, FAILED = ContextState.UNLOADING, ContextState.FAILED


async def use(cache: ContextCache, model: str, *sets: str) -> None:
    """Lease and let go."""
    async with leased(cache, model, sets):
        pass


def loaded(cache: ContextCache) -> list[str]:
    return [status.handle.partition("@")[0] for status in cache.statuses() if status.state is AVAILABLE]


async def test_sixteen_waiters_share_one_load(cache: ContextCache, loader: FakeLoader) -> None:
    gate = loader.gate("a")
    contexts = []

    async def want() -> None:
        async with leased(cache, "a") as lease:
            contexts.append(lease.model)

    waiters = [asyncio.create_task(want()) for _ in range(16)]
    await loader.has_begun("a")
    assert cache.status("a").pins == 16
    gate.set()
    await asyncio.gather(*waiters)
    assert loader.calls["a"] == 1
    assert len(contexts) == 16
    assert len({id(context) for context in contexts}) == 1
    assert cache.status("a").pins == 0


async def test_different_models_load_in_parallel(cache: ContextCache, loader: FakeLoader) -> None:
    gates = [loader.gate("a"), loader.gate("b")]
    waiters = [asyncio.create_task(use(cache, name)) for name in ("a", "b")]
    # Neither gate is open, so the second load has begun while the first is under way.
    await loader.has_begun("a")
    await loader.has_begun("b")
    assert [cache.status(name).state for name in ("a", "b", "c")] == [LOADING, LOADING, NOT_LOADED]
    for gate in gates:
        gate.set()
    await asyncio.gather(*waiters)


async def test_a_loaded_context_is_a_hit(cache: ContextCache, loader: FakeLoader) -> None:
    for _ in range(3):
        await use(cache, "a")
    assert loader.calls["a"] == 1
    assert cache.status("a").hits == 2


async def test_a_failed_load_fails_every_waiter_and_is_tried_again(cache: ContextCache, loader: FakeLoader) -> None:
    gate = loader.gate("a")
    loader.errors["a"] = DataLoss("broken")
    waiters = [asyncio.create_task(use(cache, "a")) for _ in range(4)]
    await loader.has_begun("a")
    gate.set()
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["broken"] * 4
    status = cache.status("a")
    assert (status.state, status.error, status.pins, status.bytes_loaded) == (FAILED, loader.errors["a"], 0, 0)
    del loader.errors["a"]
    await use(cache, "a")
    assert loader.calls["a"] == 2
    assert cache.status("a").error is None


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ValueError("/secret/path"), Unavailable, Reason.LOAD_FAILED),
        (OSError("disk"), Unavailable, Reason.LOAD_FAILED),
        (MemoryError(), Exhausted, Reason.OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, "no memory to map"), Exhausted, Reason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("of a GPU"), Exhausted, Reason.OUT_OF_MEMORY),
        (RuntimeError("of another kind"), Unavailable, Reason.LOAD_FAILED),
        (Panic("of another language"), Unavailable, Reason.LOAD_FAILED),
        (DataLoss("x"), DataLoss, Reason.CHECKPOINT_CORRUPT),
    ],
    ids=repr,
)
async def test_any_failure_becomes_an_error_of_ours(
    cache: ContextCache, loader: FakeLoader, error: BaseException, kind: type[DstError], reason: Reason
) -> None:
    loader.errors["a"] = error
    with pytest.raises(kind) as caught:
        await use(cache, "a")
    assert caught.value.reason is reason
    assert "secret" not in caught.value.message


class Spoilt(FakeLoader):
    """Fails with a weight in its hands."""

    weight: weakref.ref[torch.Tensor]

    def load_model(self, entry: ModelEntry, on_progress: Callable[[int], None]) -> ModelContext:
        weight = torch.zeros(3)
        self.weight = weakref.ref(weight)
        try:
            weight.reshape(2)
        except RuntimeError as error:
            raise DataLoss("broken") from error
        raise AssertionError("three elements fill no two")


async def test_a_remembered_failure_keeps_nothing_of_what_was_loaded(registry: Registry) -> None:
    loader = Spoilt()
    cache = ContextCache(registry, loader=loader)
    with pytest.raises(DataLoss, match="broken"):
        await use(cache, "a")
    gc.collect()
    assert cache.status("a").error is not None
    assert loader.weight() is None
    await cache.close()


async def test_one_who_stops_waiting_does_not_stop_the_load(cache: ContextCache, loader: FakeLoader) -> None:
    gate = loader.gate("a")
    leaver, stayer = (asyncio.create_task(use(cache, "a")) for _ in range(2))
    await loader.has_begun("a")
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert cache.status("a").pins == 1
    gate.set()
    await stayer
    assert loader.calls["a"] == 1


async def test_a_load_that_nobody_waits_for_any_more_is_kept(cache: ContextCache, loader: FakeLoader) -> None:
    gate = loader.gate("a")
    leaver = asyncio.create_task(use(cache, "a"))
    await loader.has_begun("a")
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    gate.set()
    await use(cache, "a")
    assert loader.calls["a"] == 1


async def test_an_autoencoder_set_comes_with_its_model_under_its_name(cache: ContextCache, registry: Registry) -> None:
    handle = registry.autoencoder_entry("a/resid_delta_mlp", "a").handle
    async with leased(cache, "a", ["a/mlp_post_act", handle]) as lease:
        assert set(lease.autoencoders) == {"a/mlp_post_act", "a/resid_delta_mlp"}
        assert lease.autoencoders["a/resid_delta_mlp"].handle == handle
        assert all(cache.status(name).pins == 1 for name in ("a", "a/mlp_post_act", handle))
    assert all(status.pins == 0 for status in cache.statuses())
    with pytest.raises(RuntimeError, match="over"):
        _ = lease.model
    assert not lease.autoencoders


@pytest.mark.parametrize(("name", "kind"), [("a", "model"), ("a/mlp_post_act", "autoencoder"), ("b", None)])
async def test_a_handle_of_what_is_leased_must_be_its_own(
    cache: ContextCache, registry: Registry, name: str, kind: str | None
) -> None:
    leasing = cache.lease(
        registry.model_entry("a"),
        [registry.autoencoder_entry("a/mlp_post_act", "a")],
        handles=[registry.model("a").handle, f"{name}@000000000000:float32:cpu"],
    )
    if kind is None:  # of nothing that is leased
        async with leasing as lease:
            assert lease.model.name == "a"
    else:
        with pytest.raises(NotFound, match=f"unknown {kind} '{name}@0"):
            async with leasing:
                pass
    assert all(status.pins == 0 for status in cache.statuses())


async def test_a_failing_autoencoder_lets_go_of_the_model(cache: ContextCache, loader: FakeLoader) -> None:
    loader.errors["a/mlp_post_act"] = DataLoss("broken")
    with pytest.raises(DataLoss, match="broken"):
        await use(cache, "a", "a/mlp_post_act")
    assert cache.status("a").pins == 0
    await cache.unload("a")


async def test_unknown_names_and_foreign_sets_are_refused_before_any_load(
    cache: ContextCache, loader: FakeLoader, registry: Registry
) -> None:
    other = registry.model("b").handle.replace("b@", "a@")
    for model in ("z", other):
        with pytest.raises(NotFound, match="unknown model"):
            await use(cache, model)
    with pytest.raises(NotFound, match="unknown autoencoder"):
        await use(cache, "a", "a/nothing")
    with pytest.raises(InvalidRequest, match="belongs to the model 'a', not to 'b'"):
        await use(cache, "b", "a/mlp_post_act")
    assert not loader.calls
    assert not cache.statuses()


async def test_progress_is_told_to_all_who_wait(cache: ContextCache, loader: FakeLoader, model_bytes: int) -> None:
    gate = loader.gate("a")
    seen: list[list[LoadProgress]] = [[], []]

    async def want(progress: list[LoadProgress]) -> None:
        async with leased(cache, "a", on_progress=progress.append):
            pass

    waiters = [asyncio.create_task(want(progress)) for progress in seen]
    await loader.has_begun("a")
    gate.set()
    await asyncio.gather(*waiters)
    for progress in seen:
        assert [one.bytes_done for one in progress] == [0, model_bytes // 2, model_bytes]
        assert {(one.context, one.bytes_total) for one in progress} == {(cache.status("a").handle, model_bytes)}


async def test_loading_for_an_operator_ends_with_available(cache: ContextCache, model_bytes: int) -> None:
    statuses = [status async for status in cache.load("a")]
    assert {status.state for status in statuses[:-1]} <= {LOADING}
    assert (statuses[-1].state, statuses[-1].bytes_loaded, statuses[-1].pins) == (AVAILABLE, model_bytes, 0)
    assert [status.state async for status in cache.load("a")] == [AVAILABLE]


async def test_loading_for_an_operator_raises_what_went_wrong(cache: ContextCache, loader: FakeLoader) -> None:
    loader.errors["a"] = DataLoss("broken")
    with pytest.raises(DataLoss, match="broken"):
        _ = [status async for status in cache.load("a")]
    with pytest.raises(NotFound) as caught:
        _ = [status async for status in cache.load("z")]
    assert caught.value.reason is Reason.CONTEXT_NOT_FOUND


async def test_an_operator_who_stops_listening_does_not_stop_the_load(cache: ContextCache, loader: FakeLoader) -> None:
    gate = loader.gate("a")
    async with aclosing(cache.load("a")) as statuses:
        assert (await anext(statuses)).state is LOADING
    assert cache.status("a").pins == 0
    gate.set()
    await use(cache, "a")
    assert loader.calls["a"] == 1


async def test_unloading_answers_once_it_is_gone(cache: ContextCache, loader: FakeLoader) -> None:
    await use(cache, "a")
    assert (await cache.unload("a")).state is NOT_LOADED
    assert not cache.statuses()
    assert cache.status("a").state is NOT_LOADED
    await use(cache, "a")
    assert loader.calls["a"] == 2


async def test_what_is_in_use_or_awaited_is_not_unloaded(cache: ContextCache, loader: FakeLoader) -> None:
    async with leased(cache, "a"):
        with pytest.raises(PreconditionFailed) as caught:
            await cache.unload("a")
        assert caught.value.reason is Reason.CONTEXT_IN_USE
    gate = loader.gate("b")
    waiter = asyncio.create_task(use(cache, "b"))
    await loader.has_begun("b")
    with pytest.raises(PreconditionFailed):
        await cache.unload("b")
    gate.set()
    await waiter


async def test_what_is_not_loaded_cannot_be_unloaded(cache: ContextCache, loader: FakeLoader) -> None:
    loader.errors["b"] = DataLoss("broken")
    with pytest.raises(DataLoss):
        await use(cache, "b")
    for name in ("a", "b", "z"):
        with pytest.raises(NotFound) as caught:
            await cache.unload(name)
        assert caught.value.reason is Reason.CONTEXT_NOT_FOUND


@pytest.fixture
async def held(cache: ContextCache) -> AsyncIterator[list[object]]:
    kept: list[object] = []
    async with leased(cache, "a") as lease:
        kept.append(lease.model.decoder)
    yield kept
    kept.clear()


async def test_memory_counts_and_unloading_lasts_until_the_last_reference_is_gone(
    cache: ContextCache, loader: FakeLoader, held: list[object]
) -> None:
    one, other = asyncio.create_task(cache.unload("a")), asyncio.create_task(cache.unload("a"))
    reload = asyncio.create_task(use(cache, "a"))
    await use(cache, "b")  # time for all of them to go as far as they can
    assert cache.status("a").state is UNLOADING
    assert cache.status("a").bytes_loaded
    assert not one.done()
    held.clear()
    assert [status.state for status in await asyncio.gather(one, other)] == [NOT_LOADED, NOT_LOADED]
    await reload
    assert loader.calls["a"] == 2


async def test_a_reference_that_is_kept_for_ever_is_reported(registry: Registry, loader: FakeLoader) -> None:
    cache = ContextCache(registry, loader=loader, release_seconds=0.5)
    async with leased(cache, "a") as lease:
        kept = lease.model
    with pytest.raises(Unavailable, match="something still holds on to 'a'"):
        await cache.unload("a")
    assert cache.status("a").state is UNLOADING
    del kept
    await cache.unload("a")
    await cache.close()


def budgeted(registry: Registry, loader: FakeLoader, models: float) -> ContextCache:
    budget = int(models * registry.model("a").parameter_bytes)
    return ContextCache(registry, loader=loader, clock=Clock(), budget_bytes=budget)


async def test_the_longest_unused_goes_first(registry: Registry, loader: FakeLoader) -> None:
    cache = budgeted(registry, loader, 2)
    await use(cache, "a")
    await use(cache, "b")
    await use(cache, "a")
    await use(cache, "c")
    assert loaded(cache) == ["a", "c"]
    await cache.close()


async def test_no_more_goes_than_must(registry: Registry, loader: FakeLoader) -> None:
    cache = budgeted(registry, loader, 2.5)
    for name in ("a", "b", "c"):
        await use(cache, name)
    assert loaded(cache) == ["b", "c"]
    await cache.close()


async def test_what_is_pinned_never_goes(registry: Registry, loader: FakeLoader, model_bytes: int) -> None:
    cache = budgeted(registry, loader, 2)
    async with AsyncExitStack() as pins:
        await pins.enter_async_context(leased(cache, "a"))
        await use(cache, "b")
        await use(cache, "c")
        assert loaded(cache) == ["a", "c"]
        await pins.enter_async_context(leased(cache, "c"))
        with pytest.raises(Exhausted, match="no room for 'b' on cpu") as caught:
            await use(cache, "b")
        assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
        assert caught.value.retry_after_seconds
        assert caught.value.metadata["used_bytes"] == str(2 * model_bytes)
        assert loaded(cache) == ["a", "c"]
    await use(cache, "b")
    await cache.close()


async def test_what_could_never_fit_evicts_nothing(registry: Registry, loader: FakeLoader) -> None:
    budget = registry.autoencoder_entry("a/mlp_post_act", "a").parameter_bytes
    cache = ContextCache(registry, loader=loader, budget_bytes=budget)
    with pytest.raises(Exhausted) as caught:
        await use(cache, "a")
    assert caught.value.retry_after_seconds is None
    assert not loader.calls
    await cache.close()


async def test_loads_under_way_count(registry: Registry, loader: FakeLoader) -> None:
    cache = budgeted(registry, loader, 1.5)
    gate = loader.gate("a")
    waiter = asyncio.create_task(use(cache, "a"))
    await loader.has_begun("a")
    with pytest.raises(Exhausted):
        await use(cache, "b")
    gate.set()
    await waiter
    await use(cache, "b")
    assert loaded(cache) == ["b"]
    await cache.close()


async def test_a_failed_load_frees_its_bytes(registry: Registry, loader: FakeLoader) -> None:
    cache = budgeted(registry, loader, 1)
    loader.errors["a"] = DataLoss("broken")
    with pytest.raises(DataLoss):
        await use(cache, "a")
    await use(cache, "b")
    await cache.close()


class MeasuredMemory:
    """Stands in for a GPU: says how much is in use, and notes when it is asked to reclaim."""

    def __init__(self, foreign_bytes: int) -> None:
        self.foreign_bytes = foreign_bytes
        self.reclaimed = 0

    @property
    def allocated(self) -> tuple[int, int]:
        return self.foreign_bytes, 2 * self.foreign_bytes

    def used_bytes(self, counted_bytes: int) -> int:
        return counted_bytes + self.foreign_bytes

    def reclaim(self) -> None:
        self.reclaimed += 1
        raise RuntimeError("device in trouble")


async def test_contexts_are_counted_by_their_states_and_loads_are_timed(
    cache: ContextCache, registry: Registry, loader: FakeLoader, model_bytes: int
) -> None:
    heard: list[LoadDone] = []
    cache.observe(heard.append)
    n_contexts = len(registry.registered())
    assert cache.readings().by_state == dict.fromkeys(ContextState, 0) | {NOT_LOADED: n_contexts}
    await use(cache, "b")
    loader.errors["a"] = OSError("no disk")
    with pytest.raises(DstError):
        await use(cache, "a")
    reading = cache.readings()
    assert reading.by_state == {
        NOT_LOADED: n_contexts - 2, LOADING: 0, AVAILABLE: 1, UNLOADING: 0, FAILED: 1
    }  # fmt: skip
    assert reading.bytes_of == {"b": model_bytes}
    assert [one.used_bytes for one in reading.memory] == [model_bytes]
    assert [(one.model, one.device) for one in heard] == [("b", "cpu")]


async def test_what_the_device_measures_counts_too(registry: Registry, loader: FakeLoader, model_bytes: int) -> None:
    memory = MeasuredMemory(foreign_bytes=model_bytes)
    cache = ContextCache(registry, loader=loader, memory=lambda _: memory, budget_bytes=2 * model_bytes)
    await use(cache, "a")
    await use(cache, "b")
    assert loaded(cache) == ["b"]
    assert memory.reclaimed == 1
    weights, allocated = cache.readings().memory
    assert (weights.used_bytes, weights.limit_bytes) == (model_bytes, 2 * model_bytes)
    assert (allocated.kind, allocated.used_bytes, allocated.limit_bytes) == ("allocator", model_bytes, 2 * model_bytes)
    memory.foreign_bytes += 1
    with pytest.raises(Exhausted):
        await use(cache, "c")
    await cache.close()


async def test_a_watcher_sees_what_is_there_and_then_every_state(cache: ContextCache) -> None:
    await use(cache, "b")
    async with aclosing(cache.watch()) as statuses:
        assert (await anext(statuses)).state is AVAILABLE
        seen = []

        async def watch() -> None:
            async for status in statuses:
                seen.append((status.handle.partition("@")[0], status.state))
                if status.state is NOT_LOADED:
                    return

        watcher = asyncio.create_task(watch())
        await use(cache, "a")
        await cache.unload("a")
        await watcher
    assert seen == [("a", LOADING), ("a", AVAILABLE), ("a", UNLOADING), ("a", NOT_LOADED)]


async def test_a_slow_watcher_gets_the_newest_state_of_each(cache: ContextCache) -> None:
    async with aclosing(cache.watch()) as statuses:
        await use(cache, "b")
        first = await anext(statuses)
        for _ in range(5):
            await use(cache, "a")
            await cache.unload("a")
        await use(cache, "a")
        second = await anext(statuses)
    assert [first.state, second.state] == [AVAILABLE, AVAILABLE]
    assert [one.handle[0] for one in (first, second)] == ["b", "a"]


async def test_a_failed_load_is_seen_with_its_error(cache: ContextCache, loader: FakeLoader) -> None:
    loader.errors["a"] = DataLoss("broken")
    with pytest.raises(DataLoss):
        await use(cache, "a")
    async with aclosing(cache.watch()) as statuses:
        status = await anext(statuses)
    assert (status.state, status.error) == (FAILED, loader.errors["a"])


async def test_closing_a_watch_unsubscribes(cache: ContextCache) -> None:
    await use(cache, "a")
    async with aclosing(cache.watch()) as statuses:
        await anext(statuses)
        assert len(cache._watches) == 1
    assert not len(cache._watches)


async def test_closing_stops_loads_ends_watches_and_frees_everything(cache: ContextCache, loader: FakeLoader) -> None:
    await use(cache, "b")
    seen: list[ContextStatus] = []

    async def watch() -> None:
        seen.extend([status async for status in cache.watch()])

    gate = loader.gate("a")
    watcher, waiter = asyncio.create_task(watch()), asyncio.create_task(use(cache, "a"))
    await loader.has_begun("a")
    closing = asyncio.create_task(cache.close())
    await asyncio.sleep(0)  # lets close begin; the load then ends at its next progress
    gate.set()
    await asyncio.gather(closing, watcher)
    with pytest.raises(Unavailable) as caught:
        await waiter
    assert caught.value.reason is Reason.DRAINING
    assert not loaded(cache)
    with pytest.raises(Unavailable):
        await use(cache, "b")
    assert {status.handle[0] for status in seen} == {"a", "b"}


async def test_the_catalogue_is_brought_up_to_date(cache: ContextCache, registry: Registry) -> None:
    name = "a/mlp_post_act"
    assert cache.describe(registry.model("a")).state is NOT_LOADED
    await use(cache, "a", name)
    assert cache.describe(registry.model("a")).state is AVAILABLE
    described = cache.describe(registry.autoencoder_entry(name, "a").info())
    assert (described.state, described.handle) == (AVAILABLE, registry.autoencoder_entry(name, "a").handle)
    assert cache.describe(registry.model("b")).state is NOT_LOADED


async def test_idle_time_is_counted_from_the_last_use(registry: Registry, loader: FakeLoader) -> None:
    clock = Clock()
    cache = ContextCache(registry, loader=loader, clock=clock)
    await use(cache, "a")
    clock.now += 60
    assert cache.status("a").idle_duration == pytest.approx(60, abs=0.1)
    await use(cache, "a")
    assert cache.status("a").idle_duration == pytest.approx(0, abs=0.1)
    await cache.close()


async def test_closing_waits_for_nobody_who_keeps_a_context_beyond_its_lease(
    registry: Registry, loader: FakeLoader
) -> None:
    cache = ContextCache(registry, loader=loader)
    async with leased(cache, "a") as lease:
        kept = lease.model
    await cache.close()
    assert kept.decoder.config.n_layers == 2
