"""Runs of several gradient passes: each starts from an origin of its own, with changes of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.interventions import DetachGradient, Intervention, ScaleValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.recording import weighted_sum
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.store import RecordingStore
from tests import models

WORLD = models.world()
OTHER = LossFnConfig(name=LossFnName.PROBS, target_token_ids=(4,))
SITES: frozenset[Site] = frozenset({(L.RESID_POST_EMBEDDING, None), (L.MLP_POST_ACT, 1), (L.ATTN_QK_PROBS, 2)})
CUT = Intervention(
    at=TapSelection(activation_location_type=L.RESID_POST_MLP, layer_index=1, pass_type=PassType.BACKWARD),
    action=DetachGradient(),
)


def plan(loss: LossFnConfig, *changes: Intervention, tokens: tuple[int, ...] = models.TOKENS) -> Plan:
    request = models.request(T.MLP_ACT_TIMES_GRAD, tokens=tokens, loss_fn_config=loss, interventions=changes)
    planned = make_plan(request, WORLD.registry)
    return replace(planned, values=planned.values | SITES, gradients=planned.gradients | SITES)


def with_passes_of(first: Plan, second: Plan, *weights: float) -> Plan:
    """The first plan, with the gradient pass of the second after its own."""
    passes = zip((*first.run.passes, *second.run.passes), weights, strict=True)
    weighted = tuple(replace(one, weight=weight) for one, weight in passes)
    return replace(first, run=replace(first.run, passes=weighted))


@pytest.mark.parametrize("change", [(), (CUT,)])
def test_each_pass_gives_what_it_gives_alone(change: tuple[Intervention, ...]) -> None:
    """In a batch with a run of one pass, and with changes of gradients in one of the two passes."""
    first, second = plan(models.LOSS), plan(OTHER, *change)
    both = with_passes_of(first, second, 0.25, 0.75)
    beside = plan(models.LOSS, CUT, tokens=(7, 7))
    result, other = run([both, beside], WORLD.decoder, WORLD.sets)
    alone = [one.recording.taps.gradients for one in run([first, second], WORLD.decoder, WORLD.sets)]
    assert (len(result.recording.passes), len(other.recording.passes)) == (2, 1)
    assert result.statistics.backward_passes == 2
    for found, expected in zip(result.recording.passes, alone, strict=True):
        assert found.keys() == expected.keys()
        for site, gradient in expected.items():
            torch.testing.assert_close(found[site], gradient)
    for site in SITES:
        weighted = 0.25 * alone[0][site] + 0.75 * alone[1].get(site, torch.zeros(()))
        torch.testing.assert_close(result.recording.taps.gradients[site], weighted)
    (expected_other,) = run([beside], WORLD.decoder, WORLD.sets)
    for site, gradient in expected_other.recording.taps.gradients.items():
        torch.testing.assert_close(other.recording.taps.gradients[site], gradient)


def test_derived_scalars_read_the_weighted_sum() -> None:
    both = with_passes_of(plan(models.LOSS), plan(OTHER), 2.0, -1.0)
    of_each = run([plan(models.LOSS), plan(OTHER)], WORLD.decoder, WORLD.sets)
    (result,) = run([both], WORLD.decoder, WORLD.sets)
    found, first, second = (models.tensors(one) for one in (result, *of_each))
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, 2 * first[key] - second[key])


def test_they_are_kept_and_merged_like_any_recording() -> None:
    both = with_passes_of(plan(models.LOSS), plan(OTHER), 1.0, 1.0)
    narrow = replace(both, gradients=frozenset({(L.MLP_POST_ACT, 1)}))
    wide = replace(both, gradients=SITES)
    store = RecordingStore()
    for one in (narrow, wide):
        (result,) = run([one], WORLD.decoder, WORLD.sets)
        store.keep(one, result.recording, batch_size=2)
    kept = store.find(wide)
    assert kept is not None
    assert [gradients.keys() for gradients in kept.passes] == [SITES, SITES]
    assert store.find(plan(models.LOSS)) is None


def test_a_path_of_integrated_gradients_is_one_batch_whose_gradients_are_added_up() -> None:
    """From half the embeddings to all: what the points' gradients add up to is the whole change of the loss."""
    points, weights = np.polynomial.legendre.leggauss(20)
    site: Site = (L.RESID_POST_EMBEDDING, None)

    def scaled(factor: float) -> Plan:
        at = TapSelection(activation_location_type=L.RESID_POST_EMBEDDING)
        planned = plan(models.LOSS, Intervention(at=at, action=ScaleValue(factor=factor)))
        return replace(planned, gradients=frozenset({site}))

    factors = [0.75 + 0.25 * float(point) for point in points]
    results = run([scaled(factor) for factor in (*factors, 0.5, 1.0)], WORLD.decoder, WORLD.sets)
    path, (start, end) = results[:20], results[20:]
    assert {result.batch_size for result in results} == {22}
    mean = weighted_sum([result.recording.passes[0] for result in path], [float(weight) / 2 for weight in weights])
    change = end.recording.taps.values[site] - start.recording.taps.values[site]
    assert end.loss is not None
    assert start.loss is not None
    assert (change * mean[site]).sum().item() == pytest.approx(end.loss - start.loss, rel=1e-6)
