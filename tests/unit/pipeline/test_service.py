"""The pipeline on a real registry and cache: what it yields in which order, and that it lets go of everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import make_circuit_request, make_pair
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.entries import ModelEntry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.domain.callers import Caller, Grant, Grants, Priority
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest, ExplainRun
from dst_grpc.domain.interventions import AddVector, Intervention
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, ResolveRequest
from dst_grpc.domain.resolution import ContextState, LoadProgress, Resolution, Validated
from dst_grpc.domain.results import AnswerHeader, DenseTensor, MadeAnswer, RunStatistics, RunSummary
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.domain.sender import Sender
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.domain.urgency import Urgency
from dst_grpc.domain.work import WorkDone
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import Exhausted, InvalidRequest, NotFound, PreconditionFailed, Reason, Unavailable, Violations
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.limits import DeviceLimits, Limits
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.service import Pipeline
from dst_grpc.pipeline.worker import Worker
from dst_grpc.scalars.derive import Derivation
from tests import checkpoints, interventions, models

SETS = ("tiny/mlp_post_act", "tiny/resid_delta_attn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = checkpoints.write_model(tmp_path_factory.mktemp("models") / "tiny")
    checkpoints.write_autoencoders(found / "autoencoders")
    return found


@pytest.fixture
def registry(folder: Path) -> Registry:
    return Registry.build(models={"tiny": folder}, device="cpu", include_embedded=False)


@pytest.fixture
async def cache(registry: Registry) -> AsyncIterator[ContextCache]:
    cache = ContextCache(registry, loader=FileLoader(allow_failed_checks=True))
    yield cache
    await cache.close()


@pytest.fixture
async def pipeline(registry: Registry, cache: ContextCache) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(cache)
    yield pipeline
    await pipeline.close()


def request(*types: T, tokens: tuple[int, ...] = models.TOKENS, **fields: Any) -> DeriveRequest:
    return models.request(*types, tokens=tokens, **fields)


def large() -> DeriveRequest:
    """An answer of several steps."""
    return request(*[T.ATTN_WRITE] * 150, tokens=tuple(range(16)))


async def everything(steps: AsyncGenerator[Any, None]) -> list[Any]:
    """All that is yielded, whether one by one or several at once."""
    found: list[Any] = []
    async with aclosing(steps):
        async for ready in steps:
            found += ready if isinstance(ready, list) else [ready]
    return found


def held_bytes(pipeline: Pipeline) -> int:
    return sum(batcher.scheduler.memory.used_bytes for batcher in pipeline._executor._devices.values())


def assert_idle(pipeline: Pipeline, cache: ContextCache) -> None:
    assert held_bytes(pipeline) == 0
    assert all(status.pins == 0 for status in cache.statuses())


async def test_an_answer_is_a_header_its_tensors_and_a_summary(pipeline: Pipeline, cache: ContextCache) -> None:
    header, *tensors, summary = await everything(
        pipeline.derive(
            request(
                T.MLP_ACT_TIMES_GRAD, T.ONLINE_MLP_AUTOENCODER_LATENT, autoencoders=SETS, loss_fn_config=models.LOSS
            )
        )
    )
    assert isinstance(header, AnswerHeader)
    assert isinstance(summary, RunSummary)
    assert [part.info for part in tensors] == list(header.tensors)
    assert header.model.startswith("tiny@")
    assert len(summary.provenance.autoencoder_digests) == 2
    assert_idle(pipeline, cache)


async def test_a_step_is_as_large_as_what_it_computes_not_as_the_whole(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def submit(worker: Worker, job: Callable[[], Any], *, operations: int = 0) -> asyncio.Future[Any]:
        told.append(operations)
        return run(worker, job, operations=operations)

    run = Worker.submit
    monkeypatch.setattr(Worker, "submit", submit)
    pairs = [make_pair((5, 0, 17), (3, 1, 8), target=[2])]
    none_is_cut = make_circuit_request(pairs=pairs, acdc_threshold=-1e9)
    asked = plan_circuit(none_is_cut, pipeline._cache.registry)
    await everything(pipeline.circuit(none_is_cut))
    # A pass, what is known before the search, and each edge alone, as all before it turned out to be kept.
    assert len(told) > asked.item_count
    assert set(told[-asked.item_count :]) == {asked.operations_of_a_circuit}
    assert max(told) <= asked.floating_point_operations / 10
    told.clear()
    all_are_cut = make_circuit_request(pairs=pairs, acdc_threshold=1e9)
    await everything(pipeline.circuit(all_are_cut))
    assert max(told) > 4 * asked.operations_of_a_circuit  # several are cut in a step
    assert sum(told) < 2 * asked.floating_point_operations


async def test_an_answer_of_several_steps_is_whole_and_in_order(pipeline: Pipeline, cache: ContextCache) -> None:
    header, *tensors, _ = await everything(pipeline.derive(large()))
    assert sum(info.byte_length for info in header.tensors) > 3 << 20
    assert [part.info for part in tensors] == list(header.tensors)
    first = {layer: tensors[layer].values for layer in range(2)}
    assert all(np.array_equal(part.values, first[part.info.layer_index]) for part in tensors)
    assert_idle(pipeline, cache)


def steering(vector: RequestTensor) -> DeriveRequest:
    at = TapSelection(activation_location_type=L.RESID_POST_MLP, layer_index=0)
    change = Intervention(at=at, action=AddVector(vector=vector, factor=3.0))
    return request(T.RESID_POST_MLP, interventions=(change,), loss_fn_config=models.LOSS)


async def test_tensors_come_with_the_request_or_by_handle(pipeline: Pipeline) -> None:
    """And are looked up again for each request: the same handle may come to mean another tensor."""
    one, other = (RequestTensor(tensor=np.full(8, value)) for value in (0.5, -1.0))
    by_handle = steering(RequestTensor(handle="v"))
    _, *plain, _ = await everything(pipeline.derive(request(T.RESID_POST_MLP, loss_fn_config=models.LOSS)))
    for tensor in (one, other):
        inline = await everything(pipeline.derive(steering(tensor)))
        put = await everything(pipeline.derive(by_handle, sender=Sender(tensors=interventions.Shelf(v=tensor))))
        assert inline[0] == put[0]
        for ours, theirs, before in zip(inline[1:-1], put[1:-1], plain, strict=True):
            assert np.array_equal(ours.values, theirs.values)
            assert not np.array_equal(ours.values, before.values)
        assert inline[-1].provenance.config_digest == put[-1].provenance.config_digest
        for prompt in (by_handle.prompt, None):
            resolve = ResolveRequest(request=replace(by_handle, prompt=prompt))
            sender = Sender(tensors=interventions.Shelf(v=tensor))
            assert len(await everything(pipeline.resolve(resolve, sender=sender))) == 2


async def test_tensors_that_cannot_be_used_are_refused_at_their_handles(
    pipeline: Pipeline, cache: ContextCache
) -> None:
    by_handle = steering(RequestTensor(handle="v"))
    wide = interventions.Shelf(v=RequestTensor(tensor=np.ones(9)))
    field = "interventions[0].add.vector.handle"
    with pytest.raises(InvalidRequest, match="no tensors are kept here") as caught:
        await everything(pipeline.derive(by_handle, root="request"))
    assert caught.value.violations[0].field == f"request.{field}"
    with pytest.raises(InvalidRequest, match="does not stretch") as caught:
        await everything(pipeline.derive(by_handle, sender=Sender(tensors=wide)))
    assert caught.value.violations[0].field == field
    run = ExplainRun(prompt=Prompt(token_ids=models.TOKENS), interventions=by_handle.interventions)
    with pytest.raises(InvalidRequest, match="does not stretch") as caught:
        await everything(pipeline.explain(ExplainRequest(runs=(run, run)), sender=Sender(tensors=wide)))
    assert [one.field for one in caught.value.violations] == [f"runs[{i}].{field}" for i in range(2)]
    with pytest.raises(NotFound, match="'v'"):
        await everything(pipeline.derive(by_handle, sender=Sender(tensors=interventions.Shelf())))
    resolve = ResolveRequest(request=by_handle)
    with pytest.raises(InvalidRequest, match="does not stretch") as caught:
        await everything(pipeline.resolve(resolve, root="request", sender=Sender(tensors=wide)))
    assert caught.value.violations[0].field == f"request.request.{field}"
    with pytest.raises(NotFound, match="'v'"):
        await everything(pipeline.resolve(resolve, sender=Sender(tensors=interventions.Shelf())))
    assert_idle(pipeline, cache)


@pytest.mark.parametrize("taken", [1, 2, 3])
async def test_closing_early_stops_the_work_and_frees_the_lease(
    pipeline: Pipeline, cache: ContextCache, taken: int
) -> None:
    async with aclosing(pipeline.derive(large())) as steps:
        seen = [await anext(steps) for _ in range(taken)]
        assert cache.status("tiny").pins == 1
    assert isinstance(seen[0][0], AnswerHeader)
    assert_idle(pipeline, cache)
    await cache.unload("tiny")
    assert cache.status("tiny").state is ContextState.NOT_LOADED
    assert len(await everything(pipeline.derive(request(T.MLP_POST_ACT)))) == 4


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 50])
async def test_cancelling_a_caller_frees_what_it_held(pipeline: Pipeline, cache: ContextCache, turns: int) -> None:
    """Wherever it is: before it is admitted, while contexts load, while it waits for the device."""
    caller = asyncio.create_task(everything(pipeline.derive(large())))
    for _ in range(turns):
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert_idle(pipeline, cache)


@pytest.mark.parametrize("steps_taken", [0, 1, 2])
async def test_a_caller_who_goes_away_while_an_answer_is_derived_stops_it_at_the_next_layer(
    pipeline: Pipeline, cache: ContextCache, monkeypatch: pytest.MonkeyPatch, steps_taken: int
) -> None:
    """In the first step, which the batch does, and in those after it."""
    loop, derived, in_rows = asyncio.get_running_loop(), 0, Derivation.in_rows
    last = 40 * (1 + steps_taken)

    async def cancel() -> None:
        caller.cancel()
        await asyncio.wait([caller])

    def watched(derivation: Derivation, layer: int | None, n_rows: int) -> Any:
        nonlocal derived
        derived += 1
        if derived == last:
            asyncio.run_coroutine_threadsafe(cancel(), loop).result()
        return in_rows(derivation, layer, n_rows)

    monkeypatch.setattr(Derivation, "in_rows", watched)
    caller = asyncio.create_task(everything(pipeline.derive(large())))
    with pytest.raises(asyncio.CancelledError):
        await caller
    await pipeline._executor._device("cpu").worker.submit(list)
    assert derived == last
    assert_idle(pipeline, cache)


async def test_observers_hear_what_devices_do_and_where_a_request_is(pipeline: Pipeline) -> None:
    heard: list[WorkDone] = []
    pipeline.observe(heard.append)
    (idle,) = pipeline.readings()
    assert (idle.device, idle.expected_wait, idle.busy_seconds) == ("cpu", 0, 0)
    assert not pipeline.loads()
    timeline = Timeline()
    sender = Sender(caller=Caller(name="alice"), timeline=timeline)
    stages = [timeline.now async for _ in pipeline.derive(large(), sender=sender)]
    assert timeline.device == "cpu"
    assert [stages[0], stages[-1]] == [Stage.PASS, Stage.WRITE]
    first, *steps = heard
    (done,), (passes,) = first.jobs, first.passes
    assert (done.caller, done.model, done.is_step, done.n_tokens) == ("alice", "tiny", False, passes.n_tokens)
    assert done.queued_at <= first.started_at
    assert (passes.n_prompts, passes.n_padding) == (1, 0)
    assert 0 < passes.forward_seconds + (passes.backward_seconds or 0) <= done.device_seconds
    assert len(steps) >= 1
    assert all(job.is_step and job.n_tokens == 0 for work in steps for job in work.jobs)
    assert not any(work.passes for work in steps)
    (reading,) = pipeline.readings()
    assert reading.busy_seconds >= passes.forward_seconds
    assert (reading.store_hits, reading.store_misses, reading.oldest_seconds) == (0, 1, 0)
    assert {one.kind: one.used_bytes > 0 for one in reading.memory} == {"runs": False, "store": True}
    heard.clear()
    await everything(pipeline.derive(large(), sender=sender))
    assert [(job.n_tokens, job.is_step) for job in heard[0].jobs] == [(0, False)]
    assert pipeline.readings()[0].store_hits == 1


async def test_a_second_question_about_a_run_costs_no_pass(pipeline: Pipeline) -> None:
    summaries = []
    for types in ((T.MLP_ACT_TIMES_GRAD,), (T.ATTN_WRITE_NORM,)):
        *_, summary = await everything(pipeline.derive(request(*types, loss_fn_config=models.LOSS)))
        summaries.append((summary.statistics.forward_passes, summary.statistics.backward_passes))
    assert summaries == [(1, 1), (0, 0)]


@pytest.mark.parametrize("share_recordings", [False, True])
async def test_what_others_asked_is_not_to_be_told_unless_recordings_are_shared(
    cache: ContextCache, share_recordings: bool
) -> None:
    """Neither by the passes that an answer took, nor by whether its plan was made before."""
    pipeline = Pipeline(cache, Limits(share_recordings=share_recordings))
    passes, n_plans = [], []
    for name in ("first", "second", "second"):
        *_, summary = await everything(
            pipeline.derive(request(T.MLP_POST_ACT), sender=Sender(caller=Caller(name=name)))
        )
        passes.append(summary.statistics.forward_passes)
        n_plans.append(len(pipeline._planning._kept))
    assert (passes, n_plans) == (([1, 0, 0], [1, 1, 1]) if share_recordings else ([1, 1, 0], [1, 2, 2]))
    await pipeline.close()


async def test_many_at_once_get_what_each_gets_alone(pipeline: Pipeline, registry: Registry) -> None:
    requests = [
        request(
            T.RESID_POST_MLP,
            tokens=tuple(range(n, 2 * n)),
            config=DstConfig(derive_gradients=True),
            loss_fn_config=models.LOSS,
        )
        for n in range(1, 9)
    ]
    together = await asyncio.gather(*(everything(pipeline.derive(one)) for one in requests))
    for one, (header, *tensors, _) in zip(requests, together, strict=True):
        alone = Pipeline(pipeline._cache, Limits(store_bytes=0))
        expected_header, *expected, _ = await everything(alone.derive(one))
        await alone.close()
        assert header.loss == pytest.approx(expected_header.loss, rel=1e-4, abs=1e-5)
        for found, wanted in zip(tensors, expected, strict=True):
            assert isinstance(found, DenseTensor)
            np.testing.assert_allclose(found.values, wanted.values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (request(T.MLP_WRITE, config=DstConfig(layer_indices=(2,))), InvalidRequest),
        (request(T.MLP_ACT_TIMES_GRAD), PreconditionFailed),
        (DeriveRequest(prompt=None, model="tiny"), InvalidRequest),
    ],
    ids=["layer", "origin", "prompt"],
)
async def test_what_is_wrong_is_said_before_anything_is_loaded(
    pipeline: Pipeline, cache: ContextCache, bad: DeriveRequest, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await everything(pipeline.derive(bad))
    assert cache.statuses() == []


async def test_over_budget_is_refused_before_anything_is_loaded(registry: Registry, cache: ContextCache) -> None:
    pipeline = Pipeline(cache, Limits(of_device=DeviceLimits(max_run_bytes=100)))
    with pytest.raises(Exhausted) as caught:
        await everything(pipeline.derive(request(T.MLP_POST_ACT)))
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert cache.statuses() == []
    await pipeline.close()


async def test_a_closed_pipeline_is_unavailable(pipeline: Pipeline) -> None:
    await everything(pipeline.derive(request(T.MLP_POST_ACT)))
    await pipeline.close()
    with pytest.raises(Unavailable):
        await everything(pipeline.derive(request(T.MLP_POST_ACT)))


# Resolve


async def test_resolving_touches_no_weights(pipeline: Pipeline, cache: ContextCache) -> None:
    given = request(T.MLP_AUTOENCODER_LATENT, autoencoders=SETS, request_id="mine")
    validated, resolution = await everything(pipeline.resolve(ResolveRequest(request=given)))
    assert validated == Validated()
    assert isinstance(resolution, Resolution)
    assert [context.state for context in resolution.contexts] == [ContextState.NOT_LOADED] * 3
    assert cache.statuses() == []
    (scalar,) = resolution.scalars
    assert scalar.layer_indices == (0, 1)
    assert [axis.size for axis in scalar.axes] == [6, checkpoints.LATENTS]
    assert {tap.location.value for tap in scalar.taps} == {"mlp.post_act"}


async def test_resolving_with_load_tells_of_the_progress_and_then_of_what_is_there(
    pipeline: Pipeline, cache: ContextCache
) -> None:
    given = ResolveRequest(request=request(T.MLP_AUTOENCODER_LATENT, autoencoders=SETS), load=True)
    first, *progress, resolution = await everything(pipeline.resolve(given))
    assert isinstance(first, Validated)
    assert isinstance(resolution, Resolution)
    assert progress
    assert all(isinstance(one, LoadProgress) for one in progress)
    for context in {one.context for one in progress}:
        done = [one.bytes_done for one in progress if one.context == context]
        assert done == sorted(done)
    assert [context.state for context in resolution.contexts] == [ContextState.AVAILABLE] * 3
    assert resolution.model.state is ContextState.AVAILABLE
    assert all(info.measured for info in resolution.autoencoders)
    assert_idle(pipeline, cache)


async def test_resolving_with_load_what_is_loaded_has_no_progress_to_tell(pipeline: Pipeline) -> None:
    given = ResolveRequest(request=request(T.MLP_POST_ACT), load=True)
    await everything(pipeline.resolve(given))
    assert [type(part) for part in await everything(pipeline.resolve(given))] == [Validated, Resolution]


@pytest.mark.parametrize("taken", [1, 2])
async def test_one_who_stops_resolving_holds_nothing(pipeline: Pipeline, cache: ContextCache, taken: int) -> None:
    given = ResolveRequest(request=request(T.MLP_AUTOENCODER_LATENT, autoencoders=SETS), load=True)
    async with aclosing(pipeline.resolve(given)) as parts:
        for _ in range(taken):
            await anext(parts)
    assert_idle(pipeline, cache)


async def test_bad_fields_of_a_request_to_resolve_are_named_from_its_root(pipeline: Pipeline) -> None:
    given = ResolveRequest(request=request(T.MLP_WRITE, config=DstConfig(layer_indices=(2,))))
    with pytest.raises(InvalidRequest) as caught:
        await everything(pipeline.resolve(given))
    assert caught.value.violations[0].field == "request.config.layer_indices.layer_indices[0]"


async def test_paths_begin_at_the_message_that_a_request_stands_in(pipeline: Pipeline) -> None:
    bad = request(T.MLP_WRITE, config=DstConfig(layer_indices=(2,)))
    field = "config.layer_indices.layer_indices[0]"
    calls = {
        field: pipeline.derive(bad),
        f"request.{field}": pipeline.derive(bad, root="request"),
        f"request.request.{field}": pipeline.resolve(ResolveRequest(request=bad), root="request"),
    }
    for path, call in calls.items():
        with pytest.raises(InvalidRequest) as caught:
            await everything(call)
        assert [violation.field for violation in caught.value.violations] == [path]


async def test_what_reading_a_message_found_is_told_with_the_rest(pipeline: Pipeline) -> None:
    bad = replace(request(T.MLP_WRITE, config=DstConfig(layer_indices=(2,))), prompt=None)
    known = Violations()
    known.add("prompt.text", "must not be empty")
    with pytest.raises(InvalidRequest) as caught:
        await everything(pipeline.derive(bad, known))
    assert {violation.field for violation in caught.value.violations} == {
        "prompt.text", "config.layer_indices.layer_indices[0]",
    }  # fmt: skip
    assert len(await everything(pipeline.derive(request(T.LOGITS), Violations()))) == 3


async def test_a_request_to_resolve_needs_no_prompt(pipeline: Pipeline) -> None:
    given = DeriveRequest(prompt=None, model="tiny", derived_scalars=(DerivedScalarSpec(dst=T.LOGITS),))
    _, resolution = await everything(pipeline.resolve(ResolveRequest(request=given)))
    assert resolution.cost.sequence_tokens == checkpoints.CONFIG["n_positions"]


async def test_a_text_is_encoded_as_it_is(pipeline: Pipeline) -> None:
    header, *_ = await everything(pipeline.derive(DeriveRequest(prompt=Prompt(text="gave Mary the key"), model="tiny")))
    assert "".join(header.token_strings) == "gave Mary the key"


async def test_the_canonical_config_asks_the_same_question(pipeline: Pipeline) -> None:
    given = request(T.MLP_AUTOENCODER_LATENT, config=DstConfig(autoencoder_context=SETS[0]))
    _, resolution = await everything(pipeline.resolve(ResolveRequest(request=given)))
    again = request(T.MLP_AUTOENCODER_LATENT, config=resolution.scalars[0].config)
    first, second = [await everything(pipeline.derive(one)) for one in (given, again)]
    for one, other in zip(first[1:-1], second[1:-1], strict=True):
        np.testing.assert_array_equal(one.values, other.values)


async def test_after_a_reload_no_plan_and_no_recording_is_taken_from_before(
    folder: Path, tmp_path: Path, cache: ContextCache, pipeline: Pipeline
) -> None:
    """Even of models whose digests are not known until they are loaded: names mean something else now."""
    one = request(T.LOGITS)
    old = await numbers(pipeline, one)
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=5))
    cache.adopt(Registry.build(models={"tiny": other}, device="cpu", include_embedded=False, previous=cache.registry))
    assert not np.allclose(await numbers(pipeline, one), old)
    cache.adopt(Registry.build(models={"tiny": folder}, device="cpu", include_embedded=False, previous=cache.registry))
    np.testing.assert_array_equal(await numbers(pipeline, one), old)
    cache.adopt(Registry.build(models={"new": folder}, device="cpu", include_embedded=False, previous=cache.registry))
    with pytest.raises(NotFound):
        await everything(pipeline.derive(replace(one, model="tiny")))


async def test_recordings_are_kept_under_handles_even_if_they_are_known_late(folder: Path, tmp_path: Path) -> None:
    """Large files are digested when they are loaded. Here none is before, as if all were large."""
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=5))
    cache = ContextCache(undigested(folder), loader=FileLoader(allow_failed_checks=True))
    pipeline = Pipeline(cache)
    found = []
    for _ in range(2):
        header, *tensors, summary = await everything(pipeline.derive(request(T.LOGITS)))
        found.append(np.array([part.values for part in tensors]))
        assert header.model == summary.provenance.model
        assert "@" in header.model
        cache.adopt(undigested(other))
    assert not np.allclose(found[0], found[1])
    await pipeline.close()
    await cache.close()


def undigested(folder: Path) -> Registry:
    """The model `tiny` in *folder*, whose digest and so handle nobody knows yet."""
    checkpoint = open_checkpoint(folder)
    entry = ModelEntry(
        name="tiny",
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        files=checkpoint.files,
        checkpoint=checkpoint,
    )
    return Registry([entry], [], roots=AllowedRoots([]), default_model="tiny")


async def test_a_request_ends_with_the_registry_that_it_began_with(
    folder: Path, tmp_path: Path, cache: ContextCache, pipeline: Pipeline
) -> None:
    expected = await numbers(pipeline, large())
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=5))
    registry = Registry.build(models={"tiny": other}, device="cpu", include_embedded=False, previous=cache.registry)
    async with aclosing(pipeline.derive(large())) as steps:
        found = [*(await anext(steps))]
        cache.adopt(registry)
        found += [part async for ready in steps for part in ready]
    np.testing.assert_array_equal([part.values for part in found if isinstance(part, DenseTensor)], expected)


async def test_a_request_that_waits_during_a_reload_runs_on_what_it_was_planned_for(
    tmp_path: Path, cache: ContextCache, pipeline: Pipeline
) -> None:
    expected = await numbers(pipeline, request(T.LOGITS))
    (*_, resolution) = await everything(pipeline.resolve(ResolveRequest(request=large())))
    narrow = Pipeline(cache, Limits(of_device=DeviceLimits(max_run_bytes=resolution.cost.peak_bytes), store_bytes=0))
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=5))
    registry = Registry.build(models={"tiny": other}, device="cpu", include_embedded=False, previous=cache.registry)
    async with aclosing(narrow.derive(large())) as running:
        await anext(running)
        waiting = asyncio.create_task(numbers(narrow, request(T.LOGITS)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert narrow.loads()[0].waiting_requests
        cache.adopt(registry)
    np.testing.assert_allclose(await waiting, expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(await numbers(narrow, request(T.LOGITS)), expected, rtol=1e-3, atol=1e-5)
    assert_idle(narrow, cache)
    await narrow.close()


async def numbers(pipeline: Pipeline, one: DeriveRequest) -> list[np.ndarray]:
    return [part.values for part in await everything(pipeline.derive(one)) if isinstance(part, DenseTensor)]


class Stalled:
    """A reader who takes nothing while others wait."""

    def __init__(self) -> None:
        self.has_stalled = False
        self.given_up = asyncio.Event()

    def give_up(self) -> None:
        self.given_up.set()


async def test_a_reader_who_has_stalled_is_given_up_when_another_waits_for_the_memory_it_holds(
    cache: ContextCache,
) -> None:
    plan = make_plan(large(), cache.registry, store_bytes=0)
    limits = Limits(of_device=DeviceLimits(max_run_bytes=plan.cost.peak_bytes), store_bytes=0)
    pipeline, reader = Pipeline(cache, limits), Stalled()
    async with aclosing(pipeline.derive(large(), sender=Sender(urgency=Urgency(reader=reader)))) as slow:
        await anext(slow)
        waiting = asyncio.create_task(everything(pipeline.derive(large(), sender=Sender(caller=Caller(name="other")))))
        await asyncio.wait([waiting], timeout=0.05)
        assert not reader.given_up.is_set()  # it may just be slow
        reader.has_stalled = True
        await asyncio.wait_for(reader.given_up.wait(), 30)
    assert await asyncio.wait_for(waiting, 30)
    assert_idle(pipeline, cache)
    await pipeline.close()


def made(parts: Sequence[Any]) -> MadeAnswer:
    """What was answered, and what it took."""
    *_, summary = parts
    return MadeAnswer((f"{len(parts)} parts, {summary.statistics}".encode(),))


async def test_a_small_answer_that_is_asked_for_again_takes_nothing(pipeline: Pipeline, cache: ContextCache) -> None:
    """Not even a turn on the device, once it was computed from a recording; only its caller finds it, while what it was
    computed with is loaded."""
    asked = request(T.MLP_POST_ACT)
    ones = Sender(caller=Caller(name="one"))
    told = []
    for _ in range(2):
        assert pipeline.kept_answer(asked, sender=ones) is None
        (answer,) = await everything(pipeline.derive(asked, sender=ones, make=made))
        told.append(answer.messages[0].decode())
    assert ["forward_passes=1" in each for each in told] == [True, False]
    kept = pipeline.kept_answer(asked, sender=ones)
    assert kept is not None
    nothing = RunStatistics(forward_passes=0, backward_passes=0)
    assert kept.messages == (f"4 parts, {nothing}".encode(),)
    assert cache.status("tiny").hits == 2
    assert pipeline.kept_answer(request(T.MLP_POST_ACT), sender=ones) is None  # equal, but never planned
    assert pipeline.kept_answer(asked, sender=Sender(caller=Caller(name="other"))) is None
    await cache.unload("tiny")
    assert pipeline.kept_answer(asked, sender=ones) is None
    assert_idle(pipeline, cache)


async def test_a_kept_answer_is_charged_and_refused_like_any_other(pipeline: Pipeline) -> None:
    asked = request(T.MLP_POST_ACT)
    for _ in range(2):
        await everything(pipeline.derive(asked, make=made))
    pipeline.use_grants(Grants(default=Grant(cost_seconds_per_minute=0.001)))

    def ask_on() -> None:
        for _ in range(30):
            assert pipeline.kept_answer(asked) is not None

    with pytest.raises(Exhausted) as caught:
        ask_on()
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    await pipeline.close()
    with pytest.raises(Unavailable):
        pipeline.kept_answer(asked)


async def test_what_resolving_told_just_before_is_told_again_until_something_is_loaded(pipeline: Pipeline) -> None:
    asked = ResolveRequest(request=request(T.MLP_POST_ACT))
    await everything(pipeline.resolve(replace(asked, load=True)))
    first = await pipeline.resolution(asked)
    states = (first.model.state, first.contexts[0].state)
    assert states == (ContextState.AVAILABLE,) * 2
    assert await pipeline.resolution(asked) == first
    await pipeline._cache.unload("tiny")
    gone = await pipeline.resolution(asked)
    assert (gone.model.state, gone.contexts[0].state) == (ContextState.NOT_LOADED,) * 2


async def test_an_answer_that_is_not_made_comes_in_parts(pipeline: Pipeline) -> None:
    header, *_, summary = await everything(pipeline.derive(request(T.MLP_POST_ACT), make=lambda _: None))
    assert isinstance(header, AnswerHeader)
    assert isinstance(summary, RunSummary)
    assert len(await everything(pipeline.derive(large(), make=made))) > 3  # it is not small


async def test_a_timeline_tells_what_a_request_waited_for_and_what_it_is_about(pipeline: Pipeline) -> None:
    asked = request(T.ONLINE_MLP_AUTOENCODER_LATENT, autoencoders=SETS, loss_fn_config=models.LOSS)
    first, again, resolved = Timeline(), Timeline(), Timeline()
    await everything(pipeline.derive(asked, sender=Sender(timeline=first)))
    await everything(pipeline.derive(asked, sender=Sender(timeline=again)))
    await pipeline.resolution(ResolveRequest(request=asked), sender=Sender(timeline=resolved))
    assert first.seconds.keys() == {Stage.LOAD, Stage.QUEUE, Stage.PASS, Stage.DERIVE}
    assert again.seconds.keys() == {Stage.QUEUE, Stage.DERIVE}  # its recording was kept
    assert resolved.seconds == {}
    for timeline in (first, again, resolved):
        assert all(seconds >= 0 for seconds in timeline.seconds.values())
        assert (timeline.model, [*timeline.contexts]) == ("tiny", [*SETS])


async def test_what_a_request_to_resolve_loads_is_noted(pipeline: Pipeline) -> None:
    timelines = [Timeline(), Timeline()]
    for timeline in timelines:
        asked = ResolveRequest(request=request(T.MLP_POST_ACT), load=True)
        await everything(pipeline.resolve(asked, sender=Sender(timeline=timeline)))
    assert [[*timeline.seconds] for timeline in timelines] == [[Stage.LOAD], []]


@pytest.mark.parametrize(("priority", "passes"), [(Priority.INTERACTIVE, [1, 0, 0]), (Priority.BATCH, [1, 1, 0])])
async def test_only_what_somebody_waits_for_records_more_than_is_asked(
    pipeline: Pipeline, priority: Priority, passes: list[int]
) -> None:
    """For other questions about the run; what was asked is found again either way."""
    sender = Sender(urgency=Urgency(priority=priority))
    asked = [request(dst) for dst in (T.MLP_POST_ACT, T.RESID_POST_MLP, T.MLP_POST_ACT)]
    answers = [await everything(pipeline.derive(one, sender=sender)) for one in asked]
    assert [summary.statistics.forward_passes for *_, summary in answers] == passes
