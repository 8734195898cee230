"""Where plans are made: on the event loop if they read nothing, else on a thread, a few at a time."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dst_grpc.client import make_patch_request
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.interventions import Intervention, ScaleValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Cancelled, InvalidRequest
from dst_grpc.pipeline import planning
from dst_grpc.pipeline.patch_planner import PatchPlan
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.service import Pipeline
from dst_grpc.wire.codec import read, to_wire
from tests import checkpoints

FILE = "0.safetensors"


class SlowDisk(Registry):
    """Notes which thread reads files, and waits for a gate before it reads those that clients name."""

    def watched(self) -> None:
        """Begin to watch."""
        self.gate = threading.Event()
        self.readers: list[str] = []
        self.now = self.most = 0
        self.began = asyncio.Semaphore(0)
        self.loop = asyncio.get_running_loop()

    def autoencoder_by_config(self, config: AutoencoderConfig, model: str) -> AutoencoderEntry:
        self.readers.append(threading.current_thread().name)
        self.now += 1
        self.most = max(self.most, self.now)
        self.loop.call_soon_threadsafe(self.began.release)
        assert self.gate.wait(30)
        self.now -= 1
        return super().autoencoder_by_config(config, model)


@pytest.fixture
async def disk(tmp_path: Path) -> SlowDisk:
    folder = checkpoints.write_model(tmp_path / "tiny")
    checkpoints.write_autoencoder(tmp_path / "files" / FILE, checkpoints.state_dict(checkpoints.NEURONS))
    disk = SlowDisk.build(
        models={"tiny": folder}, autoencoder_roots=[tmp_path / "files"], device="cpu", include_embedded=False
    )
    assert isinstance(disk, SlowDisk)
    disk.watched()
    return disk


@pytest.fixture
async def pipeline(disk: SlowDisk) -> AsyncIterator[Pipeline]:
    cache = ContextCache(disk, loader=FileLoader(allow_failed_checks=True))
    pipeline = Pipeline(cache)
    yield pipeline
    disk.gate.set()
    await pipeline.close()
    await cache.close()


def plain() -> DeriveRequest:
    return DeriveRequest(prompt=Prompt(text="Mary gave"), derived_scalars=(DerivedScalarSpec(dst=T.MLP_POST_ACT),))


def by_path(shared: bool = True) -> DeriveRequest:
    config = DstConfig(
        autoencoder_config=AutoencoderConfig(dst=T.MLP_POST_ACT, autoencoder_path_by_layer_index=((0, FILE),))
    )
    spec = DerivedScalarSpec(dst=T.MLP_AUTOENCODER_LATENT, config=None if shared else config)
    return DeriveRequest(
        prompt=Prompt(text="Mary gave"), derived_scalars=(spec,), config=config if shared else DstConfig()
    )


async def everything(steps: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(steps):
        return [part async for ready in steps for part in ready]


@pytest.mark.parametrize("shared", [True, False])
async def test_others_are_served_while_somebody_s_files_are_read(
    pipeline: Pipeline, disk: SlowDisk, shared: bool
) -> None:
    waiting = asyncio.create_task(everything(pipeline.derive(by_path(shared=shared))))
    await disk.began.acquire()
    assert len(await everything(pipeline.derive(plain()))) == 4
    assert not waiting.done()
    disk.gate.set()
    assert len(await waiting) == 3
    assert all(name.startswith("dst-plan") for name in disk.readers)


async def test_files_are_read_a_few_at_a_time_however_many_are_named(pipeline: Pipeline, disk: SlowDisk) -> None:
    waiting = [asyncio.create_task(everything(pipeline.derive(by_path()))) for _ in range(12)]
    for _ in range(4):
        await disk.began.acquire()
    assert disk.now == 4
    disk.gate.set()
    await asyncio.gather(*waiting)
    assert disk.most <= 4
    assert len(disk.readers) == 12  # once for each request, and each time anew: the file may be another by then


async def test_a_plain_request_is_planned_on_the_loop_once_its_tokenizer_was_read(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    planners: list[str] = []

    def noted(*arguments: Any, **options: Any) -> Plan:
        planners.append(threading.current_thread().name)
        return make_plan(*arguments, **options)

    monkeypatch.setattr(planning, "make_plan", noted)
    here = threading.current_thread().name
    await everything(pipeline.derive(plain()))
    assert planners.pop().startswith("dst-plan")
    other = DeriveRequest(prompt=Prompt(text="the key"), derived_scalars=(DerivedScalarSpec(dst=T.MLP_POST_ACT),))
    await everything(pipeline.derive(other))
    assert planners == [here]
    await everything(pipeline.derive(other))
    assert planners == [here]  # the plan was kept


@pytest.mark.parametrize("text", ["the key " * 2000, "x" * 500_000])
async def test_a_long_text_is_planned_off_the_loop_and_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    await everything(pipeline.derive(plain()))  # reads the tokenizer
    planners: list[str] = []

    def noted(*arguments: Any, **options: Any) -> Plan:
        planners.append(threading.current_thread().name)
        return make_plan(*arguments, **options)

    monkeypatch.setattr(planning, "make_plan", noted)
    derived = (DerivedScalarSpec(dst=T.MLP_POST_ACT),)
    loss = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_tokens=(text,))
    for request in (
        DeriveRequest(prompt=Prompt(text=text), derived_scalars=derived),
        DeriveRequest(prompt=Prompt(text="Mary gave"), derived_scalars=derived, loss_fn_config=loss),
    ):
        with pytest.raises(InvalidRequest):
            await everything(pipeline.derive(request))
        assert planners.pop().startswith("dst-plan")


@pytest.mark.parametrize("kind", ["Derive", "Patch"])
async def test_planning_ends_when_its_caller_is_gone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    began, gate, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop, raised = asyncio.get_running_loop(), []

    def slow(*_arguments: Any, check: Callable[[], None], **_options: Any) -> Plan:
        loop.call_soon_threadsafe(began.set)
        assert gate.wait(30)
        try:
            check()
        except Cancelled as error:
            raised.append(error)
            raise
        finally:
            loop.call_soon_threadsafe(ended.set)
        raise AssertionError

    monkeypatch.setattr(planning, "make_plan" if kind == "Derive" else "plan_patch", slow)
    patching = make_patch_request([1], [2], target=[3], nodes="resid_pre")
    steps: AsyncGenerator[Any, None] = pipeline.derive(plain()) if kind == "Derive" else pipeline.patch(patching)
    waiting = asyncio.create_task(everything(steps))
    await began.wait()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    gate.set()
    await ended.wait()
    assert raised


async def test_what_a_request_costs_is_counted_off_the_loop(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else 1 kB, which asks for 100,000 cells, keeps the event loop for a second and a half."""
    threads: list[str] = []
    changes = PatchPlan.changes

    def noted(self: PatchPlan, n_tokens: int) -> Any:
        threads.append(threading.current_thread().name)
        return changes(self, n_tokens)

    monkeypatch.setattr(PatchPlan, "changes", noted)
    await everything(pipeline.patch(make_patch_request([1], [2], target=[3], nodes="resid_pre")))
    assert threads[0].startswith("dst-plan")
    assert threading.current_thread().name not in threads


def aiming_at(first: int, n_targets: int) -> DeriveRequest:
    loss = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(first, *[1] * n_targets))
    return DeriveRequest(prompt=Prompt(text="Mary gave"), loss_fn_config=loss)


async def test_plans_are_kept_up_to_a_number_of_bytes(disk: SlowDisk) -> None:
    each = planning.bytes_of(make_plan(aiming_at(0, 900), disk))
    plans = planning.Planning(most_bytes=4 * each)
    made = [await plans.plan(aiming_at(i, 900), disk) for i in range(6)]
    assert 3 * each < plans.kept_bytes <= 4 * each
    assert await plans.plan(aiming_at(5, 900), disk) is made[5]
    assert await plans.plan(aiming_at(0, 900), disk) is not made[0]  # the oldest


async def test_the_plan_of_a_very_long_request_is_not_kept(disk: SlowDisk) -> None:
    plans = planning.Planning()
    first = await plans.plan(aiming_at(0, 9000), disk)
    assert await plans.plan(aiming_at(0, 9000), disk) is not first
    assert plans.kept_bytes == 0


LOADS = {
    "small": aiming_at(0, 0),
    "targets": aiming_at(0, 5000),
    "scalars": replace(aiming_at(0, 0), derived_scalars=(DerivedScalarSpec(dst=T.MLP_POST_ACT),) * 500),
    "changes": replace(
        aiming_at(0, 0),
        interventions=tuple(
            Intervention(
                at=TapSelection(activation_location_type=ActivationLocationType.MLP_POST_ACT, axes=(0,), layer_index=0),
                action=ScaleValue(factor=1.0 / (i + 1)),
            )
            for i in range(2000)
        ),
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_what_a_plan_takes_is_about_what_is_said(disk: SlowDisk, name: str) -> None:
    message = to_wire(LOADS[name])
    make_plan(LOADS["small"], disk)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        plan = make_plan(read(DeriveRequest, message), disk)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 < planning.bytes_of(plan) / (after - before) < 4


async def test_who_stops_waiting_for_files_leaves_nothing(pipeline: Pipeline, disk: SlowDisk) -> None:
    waiting = asyncio.create_task(everything(pipeline.derive(by_path())))
    await disk.began.acquire()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    disk.gate.set()
    assert len(await everything(pipeline.derive(by_path()))) == 3


async def test_a_request_that_comes_again_has_its_plan_whoever_asked_an_equal_one_before(disk: SlowDisk) -> None:
    """For each caller apart, and no longer than the plan is kept."""
    each = planning.bytes_of(make_plan(aiming_at(0, 900), disk))
    plans = planning.Planning(most_bytes=3 * each)
    request, equal = aiming_at(0, 900), aiming_at(0, 900)
    first, second = Caller(name="first"), Caller(name="second")
    assert plans.kept(request, disk, first) is None
    plan = await plans.plan(request, disk, caller=first)
    assert plans.kept(request, disk, first) is plan
    assert plans.kept(request, disk, second) is None
    assert await plans.plan(equal, disk, caller=first) is plan
    assert plans.kept(equal, disk, first) is plan
    for i in range(1, 8):
        await plans.plan(aiming_at(i, 900), disk, caller=first)
    assert plans.kept(request, disk, first) is None
    assert len(plans._of_request) == len(plans._kept) <= 3
