"""Scores of edges towards any alternative: golden data of EAP-IG, and differences of values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dst_grpc.causal.alternative_scores import AlternativePath
from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.writes import Alternative, MeanWrites, Writes, record
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.scalars.origins import ForwardPass, LossOrigin
from tests import models
from tests.causal_goldens import CASES, assert_golden
from tests.unit.causal.cutting import GoldenPair, Pair

METRIC = LossOrigin(LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(2,), distractor_token_ids=(7,)))
STEP = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_towards_another_prompt_they_are_those_of_eap_ig(name: str) -> None:
    two = GoldenPair.of(name)
    config = LossFnConfig(
        name=LossFnName.LOGIT_DIFF, target_token_ids=(two.case.target,), distractor_token_ids=(two.case.distractor,)
    )
    path = AlternativePath(two.decoder, two.base, two.other.writes, [LossOrigin(config)], steps=5)
    scores, n_passes = path.edge_scores(two.graph)
    assert n_passes > 0
    assert_golden(scores, two.case.tensors["eap_ig.right"], of_largest=1e-4)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_at_the_run_itself_they_are_first_order_effects(name: str, kind: str) -> None:
    decoder = models.decoder(config=models.ARCHITECTURES[name])
    two = Pair(decoder, models.TOKENS, (3, 1, 8, 1, 2, 9))
    mean = MeanWrites(by_position=True)
    mean.add(record([two.corrupt, (4, 4, 7, 1, 1, 2)], decoder))
    writes = Writes.zero(decoder) if kind == "zero" else mean.mean(decoder.dtype)
    scores, _ = AlternativePath(decoder, two.base, writes, [METRIC], steps=1).edge_scores(two.graph)
    own = two.base.writes
    small = Writes(
        own.embedding + STEP * (writes.embedding - own.embedding),
        tuple(a + STEP * (b - a) for a, b in zip(own.heads, writes.heads, strict=True)),
        tuple(a + STEP * (b - a) for a, b in zip(own.mlps, writes.mlps, strict=True)),
    )
    runs = CutRuns(decoder, two.graph, two.base, Alternative.of(small, decoder, len(models.TOKENS)))
    edges = np.random.default_rng(0).permutation(np.argwhere(two.graph.mask))[:25]
    after = runs.logits([two.edge(s, r) for s, r in edges])
    before = METRIC(two.logits(models.TOKENS))
    effects = torch.stack([(METRIC(one) - before) / STEP for one in after])
    found = scores[tuple(edges.T)]
    # A difference over a step is off by its second derivative, about as large as the first, times the step.
    torch.testing.assert_close(found, effects, rtol=1e-2, atol=1e-3 * float(scores.abs().max()))


class Towards(LossOrigin):
    """KL from constant logits, as a scalar of the run's own logits alone."""

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        log_p = CONSTANT.log_softmax(dim=-1)
        return (log_p.exp() * (log_p - run.logits((3,))[0].log_softmax(dim=-1))).sum()


CONSTANT = torch.linspace(-1, 2, models.CONFIG.vocab_size, dtype=torch.float64)


def test_a_divergence_is_from_the_logits_that_are_given() -> None:
    decoder = models.decoder()
    two = Pair(decoder, models.TOKENS, (3, 1, 8, 1, 2, 9))
    divergence = LossFnConfig(name=LossFnName.KL_DIVERGENCE)
    metric = LossOrigin(divergence, positions=(3,), reference=("source", 3))
    path = AlternativePath(decoder, two.base, two.other.writes, [metric], steps=3, references=[CONSTANT])
    given, _ = path.edge_scores(two.graph)
    by_hand = Towards(divergence, positions=(3,))
    expected, _ = AlternativePath(decoder, two.base, two.other.writes, [by_hand], steps=3).edge_scores(two.graph)
    torch.testing.assert_close(given, expected)
    assert expected.abs().max() > 1e-4


def test_several_prompts_are_the_sum_of_each_and_pads_count_nothing() -> None:
    decoder = models.decoder(config=models.ARCHITECTURES["gemma"])
    graph = Pair(decoder, models.TOKENS, models.TOKENS).graph
    prompts, others = [models.TOKENS, (4, 4, 7)], [(3, 1, 8, 1, 2, 9), (4, 5, 7)]

    def scores(places: list[int]) -> torch.Tensor:
        base, other = (record([each[i] for i in places], decoder) for each in (prompts, others))
        return AlternativePath(decoder, base, other.writes, [METRIC] * len(places), steps=3).edge_scores(graph)[0]

    torch.testing.assert_close(scores([0, 1]), scores([0]) + scores([1]))
