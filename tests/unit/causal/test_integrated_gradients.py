"""Integrated gradients of token embeddings, against golden data and their completeness."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch

from dst_grpc.causal.attribution import Pair
from dst_grpc.causal.integrated_gradients import IntegratedGradients
from dst_grpc.causal.paths import points
from dst_grpc.domain.attribute import Baseline, PathRule
from dst_grpc.scalars.origins import LossOrigin
from tests import models
from tests.causal_goldens import CASES, assert_golden, golden_case, golden_decoder, pairs_of

RULES = {
    "left": PathRule.LEFT,
    "right": PathRule.RIGHT,
    "middle": PathRule.MIDDLE,
    "trapezoid": PathRule.TRAPEZOID,
    "gausslegendre": PathRule.GAUSS_LEGENDRE,
}
PAIR = Pair(models.TOKENS, (3, 1, 2, 1, 5, 0), LossOrigin(models.LOSS))


@pytest.mark.parametrize("baseline", [Baseline.CORRUPT, Baseline.ZERO])
@pytest.mark.parametrize("name", CASES)
def test_every_rule_gives_the_golden_attributions_and_residual(name: str, baseline: Baseline) -> None:
    case = golden_case(name)
    residuals = case.facts["ig"]["completeness_residual"]
    is_steep = baseline is Baseline.ZERO and case.model in {"llama", "gemma2"}
    keys = [rule for rule in RULES if f"ig.{baseline}.{rule}" in case.tensors]
    assert len(keys) == (3 if is_steep else 5)
    for key in keys:
        golden = case.tensors[f"ig.{baseline}.{key}"]
        asked = IntegratedGradients(golden_decoder(case.model), rule=RULES[key], baseline=baseline)
        (found,) = asked.add(pairs_of(case))
        assert_golden(asked.attributions.sum(dim=1), golden, relative=1e-4 if is_steep else 2e-5, of_largest=1e-4)
        assert found.metric == pytest.approx(case.facts["metric_clean"], rel=2e-5)
        assert found.at_baseline == pytest.approx(residuals[f"{baseline}.metric_at_baseline"], abs=2e-5)
        assert found.residual == pytest.approx(residuals[f"{baseline}.{key}"], abs=1e-4 * golden.abs().sum().item())
        if f"ig.{baseline}.{key}.by_channel" in case.tensors:
            by_channel = case.tensors[f"ig.{baseline}.{key}.by_channel"]
            assert_golden(asked.attributions, by_channel, relative=1e-4 if is_steep else 2e-5, of_largest=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
@pytest.mark.parametrize("baseline", [Baseline.CORRUPT, Baseline.MEAN])
def test_attributions_add_up_to_the_change_of_the_metric(name: str, baseline: Baseline) -> None:
    """On a smooth path the rule converges faster than any power of the number of points."""
    decoder = models.decoder(config=models.ARCHITECTURES[name])
    asked = IntegratedGradients(decoder, steps=320, baseline=baseline)
    (found,) = asked.add([PAIR])
    assert abs(found.residual) < 1e-9 * asked.attributions.abs().sum()
    assert asked.attributions.sum().item() == pytest.approx(found.metric - found.at_baseline)


def test_a_shorter_prompt_of_a_batch_is_attributed_as_it_is_alone() -> None:
    decoder = models.decoder(config=models.ARCHITECTURES["gemma"])
    short = replace(PAIR, base=PAIR.base[:4], source=PAIR.source[:4])
    together, alone, other = (IntegratedGradients(decoder) for _ in range(3))
    for found, expected in zip(together.add([short, PAIR]), [*alone.add([short]), *other.add([PAIR])], strict=True):
        assert astuple(found) == pytest.approx(astuple(expected))
    sums = torch.nn.functional.pad(alone.attributions, (0, 0, 0, 2)) + other.attributions
    torch.testing.assert_close(together.attributions, sums / 2)


@pytest.mark.parametrize("rule", PathRule)
def test_weights_of_a_path_add_up_to_one_and_integrate_a_constant_slope(rule: PathRule) -> None:
    found = points(rule, 7)
    assert len(found) == (8 if rule is PathRule.TRAPEZOID else 7)
    assert sum(weight for _, weight in found) == pytest.approx(1)
    middle = sum(alpha * weight for alpha, weight in found)
    assert middle == pytest.approx({PathRule.LEFT: 3 / 7, PathRule.RIGHT: 4 / 7}.get(rule, 0.5))


def test_gauss_legendre_is_exact_for_polynomials_of_degree_2m_minus_1() -> None:
    found = points(PathRule.GAUSS_LEGENDRE, 3)
    assert sum(weight * alpha**5 for alpha, weight in found) == pytest.approx(1 / 6)
