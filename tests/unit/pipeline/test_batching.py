"""Plans that wait together run together; one that fails fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch

from dst_grpc.domain.callers import LOCAL, Caller
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import CopyFromRun, Intervention
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.propagation import Propagation
from dst_grpc.errors import Exhausted, Reason, Unavailable
from dst_grpc.pipeline.arrangement import MAX_BATCH_TOKENS
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.door import Ticket
from dst_grpc.pipeline.limits import DeviceLimits
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.rates import Work
from dst_grpc.pipeline.run import RunResult
from dst_grpc.pipeline.scheduler import Scheduler
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES, RecordingStore
from dst_grpc.pipeline.worker import Worker
from dst_grpc.scalars.origins import LossOrigin
from tests import models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.scalars.explained_model import AutoencoderSet

T = TypeVar("T")


def plan_of(registry: Registry, tokens: Sequence[int], target: int = 1) -> Plan:
    request = DeriveRequest(
        prompt=Prompt(token_ids=tuple(tokens)),
        loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(target,)),
        derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.MLP_ACT_TIMES_GRAD),),
    )
    return make_plan(request, registry, store_bytes=DEFAULT_STORE_BYTES)


@pytest.fixture(scope="module")
def subject() -> models.World:
    return models.world()


@pytest.fixture
def decoder(subject: models.World) -> Decoder:
    return subject.decoder


@pytest.fixture
def registry(subject: models.World) -> Registry:
    return subject.registry


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("cpu")
    yield worker
    await worker.close()


def a_batcher(worker: Worker, store: RecordingStore, max_batch_tokens: int = MAX_BATCH_TOKENS) -> Batcher:
    limits = DeviceLimits(max_batch_tokens=max_batch_tokens)
    return Batcher(worker, store, Scheduler(limits, time.monotonic))


async def ask(
    batcher: Batcher,
    plan: Plan,
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
    then: Callable[[RunResult], T],
) -> T:
    """Run *plan* as a request of its own."""
    return await batcher.run(Ticket(LOCAL), plan, decoder, sets, then)


def as_it_is(result: RunResult) -> RunResult:
    return result


async def together(batcher: Batcher, decoder: Decoder, plans: Sequence[Plan]) -> list[RunResult | BaseException]:
    """Run *plans*, all of which wait before the first batch forms."""
    running = [asyncio.create_task(ask(batcher, plan, decoder, {}, as_it_is)) for plan in plans]
    return await asyncio.gather(*running, return_exceptions=True)


def batch_sizes(results: Sequence[RunResult | BaseException]) -> list[int]:
    return [result.batch_size for result in results if not isinstance(result, BaseException)]


async def test_plans_that_wait_together_run_together(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """Prompts of different lengths are one batch."""
    plans = [plan_of(registry, [1, 2, 3, 4][:length]) for length in (4, 3, 4, 4)]
    assert batch_sizes(await together(a_batcher(worker, RecordingStore(0)), decoder, plans)) == [4, 4, 4, 4]


async def test_a_batch_keeps_to_its_tokens(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """Pads count: three prompts as long as the longest would be more than the budget."""
    plans = [plan_of(registry, [1, 2, 3, 4][:length]) for length in (4, 4, 2)]
    assert batch_sizes(await together(a_batcher(worker, RecordingStore(0), 8), decoder, plans)) == [2, 2, 1]


async def test_a_recorded_run_costs_no_pass(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """The second question about a run is answered from the store."""
    batcher = a_batcher(worker, RecordingStore())
    first = await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
    second = await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
    assert (first.statistics.forward_passes, first.statistics.backward_passes) == (1, 1)
    assert (second.statistics.forward_passes, second.statistics.backward_passes) == (0, 0)


async def test_a_poisoned_plan_fails_alone(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """Its batch mates are run again without it."""
    good, poisoned = plan_of(registry, [1, 2]), plan_of(registry, [1, 3])
    object.__setattr__(poisoned.run, "token_ids", (1, 10**6))  # no embedding has that row
    results = await together(a_batcher(worker, RecordingStore(0)), decoder, (good, poisoned, good))
    assert isinstance(results[1], IndexError)
    assert batch_sizes(results) == [1, 1]


@pytest.mark.parametrize("where", ["find", "widened", "keep"])
async def test_whatever_fails_everyone_is_told(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A panic of a library, which is no Exception, included."""

    class Panic(BaseException):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Panic("in another language")

    store = RecordingStore()
    monkeypatch.setattr(store, where, fail)
    plans = [plan_of(registry, [1, 2]), plan_of(registry, [1, 2, 3])]
    for error in await together(a_batcher(worker, store), decoder, plans):
        assert isinstance(error, RuntimeError)
        assert str(error) == "Panic: in another language"


async def test_nothing_of_a_batch_that_failed_is_there_while_its_plans_run_alone(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, seen = decoder._block, list[weakref.ref[torch.Tensor]]()

    def once(index: int, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if not seen:
            large = torch.zeros(1)
            seen.append(weakref.ref(large))
            raise ValueError("only this time")
        assert seen[0]() is None
        return block(index, x, *arguments)

    monkeypatch.setattr(decoder, "_block", once)
    plans = [plan_of(registry, [1, 2]), plan_of(registry, [1, 2, 3])]
    assert batch_sizes(await together(a_batcher(worker, RecordingStore(0)), decoder, plans)) == [1, 1]


async def test_recordings_give_way_to_a_run_that_has_no_memory(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If memory is still not enough, it is refused, and nothing of it is kept alive by its error."""
    store = RecordingStore()
    batcher = a_batcher(worker, store)
    await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
    block, seen = decoder._block, list[weakref.ref[torch.Tensor]]()

    def scarce(index: int, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if store.byte_count or len(x) * x.shape[1] > 3:
            large = torch.zeros(1)
            seen.append(weakref.ref(large))
            raise MemoryError
        return block(index, x, *arguments)

    monkeypatch.setattr(decoder, "_block", scarce)
    assert store.byte_count
    result = await ask(batcher, plan_of(registry, [1, 2, 3]), decoder, {}, as_it_is)
    assert result.recording.taps.values
    assert len(seen) == 1
    with pytest.raises(Exhausted) as caught:
        await ask(batcher, plan_of(registry, [1, 2, 3, 4]), decoder, {}, as_it_is)
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert not store.byte_count
    assert {ref() for ref in seen} == {None}


async def test_recordings_give_way_to_a_step_that_had_no_memory(
    worker: Worker, decoder: Decoder, registry: Registry
) -> None:
    store = RecordingStore()
    batcher = a_batcher(worker, store)
    await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
    seen = list[weakref.ref[torch.Tensor]]()

    def fail() -> None:
        large = torch.zeros(1)
        seen.append(weakref.ref(large))
        raise ValueError(large) if store.byte_count == 0 else MemoryError

    for error in (Exhausted, ValueError):
        assert bool(store.byte_count) == (error is Exhausted)
        with pytest.raises(error):
            await batcher.step(Ticket(LOCAL), "a", Work.DERIVE_STEP, fail, 1)


async def test_a_cancelled_plan_is_left_out(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """A caller who goes away before the batch forms costs nothing, and the others go on."""
    batcher = a_batcher(worker, RecordingStore(0))
    running = [asyncio.create_task(ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)) for _ in range(2)]
    running[0].cancel()
    result = await running[1]
    assert result.batch_size == 1
    with pytest.raises(asyncio.CancelledError):
        await running[0]


class Cancelling:
    """Cancels tasks from within a chosen layer, and returns to that layer once they know; counts the layers run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decoder: Decoder, *, layer: int) -> None:
        self.layers: list[int] = []
        self.tasks: list[asyncio.Task[RunResult]] = []
        self._loop = asyncio.get_running_loop()
        block = decoder._block

        def counted(index: int, *arguments: Any) -> torch.Tensor:
            self.layers.append(index)
            if index == layer:
                asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
            return block(index, *arguments)

        monkeypatch.setattr(decoder, "_block", counted)

    async def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


async def test_a_batch_stops_where_it_is_once_nobody_waits_for_it(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything of it run again, or kept; the device is free at once."""
    store = RecordingStore()
    batcher = a_batcher(worker, store)
    cancelling = Cancelling(monkeypatch, decoder, layer=1)
    plans = [plan_of(registry, [1, 2]), plan_of(registry, [1, 2, 3])]
    cancelling.tasks = [asyncio.create_task(ask(batcher, plan, decoder, {}, as_it_is)) for plan in plans]
    for error in await asyncio.gather(*cancelling.tasks, return_exceptions=True):
        assert isinstance(error, asyncio.CancelledError)
    await worker.submit(list)
    assert cancelling.layers == [0, 1]
    assert store.byte_count == 0


async def test_a_batch_goes_on_for_whoever_still_waits(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those who do not, nothing is made."""
    batcher = a_batcher(worker, RecordingStore(0))
    cancelling = Cancelling(monkeypatch, decoder, layer=1)
    made: list[int] = []

    def note(result: RunResult) -> RunResult:
        made.append(len(result.plan.token_ids))
        return result

    gone, other = (
        asyncio.create_task(ask(batcher, plan_of(registry, tokens), decoder, {}, note))
        for tokens in ([1, 2], [1, 2, 3])
    )
    cancelling.tasks = [gone]
    assert (await other).batch_size == 2
    assert gone.cancelled()
    assert made == [3]
    assert cancelling.layers == [0, 1, 2]


async def test_a_poisoned_batch_is_not_run_again_for_those_who_are_gone(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = a_batcher(worker, RecordingStore(0))
    cancelling = Cancelling(monkeypatch, decoder, layer=0)
    poisoned = plan_of(registry, [1, 2, 3])
    target = replace(poisoned.run.passes[0].origin.config, target_token_ids=(10**6,))  # type: ignore[attr-defined]
    poisoned = replace(poisoned, run=replace(poisoned.run, origins=(LossOrigin(target),)))
    running = [
        asyncio.create_task(ask(batcher, plan, decoder, {}, as_it_is)) for plan in (plan_of(registry, [1, 2]), poisoned)
    ]
    cancelling.tasks = running[:1]
    results = await asyncio.gather(*running, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], IndexError)
    assert cancelling.layers == [0, 1, 2] * 2


async def test_queued_work_of_those_who_are_gone_never_starts(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is formed already, but waits for the device's thread."""
    batcher = a_batcher(worker, RecordingStore(0))
    cancelling = Cancelling(monkeypatch, decoder, layer=0)
    is_free = threading.Event()
    before = worker.submit(is_free.wait)
    caller = asyncio.create_task(ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(batcher.scheduler.counts.values())
    caller.cancel()
    is_free.set()
    assert await before
    with pytest.raises(asyncio.CancelledError):
        await caller
    await worker.submit(list)
    assert not cancelling.layers


async def test_a_closed_worker_refuses(decoder: Decoder, registry: Registry) -> None:
    """Once the worker is closed, whoever waits is told that the server is stopping."""
    worker = Worker("cpu")
    batcher = a_batcher(worker, RecordingStore(0))
    await worker.close()
    with pytest.raises(Unavailable):
        await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)


async def test_once_nothing_has_run_for_a_while_it_rests(
    worker: Worker, decoder: Decoder, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, on the worker's thread, and again only after something has run."""
    monkeypatch.setattr("dst_grpc.pipeline.batching._REST_SECONDS", 0.0)
    rested: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def rest() -> None:
        loop.call_soon_threadsafe(rested.put_nowait, threading.current_thread().name)

    scheduler = Scheduler(DeviceLimits(), time.monotonic)
    batcher = Batcher(worker, RecordingStore(0), scheduler, at_rest=rest)
    for _ in range(2):
        await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
        assert (await rested.get()).startswith("dst-cpu")
        await worker.submit(list)
        assert rested.empty()
    await ask(batcher, plan_of(registry, [1, 2]), decoder, {}, as_it_is)
    await batcher.close()


async def test_what_becomes_of_an_outcome_is_made_on_the_workers_thread(
    worker: Worker, decoder: Decoder, registry: Registry
) -> None:
    """The caller's own step runs there too, and its failure is the caller's alone."""
    threads: list[str] = []

    def note(result: RunResult) -> int:
        threads.append(threading.current_thread().name)
        return result.batch_size

    def fail(_: RunResult) -> int:
        raise ValueError("mine")

    batcher = a_batcher(worker, RecordingStore(0))
    plan = plan_of(registry, [1, 2])
    results = await asyncio.gather(
        ask(batcher, plan, decoder, {}, note), ask(batcher, plan, decoder, {}, fail), return_exceptions=True
    )
    assert results[0] == 2
    assert isinstance(results[1], ValueError)
    assert threads[0].startswith("dst-cpu")


async def test_runs_of_different_propagation_do_not_run_together(
    worker: Worker, decoder: Decoder, registry: Registry
) -> None:
    """How gradients pass is a property of the whole batch."""

    class Other(Propagation):
        """The same gradients, by another name."""

    plain = plan_of(registry, [1, 2])
    other = replace(plain, run=replace(plain.run, propagation=Other()))
    results = await together(a_batcher(worker, RecordingStore(0)), decoder, (plain, other, plain, other, other))
    assert batch_sizes(results) == [2, 3, 2, 3, 3]


async def test_sets_of_the_same_name_are_not_mixed(worker: Worker, decoder: Decoder, registry: Registry) -> None:
    """A reload of the registry may give a name to another set while requests wait; each keeps the one it leased."""
    before, after, beside = (models.autoencoders(DerivedScalarType.MLP_POST_ACT, seed) for seed in (1, 2, 3))
    plan = plan_of(registry, [1, 2])
    batcher = a_batcher(worker, RecordingStore(0))
    given = ({"s": before}, {"s": after}, {"s": before, "t": beside}, {"t": beside})
    results = await asyncio.gather(*(ask(batcher, plan, decoder, sets, as_it_is) for sets in given))
    assert [result.batch_size for result in results] == [3, 1, 3, 3]
    for result, sets in zip(results, given, strict=True):
        assert {name: result.sets[name] for name in sets} == sets


async def test_a_patched_run_reads_what_is_kept_of_the_runs_before(
    worker: Worker, decoder: Decoder, registry: Registry
) -> None:
    """It runs alone, from the layer that it changes on; but another caller's recordings are not read."""
    patch = Intervention(
        at=TapSelection(activation_location_type=L.RESID_DELTA_MLP, layer_index=2, axes=(2,)),
        action=CopyFromRun(run="clean"),
    )
    clean = SourceRun(name="clean", prompt=Prompt(token_ids=(1, 2, 3)))
    request = DeriveRequest(
        prompt=Prompt(token_ids=(4, 2, 3)),
        loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(1,)),
        interventions=(patch,),
        source_runs=(clean,),
    )
    patched = make_plan(request, registry)
    batcher = a_batcher(worker, RecordingStore())
    await together(batcher, decoder, [plan_of(registry, tokens) for tokens in ([1, 2, 3], [4, 2, 3])])
    other = await batcher.run(Ticket(Caller(name="other")), patched, decoder, {}, as_it_is)
    (own,) = await together(batcher, decoder, [patched])
    assert isinstance(own, RunResult)
    assert (own.batch_size, other.batch_size) == (1, 2)
    assert own.loss == pytest.approx(other.loss, rel=1e-6)
    assert (L.RESID_POST_MLP, 1) not in own.recording.taps.values
