"""An intervention that the package does not know: it averages with what other runs recorded, and needs one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from dst_grpc.domain.interventions import UNCHANGED, Action, Context, Intervention, Reading, ScaleValue, Values
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests import models, plain

WORLD = models.world(T.MLP_POST_ACT)
OTHER_TOKENS = (2, 6, 5, 3, 5, 8)
SITES: dict[L, Site] = {
    L.RESID_POST_MLP: (L.RESID_POST_MLP, 1),
    L.ATTN_QK_PROBS: (L.ATTN_QK_PROBS, 0),
    L.ONLINE_MLP_AUTOENCODER_LATENT: (L.ONLINE_MLP_AUTOENCODER_LATENT, 2),
    L.RESID_POST_EMBEDDING: (L.RESID_POST_EMBEDDING, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanWith(Action):
    """The mean with the same entries of other runs."""

    arm: ClassVar[str] = "mean_with"
    others: tuple[str, ...]

    @property
    def readings(self) -> tuple[Reading, ...]:
        return tuple(Reading(run=name) for name in self.others)

    def apply(self, x: Values, context: Context) -> Values:
        for name in self.others:
            x = x + context.of_run(name)
        return x * (1 / (1 + len(self.others)))


def intervention(location: L, *others: str, axes: tuple[Any, ...] = ()) -> Intervention:
    location, layer = SITES[location]
    at = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
    return Intervention(at=at, action=MeanWith(others=others))


def plan(*interventions: Intervention, tokens: tuple[int, ...] = models.TOKENS, **sources: Plan) -> Plan:
    """The plan of a request with *interventions*, which read the runs of *sources* by name."""
    given = {one.name: one for source in sources.values() for one in source.request.source_runs}
    for name, source in sources.items():
        own, prompt = source.request.interventions, source.request.prompt
        given[name] = SourceRun(name=name, prompt=prompt, interventions=own)
    request = models.request(
        tokens=tokens,
        interventions=interventions,
        source_runs=tuple(given.values()),
        autoencoders=tuple(WORLD.sets),
        loss_fn_config=models.LOSS,
    )
    sites = frozenset({*SITES.values(), (L.RESID_POST_MLP, 2)})
    return replace(make_plan(request, WORLD.registry), values=sites, gradients=sites)


def values(*plans: Plan) -> list[Mapping[Site, torch.Tensor]]:
    return [result.recording.taps.values for result in run(plans, WORLD.decoder, WORLD.sets)]


@pytest.mark.parametrize("location", SITES)
def test_it_reads_what_another_run_recorded(location: L) -> None:
    other = plan(tokens=OTHER_TOKENS)
    mixed = plan(intervention(location, "other"), other=other)
    plain, of_other = values(plan(), other)
    (found,) = values(mixed)
    torch.testing.assert_close(found[SITES[location]], (plain[SITES[location]] + of_other[SITES[location]]) / 2)
    assert not torch.allclose(found[L.RESID_POST_MLP, 2], plain[L.RESID_POST_MLP, 2])


def test_only_the_selected_entries_are_mixed() -> None:
    other = plan(tokens=OTHER_TOKENS)
    (found,) = values(plan(intervention(L.RESID_POST_MLP, "other", axes=(3,)), other=other))
    plain, of_other = values(plan(), other)
    site = SITES[L.RESID_POST_MLP]
    expected = plain[site].clone()
    expected[3] = (plain[site][3] + of_other[site][3]) / 2
    torch.testing.assert_close(found[site], expected)


def test_a_run_that_is_read_may_read_others_itself() -> None:
    """Each is executed once, beside whoever reads it and runs that read nothing."""
    far = plan(tokens=OTHER_TOKENS)
    near = plan(intervention(L.RESID_POST_EMBEDDING, "far"), far=far)
    both = plan(intervention(L.RESID_POST_MLP, "near", "far"), near=near, far=far)
    results = run([plan(), near, both, both], WORLD.decoder, WORLD.sets)
    plain, of_near, of_both, again = (result.recording.taps.values for result in results)
    (of_far,) = values(far)
    site = SITES[L.RESID_POST_MLP]
    torch.testing.assert_close(of_both[site], (plain[site] + of_near[site] + of_far[site]) / 3)
    torch.testing.assert_close(again[site], of_both[site])
    assert [[batch.size for batch in result.batches] for result in results] == [[5]] * 4
    assert results[2].statistics.forward_passes == 1


def test_it_may_read_its_own_run_without_interventions() -> None:
    """Halfway back to what would have been without the intervention before it."""
    at = TapSelection(activation_location_type=L.RESID_POST_EMBEDDING)
    moved = Intervention(at=at, action=ScaleValue(factor=2.0))
    plain, of_moved = values(plan(), plan(moved))
    (found,) = values(plan(moved, intervention(L.RESID_POST_MLP, UNCHANGED)))
    site = SITES[L.RESID_POST_MLP]
    torch.testing.assert_close(found[site], (of_moved[site] + plain[site]) / 2)


def test_gradients_pass_it_but_not_the_run_that_it_reads() -> None:
    site: Site = SITES[L.RESID_POST_MLP]
    other = plan(tokens=OTHER_TOKENS)
    (result,) = run([plan(intervention(L.RESID_POST_MLP, "other"), other=other)], WORLD.decoder, WORLD.sets)
    (of_other,) = values(other)
    reference = plain.Plain(models.CONFIG, models.weights())

    def edit(at: Site, x: torch.Tensor) -> torch.Tensor:
        if at == (L.RESID_POST_EMBEDDING, None):
            return x.requires_grad_()
        return (x + of_other[site]) / 2 if at == site else x

    taps = reference.run(models.TOKENS, edit)
    logits = taps[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    wanted: list[Site] = [site, (L.RESID_POST_EMBEDDING, None)]
    for at, gradient in zip(wanted, torch.autograd.grad(loss, [taps[at] for at in wanted]), strict=True):
        torch.testing.assert_close(result.recording.taps.gradients[at], gradient)


def test_runs_that_read_others_have_keys_of_their_own() -> None:
    other, third = plan(tokens=OTHER_TOKENS), plan(tokens=OTHER_TOKENS[::-1])
    change = intervention(L.RESID_POST_MLP, "other")
    keys = {plan(change, other=source).run_key for source in (other, third)} | {plan().run_key, other.run_key}
    assert len(keys) == 4
