"""Means over the reference prompts of a pair's own length: each pair's is a mean by position over these alone."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.client import PromptPair, make_circuit_request, make_pair, make_patch_request
from dst_grpc.domain.circuit import CircuitEvaluation, CircuitNodes
from dst_grpc.domain.patch_answers import PatchedCells
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.circuit_answer import CircuitAnswer
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.run import run
from tests import models

WORLD = models.world(T.MLP_POST_ACT)
PROMPTS = [(3, 1, 4, 1, 5, 9), (2, 7, 1), (8, 2, 8, 1, 8, 2), (4, 4, 7)]
REFERENCE = [(3, 1, 8, 1, 2, 9), (4, 5, 7), (9, 2, 6, 5, 3, 5), (1, 4, 4, 4), (6, 6, 2)]
CIRCUITS = [["a0.h1->m1", "input", "m1"], ["input", "m0", "a1.h0"]]


def pair(tokens: tuple[int, ...]) -> PromptPair:
    return make_pair(tokens, target=[2], distractor=[11])


def of_circuits(prompts: list[tuple[int, ...]], **arguments: Any) -> tuple[list[list[float]], list[float]]:
    """The metrics of every circuit by pair, and the scores of nodes, if there are any."""
    asked = plan_circuit(make_circuit_request(pairs=[pair(one) for one in prompts], **arguments), WORLD.registry)
    answer = CircuitAnswer(asked, run([asked.plan], WORLD.decoder, WORLD.sets), WORLD.context, WORLD.sets)
    values = [part.value for step in answer.steps() for part in step]
    scores = [value for value in values if isinstance(value, CircuitNodes)]
    metrics = [list(value.metrics) for value in values if isinstance(value, CircuitEvaluation)]
    return metrics, list(scores[-1].scores) if scores else []


@pytest.mark.parametrize("latents", [False, True])
def test_a_circuit_has_for_each_pair_the_mean_over_prompts_of_its_length(latents: bool) -> None:
    asked: dict[str, Any] = {"circuits": CIRCUITS}
    if latents:
        asked = {"latents": True, "autoencoders": tuple(WORLD.sets), "circuits": [["input", "m0.l3", "a0.h1", "m1"]]}
        asked |= {"curve": True, "with_scores": True, "fractions": [0.5], "wanted_faithfulness": -1e9}
    together, scores = of_circuits(PROMPTS, alternative="mean_by_length", reference=REFERENCE, **asked)
    alone = []
    for prompt in PROMPTS:
        same = [one for one in REFERENCE if len(one) == len(prompt)]
        alone.append(of_circuits([prompt], alternative="mean_by_position", reference=same, **asked))
    if latents:
        expected = [sum(each) / len(PROMPTS) for each in zip(*(of_scores for _, of_scores in alone), strict=True)]
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-7)
        return  # circuits of the curve are of the mean scores
    for i, metrics in enumerate(together):
        assert metrics == pytest.approx([one[i][0] for one, _ in alone], rel=1e-9, abs=1e-10)


def test_patching_has_for_each_pair_the_mean_over_prompts_of_its_length() -> None:
    def metrics(prompts: list[tuple[int, ...]], **arguments: Any) -> dict[tuple[int, int, int], float]:
        request = make_patch_request(
            pairs=[pair(one) for one in prompts],
            nodes=["head", "resid_mid"],
            all_positions=True,
            edges=["a0.h1->m1", "input->logits"],
            **arguments,
        )
        asked = plan_patch(request, WORLD.registry)
        answer = PatchAnswer(asked, run([asked.plan], WORLD.decoder, WORLD.sets), WORLD.context, WORLD.sets)
        cells = [part.value for step in answer.steps() for part in step if isinstance(part.value, PatchedCells)]
        return {
            (part.pair, part.grid, cell): metric
            for part in cells
            for cell, metric in zip(part.cells, part.metrics, strict=True)
        }

    together = metrics(PROMPTS, alternative="mean_by_length", reference=REFERENCE)
    for i, prompt in enumerate(PROMPTS):
        same = [one for one in REFERENCE if len(one) == len(prompt)]
        alone = metrics([prompt], alternative="mean_by_position", reference=same)
        assert {key[1:]: metric for key, metric in together.items() if key[0] == i} == pytest.approx(
            {key[1:]: metric for key, metric in alone.items()}, rel=1e-9, abs=1e-10
        )


def test_a_pair_needs_a_prompt_of_its_length() -> None:
    request = make_circuit_request(
        pairs=[pair(one) for one in [*PROMPTS, (5, 6)]],
        alternative="mean_by_length",
        reference=REFERENCE,
        circuits=[[]],
    )
    with pytest.raises(InvalidRequest) as caught:
        plan_circuit(request, WORLD.registry)
    assert [one.field for one in caught.value.violations] == ["pairs[4].clean"]
