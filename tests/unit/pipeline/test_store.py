"""Recordings are kept under what determines them, widened while that is cheap, and let go by age and bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.results import MadeAnswer
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.recording import Recording
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.store import DEFAULT_STORE_BYTES, RecordingStore
from tests import models

LOSS = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(1,))


@pytest.fixture(scope="module")
def world() -> models.World:
    return models.world(T.MLP_POST_ACT)


def plan_of(world: models.World, *types: T, **fields: Any) -> Plan:
    request = models.request(*types, **{"loss_fn_config": LOSS, **fields})
    return make_plan(request, world.registry, store_bytes=DEFAULT_STORE_BYTES)


def recorded(world: models.World, plan: Plan) -> Recording:
    (result,) = run([plan], world.decoder, world.sets)
    return result.recording


def test_the_same_run_is_found_whatever_is_derived_from_it(world: models.World) -> None:
    """A widened recording answers other types of the same prompt, origin and ablations."""
    store = RecordingStore()
    first = plan_of(world, T.MLP_ACT_TIMES_GRAD)
    store.keep(first, recorded(world, store.widened(first)))
    for other in (T.ATTN_WRITE_NORM, T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, T.RESID_POST_MLP_NORM):
        assert store.find(plan_of(world, other)) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": (1, 2)},
        {"loss_fn_config": LossFnConfig(name=LossFnName.PROBS, target_token_ids=(1,))},
        {"loss_fn_config": None},
        {"autoencoders": ("tiny/mlp_post_act",)},
    ],
)
def test_another_run_is_not_found(world: models.World, other: dict[str, object]) -> None:
    """Another prompt, origin or splice is another run."""
    store = RecordingStore()
    first = plan_of(world, T.MLP_POST_ACT)
    store.keep(first, recorded(world, store.widened(first)))
    assert store.find(plan_of(world, T.MLP_POST_ACT)) is not None
    assert store.find(plan_of(world, T.MLP_POST_ACT, **other)) is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_caller_finds_what_others_recorded_only_if_recordings_are_shared(world: models.World, shared: bool) -> None:
    store = RecordingStore(shared=shared)
    first, second = Caller(name="first"), Caller(name="second")
    plan = plan_of(world, T.MLP_POST_ACT)
    recording = recorded(world, store.widened(plan))
    store.keep(plan, recording, first)
    assert store.find(plan, first) is not None
    assert (store.find(plan, second) is not None) is shared
    store.keep(plan, recording, second)
    assert store.find(plan, second) is not None
    assert store.byte_count == recording.byte_count * (1 if shared else 2)


def test_what_was_not_recorded_is_not_found(world: models.World) -> None:
    """A narrow recording does not answer for taps that it lacks; once both are recorded, both are answered."""
    store = RecordingStore()
    narrow, other = plan_of(world, T.MLP_ACT_TIMES_GRAD), plan_of(world, T.ATTN_QUERY)
    store.keep(narrow, recorded(world, narrow))
    assert store.find(other) is None
    store.keep(other, recorded(world, other))
    assert store.find(other) is not None
    assert store.find(narrow) is not None


def test_widening_goes_sideways_only(world: models.World) -> None:
    """No layer is run, and none differentiated, that would not be anyway; logits and norm scales are left alone."""
    config = DstConfig(layer_indices=(1,))
    plan = plan_of(world, T.MLP_ACT_TIMES_GRAD, config=config)
    wide = RecordingStore().widened(plan)
    assert wide.stop_after_layer == plan.stop_after_layer
    assert min(layer for _, layer in wide.gradients if layer is not None) == 1
    assert (L.RESID_POST_EMBEDDING, None) not in wide.gradients
    assert not {L.LOGITS, L.ATTN_INPUT_LAYER_NORM_SCALE} & {location for location, _ in wide.values}
    forward_only = plan_of(world, T.MLP_POST_ACT, loss_fn_config=None, config=DstConfig(layer_indices=(0,)))
    assert RecordingStore().widened(forward_only).stop_after_layer == 0
    assert not RecordingStore().widened(forward_only).gradients


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_widening_records_what_the_architecture_has(architecture: str) -> None:
    """No residual between attention and MLP that are parallel; the scales of post-norms, which every write needs."""
    world = models.world(config=models.ARCHITECTURES[architecture])
    store, first = RecordingStore(), plan_of(world, T.MLP_ACT_TIMES_GRAD)
    wide = store.widened(first)
    store.keep(first, recorded(world, wide))
    for other in (T.ATTN_WRITE_NORM, T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, T.RESID_POST_MLP_NORM):
        assert store.find(plan_of(world, other)) is not None
    assert all(world.decoder.config.architecture.why_without(location) is None for location, _ in wide.values)


def test_what_does_not_fit_is_not_widened(world: models.World) -> None:
    """A plan whose wide recording would fill the store stays as narrow as it was asked."""
    plan = plan_of(world, T.MLP_ACT_TIMES_GRAD)
    assert RecordingStore(1000).widened(plan) is plan
    assert RecordingStore(0).widened(plan) is plan


def test_what_is_planned_without_a_store_is_not_widened(world: models.World) -> None:
    """Nor is its cost that of more than it was asked for."""
    wide, narrow = (
        make_plan(models.request(T.MLP_POST_ACT), world.registry, store_bytes=each) for each in (DEFAULT_STORE_BYTES, 0)
    )
    assert RecordingStore().widened(narrow) is narrow
    assert narrow.cost.peak_bytes < wide.cost.peak_bytes


def test_what_is_recorded_besides_is_found_once_for_a_kind_of_run(world: models.World) -> None:
    """Another question of the same taps about another prompt of as many tokens shares the sites."""
    first, other = (
        plan_of(world, T.MLP_ACT_TIMES_GRAD, prompt=Prompt(token_ids=tokens)) for tokens in ((1, 2, 3), (4, 5, 6))
    )
    wide, again = RecordingStore().widened(first), RecordingStore().widened(other)
    assert wide.values is again.values
    assert wide.gradients is again.gradients
    assert again.token_ids == (4, 5, 6)


def test_the_least_recently_used_goes_first(world: models.World) -> None:
    """Within the budget everything stays; beyond it the oldest goes, and bytes are counted."""
    plans = [plan_of(world, T.MLP_POST_ACT, tokens=(1, 2, token)) for token in (3, 4, 5)]
    recordings = [recorded(world, plan) for plan in plans]
    size = recordings[0].byte_count
    store = RecordingStore(2 * size)
    store.keep(plans[0], recordings[0])
    store.keep(plans[1], recordings[1])
    assert store.find(plans[0]) is not None
    store.keep(plans[2], recordings[2])
    assert [store.find(plan) is not None for plan in plans] == [True, False, True]
    assert store.byte_count == 2 * size


def test_an_empty_store_keeps_nothing(world: models.World) -> None:
    """A budget of 0 turns the store off."""
    plan = plan_of(world, T.MLP_POST_ACT)
    store = RecordingStore(0)
    store.keep(plan, recorded(world, plan))
    assert store.find(plan) is None
    assert store.byte_count == 0


def test_a_recording_of_a_batch_keeps_its_own_part_alone(world: models.World) -> None:
    """What is kept of a batch counts, and keeps alive, its own prompt's bytes and no other's."""
    plans = [plan_of(world, T.MLP_POST_ACT, tokens=(1, 2, token)) for token in (3, 4, 5)]
    alone = recorded(world, plans[0])
    results = run(plans, world.decoder, world.sets)
    assert results[0].recording.byte_count == 3 * alone.byte_count
    store = RecordingStore()
    store.keep(plans[0], results[0].recording, batch_size=3)
    assert store.byte_count == alone.byte_count


@pytest.mark.parametrize("batch_size", [1, 2])
def test_logits_that_an_answer_reads_are_kept_and_counted(world: models.World, batch_size: int) -> None:
    """Computed again they would differ in their last bits, and so would equal answers."""
    plan = replace(plan_of(world, T.MLP_POST_ACT), logits=frozenset({2}))
    recording, store = recorded(world, plan), RecordingStore()
    (logits,) = recording.logits.values()
    store.keep(plan, recording, batch_size=batch_size)
    assert store.byte_count == recorded(world, replace(plan, logits=frozenset())).byte_count + logits.nbytes
    store.keep(plan, recorded(world, replace(plan, logits=frozenset())))  # what is not recorded again stays
    found = store.find(plan)
    assert found is not None
    assert (found.logits[2] == logits).all()


def answer_of(size: int) -> MadeAnswer:
    return MadeAnswer((bytes(size),))


def test_answers_are_kept_beside_the_recording_that_they_were_computed_from(world: models.World) -> None:
    """For their caller, and as long as it; together they are no larger, and the oldest goes first."""
    plans = [plan_of(world, kind) for kind in (T.MLP_POST_ACT, T.RESID_POST_MLP, T.ATTN_WRITE)]
    first, second = Caller(name="first"), Caller(name="second")
    recording = recorded(world, RecordingStore().widened(plans[0]))
    size = recording.byte_count
    store = RecordingStore(2 * size)
    store.keep_answer(plans[0], answer_of(10), first)
    assert store.answer(plans[0], first) is None  # nothing that it could be kept beside
    store.keep(plans[0], recording, first)
    for plan in plans:
        store.keep_answer(plan, answer_of(size // 2), first)
    assert [store.answer(plan, first) is not None for plan in plans] == [False, True, True]
    assert store.answer(plans[1], second) is None
    assert store.byte_count == size + 2 * (size // 2)
    store.keep_answer(plans[1], answer_of(size + 1), first)
    assert store.byte_count == size + 2 * (size // 2)  # it was too large
    other = plan_of(world, T.MLP_POST_ACT, tokens=(1, 2, 3, 4))
    store.keep(other, recorded(world, other), first)
    store.keep(plan_of(world, T.MLP_POST_ACT, tokens=(4, 3, 2)), recording, first)
    assert store.answer(plans[1], first) is None
    assert store.byte_count <= 2 * size


def test_a_recording_whose_answers_are_given_outlives_one_that_nobody_asks_for(world: models.World) -> None:
    plans = [plan_of(world, T.MLP_POST_ACT, tokens=(1, 2, token)) for token in (3, 4, 5)]
    recordings = [recorded(world, plan) for plan in plans]
    store = RecordingStore(3 * recordings[0].byte_count - 1)
    store.keep(plans[0], recordings[0])
    store.keep_answer(plans[0], answer_of(10))
    store.keep(plans[1], recordings[1])
    assert store.answer(plans[0]) is not None
    store.keep(plans[2], recordings[2])
    assert [store.holds(plan) for plan in plans] == [True, False, True]


def test_an_answer_is_of_the_very_sets_and_handles_that_were_asked_for(world: models.World) -> None:
    """A reload may give a name to another set, and a handle may be of another revision."""
    store, plan = RecordingStore(), plan_of(world, T.MLP_POST_ACT)
    store.keep(plan, recorded(world, store.widened(plan)))
    store.keep_answer(plan, answer_of(10))
    (entry,) = plan_of(world, T.MLP_POST_ACT, autoencoders=("tiny/mlp_post_act",)).autoencoders
    assert store.answer(replace(plan)) is not None
    assert store.answer(replace(plan, shared_sets=(entry,))) is None
    assert store.answer(replace(plan, handles=("tiny@0123456789ab:float32:cpu",))) is None
    store.clear()
    assert store.answer(plan) is None
    assert store.byte_count == 0
