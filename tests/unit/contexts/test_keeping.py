"""How long contexts stay: pins, time to live, what a new registry drops, and what is known before any work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.domain.resolution import ContextState, ContextStatus
from dst_grpc.errors import DataLoss, Exhausted, NotFound, PreconditionFailed, Reason, Unavailable
from tests import checkpoints

from .conftest import Clock, FakeLoader, leased

AVAILABLE, NOT_LOADED = ContextState.AVAILABLE, ContextState.NOT_LOADED
SET = "a/mlp_post_act"


async def use(cache: ContextCache, model: str, *sets: str) -> None:
    async with leased(cache, model, sets):
        pass


async def pin(cache: ContextCache, ref: str) -> ContextStatus:
    return [status async for status in cache.load(ref, pin=True)][-1]


def loaded(cache: ContextCache) -> list[str]:
    return [status.handle.partition("@")[0] for status in cache.statuses() if status.state is AVAILABLE]


def budgeted(registry: Registry, loader: FakeLoader, models: float) -> ContextCache:
    budget = int(models * registry.model("a").parameter_bytes)
    return ContextCache(registry, loader=loader, clock=Clock(), budget_bytes=budget)


async def test_what_is_pinned_outlives_what_is_used_more(registry: Registry, loader: FakeLoader) -> None:
    cache = budgeted(registry, loader, 2)
    status = await pin(cache, "a")
    assert (status.state, status.pinned, status.pins) == (AVAILABLE, True, 0)
    for name in ("b", "c", "b"):
        await use(cache, name)
    assert loaded(cache) == ["a", "b"]
    assert not cache.unpin("a").pinned
    await use(cache, "c")
    assert loaded(cache) == ["b", "c"]
    await cache.close()


async def test_what_is_pinned_is_not_unloaded_until_it_is_unpinned(cache: ContextCache) -> None:
    await pin(cache, "a")
    with pytest.raises(PreconditionFailed, match="unpin it first") as caught:
        await cache.unload("a")
    assert caught.value.reason is Reason.CONTEXT_PINNED
    cache.unpin("a")
    cache.unpin("a")
    assert (await cache.unload("a")).state is NOT_LOADED
    assert not cache.status("a").pinned


async def test_a_pin_is_for_what_is_loaded(cache: ContextCache, loader: FakeLoader) -> None:
    with pytest.raises(NotFound) as caught:
        cache.unpin("a")
    assert caught.value.reason is Reason.CONTEXT_NOT_FOUND
    loader.errors["a"] = DataLoss("broken")
    with pytest.raises(DataLoss):
        await pin(cache, "a")
    del loader.errors["a"]
    await use(cache, "a")
    assert not cache.status("a").pinned


async def test_loading_again_without_a_pin_leaves_the_pin(cache: ContextCache) -> None:
    await pin(cache, "a")
    assert [status.pinned async for status in cache.load("a")] == [True]


async def test_watchers_are_told_of_pins(cache: ContextCache) -> None:
    await use(cache, "a")
    async with aclosing(cache.watch()) as statuses:
        assert not (await anext(statuses)).pinned
        await pin(cache, "a")
        assert (await anext(statuses)).pinned
        cache.unpin("a")
        assert not (await anext(statuses)).pinned


class Night:
    """A sleep that ends when the test says that so much time has passed."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asleep = asyncio.Event()
        self.seconds = 0.0
        self._awake = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds = seconds
        self._awake.clear()
        self.asleep.set()
        await self._awake.wait()

    async def passes(self, seconds: float) -> None:
        """Let time go by, then wake who sleeps, and wait until it sleeps again or has nothing left to do."""
        await self.asleep.wait()
        self.asleep.clear()
        self.clock.now += seconds
        self._awake.set()


@pytest.fixture
def night() -> Night:
    return Night(Clock())


@pytest.fixture
async def mortal(registry: Registry, loader: FakeLoader, night: Night) -> AsyncIterator[ContextCache]:
    """A cache whose contexts live for 60 seconds."""
    cache = ContextCache(registry, loader=loader, clock=night.clock, sleep=night, ttl_seconds=60)
    yield cache
    await cache.close()


async def ended(cache: ContextCache, name: str) -> None:
    """Wait until *name* is unloaded."""
    async with aclosing(cache.watch()) as statuses:
        async for status in statuses:
            if status.handle.startswith(f"{name}@") and status.state is NOT_LOADED:
                return


async def test_what_is_idle_for_too_long_goes(mortal: ContextCache, night: Night) -> None:
    await use(mortal, "a")
    await night.asleep.wait()
    assert night.seconds == pytest.approx(60, abs=0.1)
    gone = asyncio.create_task(ended(mortal, "a"))
    await asyncio.sleep(0)  # lets it subscribe
    await night.passes(61)
    await gone
    assert not mortal.statuses()


async def test_each_goes_in_its_own_time(mortal: ContextCache, night: Night) -> None:
    await use(mortal, "a")
    await night.asleep.wait()
    night.clock.now += 40
    await use(mortal, "b")
    gone = asyncio.create_task(ended(mortal, "a"))
    await asyncio.sleep(0)
    await night.passes(21)
    await gone
    await night.asleep.wait()
    assert loaded(mortal) == ["b"]
    assert night.seconds == pytest.approx(39, abs=0.1)


async def test_use_renews_the_time(mortal: ContextCache, night: Night) -> None:
    await use(mortal, "a")
    await night.asleep.wait()
    night.clock.now += 50
    await use(mortal, "a")
    await night.passes(11)
    await night.asleep.wait()
    assert loaded(mortal) == ["a"]
    assert night.seconds == pytest.approx(49, abs=0.1)


async def test_what_is_in_use_or_pinned_does_not_go_and_nothing_wakes_for_it(
    mortal: ContextCache, night: Night
) -> None:
    await pin(mortal, "b")
    async with leased(mortal, "a"):
        night.clock.now += 1000
        assert not night.asleep.is_set()
    await night.asleep.wait()
    assert loaded(mortal) == ["a", "b"]
    night.clock.now += 30
    mortal.unpin("b")  # idle for far too long already
    gone = asyncio.create_task(ended(mortal, "b"))
    await asyncio.sleep(0)
    await night.passes(0)
    await gone
    assert loaded(mortal) == ["a"]


async def test_a_load_that_nobody_waits_for_any_more_ends_too(
    mortal: ContextCache, night: Night, loader: FakeLoader
) -> None:
    gate = loader.gate("a")
    leaver = asyncio.create_task(use(mortal, "a"))
    await loader.has_begun("a")
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    gate.set()
    await night.asleep.wait()
    assert night.seconds == pytest.approx(60, abs=0.1)


async def test_without_a_time_to_live_nothing_goes(registry: Registry, loader: FakeLoader, night: Night) -> None:
    cache = ContextCache(registry, loader=loader, clock=night.clock, sleep=night)
    await use(cache, "a")
    await asyncio.sleep(0)
    assert not night.asleep.is_set()
    await cache.close()


async def test_what_cannot_be_there_together_is_refused_before_any_of_it_is_loaded(
    registry: Registry, loader: FakeLoader, model_bytes: int
) -> None:
    set_bytes = registry.autoencoder_entry(SET, "a").parameter_bytes
    budget = model_bytes + set_bytes - 1
    cache = ContextCache(registry, loader=loader, budget_bytes=budget)
    for attempt in (use(cache, "a", SET), pin(cache, SET)):
        with pytest.raises(Exhausted) as caught:
            await attempt
        assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
        assert caught.value.retry_after_seconds is None
        assert caught.value.metadata == {
            "needed_bytes": str(model_bytes + set_bytes),
            "used_bytes": "0",
            "budget_bytes": str(budget),
        }
    assert not loader.calls
    assert not cache.statuses()
    await cache.close()


async def test_what_is_there_already_is_not_wanted_twice(
    registry: Registry, loader: FakeLoader, model_bytes: int
) -> None:
    set_bytes = registry.autoencoder_entry(SET, "a").parameter_bytes
    cache = ContextCache(registry, loader=loader, budget_bytes=model_bytes + set_bytes, clock=Clock())
    await use(cache, "b")
    await use(cache, "a", SET, registry.autoencoder_entry(SET, "a").handle)  # b goes; the set is one, by whatever name
    async with leased(cache, "a", [SET]), leased(cache, "a", [SET]):
        assert set(loaded(cache)) == {"a", SET}
        with pytest.raises(Exhausted) as caught:
            await use(cache, "a", "a/resid_delta_mlp")
        assert int(caught.value.metadata["used_bytes"]) == set_bytes
    assert loader.calls == {"a": 1, "b": 1, SET: 1}
    await cache.close()


async def test_what_never_comes_free_does_not_keep_others_from_going(
    registry: Registry, loader: FakeLoader, model_bytes: int
) -> None:
    cache = ContextCache(registry, loader=loader, budget_bytes=2 * model_bytes, clock=Clock(), release_seconds=0.5)
    async with leased(cache, "a") as lease:
        kept = lease.model
    await use(cache, "b")
    await use(cache, "c")  # a is asked to go, and does not; so b does
    assert loaded(cache) == ["c"]
    assert cache.status("a").state is ContextState.UNLOADING
    async with leased(cache, "c"):
        with pytest.raises(Unavailable, match="something still holds on to 'a'"):
            await use(cache, "b")
    assert kept.name == "a"
    del kept
    await cache.close()


@pytest.fixture
def another(folders: dict[str, Path], registry: Registry, tmp_path: Path) -> Registry:
    """A registry in which "a" is as before, "b" has other files, and "c" is no more."""
    other = checkpoints.write_model(tmp_path / "b", tensors=checkpoints.weights(seed=9))
    models = {"a": folders["a"], "b": other}
    return Registry.build(models=models, device="cpu", include_embedded=False, previous=registry)


async def test_a_new_registry_leaves_what_did_not_change_and_drops_the_rest(
    cache: ContextCache, loader: FakeLoader, another: Registry
) -> None:
    for name in ("a", "b"):
        await use(cache, name)
    await pin(cache, "c")
    old = cache.status("b").handle
    async with AsyncExitStack() as leases:
        lease = await leases.enter_async_context(leased(cache, "b"))
        change = cache.adopt(another)
        assert (change.removed, change.changed) == (("c",), ("b",))
        assert lease.model.handle == old  # what is in use stays until it is let go
        assert old in [status.handle for status in cache.statuses()]
        async with leased(cache, "b") as new:
            assert new.model.handle == cache.status("b").handle != old
        del new, lease
    async with aclosing(cache.watch()) as statuses:
        while len(cache.statuses()) > 2:
            await anext(statuses)
    assert loaded(cache) == ["a", "b"]
    assert loader.calls == {"a": 1, "b": 2, "c": 1}


async def test_what_a_request_began_with_may_still_be_loaded_for_it(cache: ContextCache, another: Registry) -> None:
    before = cache.registry
    cache.adopt(another)
    async with cache.lease(before.model_entry("c")) as lease:
        assert lease.model.name == "c"
        with pytest.raises(NotFound):
            await use(cache, "c")
    gone = [status.state for status in cache.statuses() if status.handle.startswith("c@")]
    assert gone in ([], [ContextState.UNLOADING])
