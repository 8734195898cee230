"""How runs are arranged in batches, and that it makes no difference to their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.interventions import (
    Action,
    CopyFromRun,
    DetachGradient,
    HoldValue,
    Intervention,
    MeanOverRuns,
    SetValue,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.taps import Site, site_entering
from dst_grpc.pipeline.arrangement import Arrangement
from dst_grpc.pipeline.passes import run_batch
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.rows import Row, Start
from dst_grpc.pipeline.run import RunResult, run
from tests import models

CLEAN, CORRUPT, LONG = (3, 1, 4, 1, 5, 9), (2, 7, 1, 8, 2, 8), (5, 7, 7, 2, 1, 5, 6, 6, 4)
WORLDS = {
    name: models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, seed=2, config=models.ARCHITECTURES[name])
    for name in ("gpt2", "gemma", "llama", "neox")
}
WORLD = WORLDS["gpt2"]
N_LAYERS = 3


def at(location: L, layer: int | None, *axes: Any, action: Action, **more: Any) -> Intervention:
    selection = TapSelection(activation_location_type=location, layer_index=layer, axes=axes, **more)
    return Intervention(at=selection, action=action)


def patch(location: L, layer: int | None, *axes: Any) -> Intervention:
    return at(location, layer, *axes, action=CopyFromRun(run="clean"))


def plan(
    world: models.World,
    *changes: Intervention,
    tokens: Sequence[int] = CORRUPT,
    values: Sequence[Site] = (),
    gradients: Sequence[Site] = (),
) -> Plan:
    sources = (
        SourceRun(name="clean", prompt=Prompt(token_ids=CLEAN)),
        SourceRun(name="corrupt", prompt=Prompt(token_ids=CORRUPT)),
    )
    request = models.request(
        tokens=tokens,
        interventions=changes,
        source_runs=sources,
        loss_fn_config=models.LOSS,
        autoencoders=tuple(world.sets),
    )
    made = make_plan(request, world.registry)
    return replace(made, values=frozenset((*values, *gradients)), gradients=frozenset(gradients))


def everything_from(world: models.World, layer: int) -> list[Site]:
    """All sites that a run has which begins at a layer."""
    return [
        site
        for site in models.sites(world.decoder.config)
        if site[0].facts.is_after_layers or (site[1] is not None and site[1] >= layer)
    ]


def patched(world: models.World) -> list[Plan]:
    """Runs that differ from some layer on, of both prompts, with gradients."""
    cut = at(L.RESID_DELTA_MLP, None, action=DetachGradient(), pass_type=PassType.BACKWARD)
    held = at(L.ATTN_QK_PROBS, 2, action=HoldValue())
    mean = at(L.ATTN_VALUE, 2, None, 1, action=MeanOverRuns(runs=("clean", "corrupt")))
    late = [
        (1, [patch(L.RESID_DELTA_ATTN, 1, 2)]),
        (2, [patch(L.MLP_POST_ACT, 2, 4), cut]),
        (2, [patch(L.ATTN_WEIGHTED_SUM_OF_VALUES, 2, None, 1)]),
        (1, [patch(L.RESID_POST_MLP, 1, 4), held]),
        (2, [mean, at(L.ONLINE_MLP_AUTOENCODER_LATENT, 2, action=SetValue(scalar=0.5))]),
        (0, [patch(L.RESID_POST_EMBEDDING, None, 3)]),
        (3, [patch(L.RESID_FINAL_LAYER_NORM_SCALE, None)]),
    ]
    plans = []
    for layer, changes in late:
        sites = everything_from(world, layer)
        gradients = [site for site in sites if site[0] is not L.LOGITS]
        plans.append(plan(world, *changes, values=sites, gradients=gradients))
    return plans


def assert_equal(found: RunResult, expected: RunResult) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)
    for kind in ("values", "gradients"):
        ours, theirs = (getattr(one.recording.taps, kind) for one in (found, expected))
        assert ours.keys() == theirs.keys()
        for site, tensor in theirs.items():
            torch.testing.assert_close(ours[site], tensor, rtol=1e-8, atol=1e-9, msg=f"{kind} at {site}")


@pytest.mark.parametrize("name", WORLDS)
def test_runs_side_by_side_are_as_each_alone(name: str) -> None:
    """Clean, corrupt and patched runs in one batch, in which patched ones begin at the layer that they change; in many,
    with the residuals that the first batch kept; and in whatever batches, beside a longer prompt."""
    world = WORLDS[name]
    plans = [*patched(world), plan(world, tokens=LONG)]
    alone = [run([one], world.decoder, world.sets)[0] for one in plans]
    for max_tokens in (10_000, 36, 1):
        for found, expected in zip(run(plans, world.decoder, world.sets, max_tokens=max_tokens), alone, strict=True):
            assert_equal(found, expected)


def arranged(*plans: Plan, max_tokens: int = 10_000) -> Arrangement:
    return Arrangement.of(plans, N_LAYERS, max_tokens)


def test_a_run_begins_where_it_differs_from_one_that_runs_anyway() -> None:
    (batch,) = arranged(*patched(WORLD), plan(WORLD)).batches
    starts = {node.first_layer for node in batch}
    assert [node.first_layer for node in batch if node.base is None] == [0, 0, 0]
    assert starts == {0, 1, 2, 3}
    assert len(batch) == 9  # seven that are patched, and the two prompts as they are


def test_a_single_patched_run_begins_at_the_embedding() -> None:
    """The unchanged run, which it could begin with, would cost more than it saves; two of them pay for it."""
    one, other = (plan(WORLD, patch(L.RESID_POST_MLP, 2, position)) for position in (1, 2))
    ((source, found),) = arranged(one).batches
    assert (source.run.token_ids, found.first_layer, found.base) == (CLEAN, 0, None)
    (batch,) = arranged(one, other).batches
    assert [node.first_layer for node in batch] == [0, 0, 2, 2]


def test_what_is_needed_of_a_layer_keeps_a_run_from_beginning_after_it() -> None:
    site: Site = (L.MLP_PRE_ACT, 1)
    early = plan(WORLD, patch(L.RESID_POST_MLP, 2, 1), values=[site])
    assert arranged(early, plan(WORLD)).of_plans[0].first_layer == 1
    traced = plan(WORLD, patch(L.RESID_POST_MLP, 2, 1), gradients=[(L.RESID_POST_EMBEDDING, None)])
    assert arranged(traced, plan(WORLD)).of_plans[0].base is None


def test_runs_that_are_read_go_first_where_not_all_fit_into_one_batch() -> None:
    plans = [plan(WORLD, patch(L.RESID_POST_MLP, layer, position)) for layer in (1, 2) for position in range(6)]
    first, *others = arranged(*plans, max_tokens=30).batches
    assert [node.run.token_ids for node in first] == [CLEAN, CORRUPT]
    assert [len(batch) for batch in others] == [5, 5, 2]
    clean, corrupt = first
    assert clean.recorded == {(L.RESID_POST_MLP, 1), (L.RESID_POST_MLP, 2)}
    assert corrupt.recorded == {site_entering(1), site_entering(2)}
    results = run(plans, WORLD.decoder, WORLD.sets, max_tokens=30)
    assert [[batch.size for batch in result.batches] for result in results] == [[2, 5]] * 10 + [[2, 2]] * 2


def test_who_reads_a_run_that_is_asked_for_reads_that_one() -> None:
    clean, corrupt, changed = plan(WORLD, tokens=CLEAN), plan(WORLD), plan(WORLD, patch(L.RESID_POST_MLP, 1))
    for plans in ([clean, corrupt, changed], [changed, corrupt, clean]):
        (batch,) = arranged(*plans).batches
        assert len(batch) == 3
        assert run(plans, WORLD.decoder, WORLD.sets)[plans.index(changed)].loss == pytest.approx(
            run([changed], WORLD.decoder, WORLD.sets)[0].loss
        )


def test_gradients_of_a_run_are_its_own_whoever_reads_it_or_begins_with_it() -> None:
    """Though all losses of a batch are differentiated together."""
    sites = [site for site in everything_from(WORLD, 0) if site[0] is not L.LOGITS]
    clean, corrupt = (plan(WORLD, tokens=tokens, gradients=sites) for tokens in (CLEAN, CORRUPT))
    changed = plan(WORLD, patch(L.RESID_POST_MLP, 1, 2), gradients=[(L.RESID_DELTA_ATTN, 2)])
    found = run([clean, corrupt, changed], WORLD.decoder, WORLD.sets)
    assert arranged(clean, corrupt, changed).of_plans[2].first_layer == 1
    for together, one in zip(found, (clean, corrupt, changed), strict=True):
        assert_equal(together, run([one], WORLD.decoder, WORLD.sets)[0])


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_batch_from_kept_residuals_is_to_the_bit_that_from_the_start(name: str, layer: int) -> None:
    """In float32, on the same batch shape, gradients too."""
    world = models.world(config=models.ARCHITECTURES[name], dtype=torch.float32)
    sites = frozenset(everything_from(world, layer))
    gradients = frozenset(site for site in sites if site[0] is not L.LOGITS)
    changed = patch(L.RESID_DELTA_MLP, 2, 3) if layer < 3 else patch(L.LOGITS, None, 5, 7)
    runs = [plan(world, tokens=CLEAN).run, plan(world).run, plan(world, changed).run, plan(world, tokens=LONG).run]
    entering = site_entering(layer)
    values = sites | {entering}
    rows = [Row(one, values, gradients, {"clean": 0} if one.interventions else {}) for one in runs]
    _, whole = run_batch(rows, world.decoder, {}, splices={})
    late = [
        replace(row, values=sites, start=Start(layer=layer, base=recording.taps.values[entering]))
        for row, recording in zip(rows, whole, strict=True)
    ]
    _, again = run_batch(late, world.decoder, {}, splices={})
    for found, expected in zip(again, whole, strict=True):
        assert found.scalars == expected.scalars
        for site in sites:
            assert torch.equal(found.taps.values[site], expected.taps.values[site]), site
        for site, gradient in expected.taps.gradients.items():
            assert torch.equal(found.taps.gradients[site], gradient), site
