"""An origin that the package does not know: the squared length of a tap. It needs one class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.runs import GradientPass
from dst_grpc.scalars.origins import ForwardPass
from tests import models, plain

WORLD = models.world()
UPSTREAM: Site = (L.MLP_POST_ACT, 0)


@dataclass(frozen=True)
class SquaredNorm:
    """The sum of squares of a tap."""

    site: Site

    @property
    def needs_logits(self) -> bool:
        return False

    @property
    def positions(self) -> tuple[int, ...]:
        return ()

    @property
    def reference(self) -> None:
        return None

    @property
    def values(self) -> frozenset[Site]:
        return frozenset({self.site})

    @property
    def attached(self) -> frozenset[Site]:
        return frozenset({self.site})

    def depends_on(self, site: Site) -> bool:
        return (site[1] or 0) <= (self.site[1] or 0)

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        return run.attached(self.site).square().sum()


def plan(origin: SquaredNorm, *types: T, tokens: tuple[int, ...] = models.TOKENS) -> Plan:
    planned = make_plan(models.request(*types, tokens=tokens, loss_fn_config=models.LOSS), WORLD.registry)
    passes = (GradientPass(origin=origin),)
    changed = replace(planned.run, origins=(origin,), passes=passes)
    return replace(planned, run=changed, loss=None, gradients=frozenset({UPSTREAM}))


@pytest.mark.parametrize("site", [(L.RESID_POST_MLP, 1), (L.ATTN_QK_PROBS, 2), (L.MLP_POST_ACT, 0)])
def test_its_value_and_its_gradients_are_those_of_the_plain_model(site: Site) -> None:
    """In a batch with another prompt, whose own origin is another."""
    beside = plan(SquaredNorm((L.RESID_DELTA_MLP, 2)), tokens=(1, 2))
    result, _ = run([plan(SquaredNorm(site)), beside], WORLD.decoder, WORLD.sets)
    reference = plain.Plain(models.CONFIG, models.weights())
    leaf: dict[Site, torch.Tensor] = {}

    def edit(at: Site, x: torch.Tensor) -> torch.Tensor:
        return leaf.setdefault(at, x.detach().requires_grad_()) if at == UPSTREAM else x

    value = reference.run(models.TOKENS, edit)[site].square().sum()
    (expected,) = torch.autograd.grad(value, leaf[UPSTREAM])
    (scalar,) = result.recording.scalars
    assert scalar == pytest.approx(value.item())
    torch.testing.assert_close(result.recording.taps.gradients[UPSTREAM], expected)


def test_what_it_does_not_depend_on_does_not_run() -> None:
    (result,) = run([plan(SquaredNorm((L.RESID_POST_MLP, 0)))], WORLD.decoder, WORLD.sets)
    assert result.plan.stop_after_layer == 0
    assert (result.loss, result.activation_value) == (None, None)


def test_derived_scalars_read_its_gradients() -> None:
    planned = replace(plan(SquaredNorm((L.RESID_POST_MLP, 2)), T.MLP_ACT_TIMES_GRAD))
    sites = frozenset((L.MLP_POST_ACT, layer) for layer in range(3))
    (result,) = run([replace(planned, values=sites, gradients=sites)], WORLD.decoder, WORLD.sets)
    ((found,),) = (result.derivation(scalar).at(0).values() for scalar in planned.scalars)
    taps = result.recording.taps
    torch.testing.assert_close(found, taps.values[UPSTREAM] * taps.gradients[UPSTREAM])
