"""Rules for how gradients pass norms, softmax and gates that the package does not know: one class each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.layer import Layer
from dst_grpc.engine.norm import Norm
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import RunResult, run
from tests import models, plain

WORLDS = {name: models.world(config=models.ARCHITECTURES[name]) for name in ("gpt2", "gemma", "llama")}
SITES: frozenset[Site] = frozenset({(L.RESID_POST_EMBEDDING, None), (L.RESID_POST_MLP, 1)})
SCALE: Site = (L.MLP_INPUT_LAYER_NORM_SCALE, 1)


@dataclass(frozen=True, slots=True)
class ConstantScales(Propagation):
    """No gradient passes a norm's scale."""

    def normed(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return norm(x, detach_scale=True)

    def scale(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return norm.scale(x).detach()


@dataclass(frozen=True, slots=True)
class ConstantProbabilities(Propagation):
    """No gradient passes attention's probabilities."""

    fuses_attention: ClassVar[bool] = False

    def probs(self, layer: Layer, scores: torch.Tensor) -> torch.Tensor:
        return layer.attn_probs(scores).detach()


@dataclass(frozen=True, slots=True)
class ScaledGates(Propagation):
    """What arrives at the neurons is multiplied on its way to what is before them."""

    factor: float

    def act(self, layer: Layer, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        act = layer.mlp_act(pre, up)
        return act.detach() + self.factor * (act - act.detach())


class PlainWithConstantScales(plain.Plain):
    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return super().scale(x).detach()


def plan(name: str, propagation: Propagation, *, values: frozenset[Site] = SITES) -> Plan:
    planned = make_plan(models.request(loss_fn_config=models.LOSS), WORLDS[name].registry)
    run = replace(planned.run, propagation=propagation)
    return replace(planned, values=values, gradients=SITES, run=run)


def result(name: str, propagation: Propagation, *, values: frozenset[Site] = SITES) -> RunResult:
    (found,) = run([plan(name, propagation, values=values)], WORLDS[name].decoder, {})
    return found


def expected(name: str, propagation: Propagation) -> dict[Site, torch.Tensor]:
    """Gradients of the plain model with the same rule."""
    config, weights = models.ARCHITECTURES[name], models.weights(0, models.ARCHITECTURES[name])
    has_constant_scales = isinstance(propagation, ConstantScales)
    reference = (PlainWithConstantScales if has_constant_scales else plain.Plain)(config, weights)

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        if site == (L.RESID_POST_EMBEDDING, None):
            return x.requires_grad_()
        if site[0] is L.ATTN_QK_PROBS and isinstance(propagation, ConstantProbabilities):
            return x.detach()
        if site[0] is L.MLP_POST_ACT and isinstance(propagation, ScaledGates):
            return x.detach() + propagation.factor * (x - x.detach())
        return x

    taps = reference.run(models.TOKENS, edit)
    logits = taps[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    sites = list(SITES)
    return dict(zip(sites, torch.autograd.grad(loss, [taps[site] for site in sites]), strict=True))


@pytest.mark.parametrize("rule", [PLAIN, ConstantScales(), ConstantProbabilities(), ScaledGates(0.5)])
@pytest.mark.parametrize("name", WORLDS)
def test_values_stay_and_gradients_follow_the_rule(name: str, rule: Propagation) -> None:
    found, plainly = result(name, rule), result(name, PLAIN)
    assert found.loss == pytest.approx(plainly.loss)
    for site, gradient in expected(name, rule).items():
        torch.testing.assert_close(found.recording.taps.gradients[site], gradient)
        assert torch.allclose(gradient, plainly.recording.taps.gradients[site]) is (rule is PLAIN)


def test_a_scale_that_is_tapped_follows_the_rule_too() -> None:
    tapped, plainly = (result("gpt2", ConstantScales(), values=values) for values in (SITES | {SCALE}, SITES))
    for site in SITES:
        torch.testing.assert_close(tapped.recording.taps.gradients[site], plainly.recording.taps.gradients[site])


def test_runs_of_another_rule_are_other_runs() -> None:
    keys = {plan("gpt2", rule).run_key for rule in (PLAIN, ConstantScales(), ScaledGates(0.5), ScaledGates(2.0))}
    assert len(keys) == 4
