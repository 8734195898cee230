"""Planning of pairs: what is wrong with one is named by its own place in the request, whatever is wrong with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dst_grpc.client import make_attribute_request, make_circuit_request, make_pair, make_patch_request
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.engine.cancellation import Cancellation
from dst_grpc.errors import Cancelled, InvalidRequest
from dst_grpc.pipeline import pair_planner
from dst_grpc.pipeline.attribute_planner import plan_attribute
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.losses import by_ids
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.planner import plan_run
from tests.unit.pipeline.planning import WORLD

UNKNOWN, LONG, SHORT = (99, 1), (1, 2, 3, 4), (1, 2)
MEAN: dict[str, Any] = {"alternative": "mean_by_position", "reference": [SHORT]}


def attribute(pairs: list[Any]) -> object:
    return plan_attribute(make_attribute_request(pairs=pairs, by_position=True), WORLD.registry)


def circuit(pairs: list[Any]) -> object:
    return plan_circuit(make_circuit_request(pairs=pairs, **MEAN), WORLD.registry)


def patch(pairs: list[Any]) -> object:
    return plan_patch(make_patch_request(nodes="resid_pre", pairs=pairs, **MEAN), WORLD.registry)


@pytest.mark.parametrize("plan", [attribute, circuit, patch])
def test_a_pair_after_one_that_cannot_be_planned_is_named_by_its_own_place(plan: Callable[[list[Any]], object]) -> None:
    pairs = [make_pair(clean, clean, target=[2]) for clean in (UNKNOWN, SHORT, LONG)]
    with pytest.raises(InvalidRequest) as caught:
        plan(pairs)
    fields = [violation.field for violation in caught.value.violations]
    assert fields[-1] == "pairs[2].clean"
    assert {field.partition(".")[0] for field in fields} == {"pairs[0]", "pairs[2]"}


# Nothing is done once for each pair that is the same for all


def refused(plan: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        plan()
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize("plan", [attribute, circuit, patch])
def test_the_tokens_of_a_metric_are_looked_up_once(
    monkeypatch: pytest.MonkeyPatch, plan: Callable[[list[Any]], object]
) -> None:
    """Else 1000 pairs with a metric of 1000 tokens, 53 kB, take 20 s to plan; or to refuse, if they are none."""
    looked_up: Counter[Any] = Counter()

    def noted(given: Any, *arguments: Any) -> Any:
        looked_up[given] += 1
        return by_ids(given, *arguments)

    monkeypatch.setattr(pair_planner, "by_ids", noted)
    plan([make_pair((1, i), (2, i), target=[2]) for i in (1, 2, 3)])
    assert list(looked_up.values()) == [1]
    looked_up.clear()
    found = refused(lambda: plan([make_pair((1, i), (2, i), target=[99]) for i in (1, 2, 3)]))
    assert list(found) == ["pairs[0].loss_fn_config.target_token_ids[0]"]
    assert list(looked_up.values()) == [1]


@pytest.mark.parametrize("plan", [attribute, circuit, patch])
def test_metrics_name_so_many_tokens_and_no_more(
    monkeypatch: pytest.MonkeyPatch, plan: Callable[[list[Any]], object]
) -> None:
    pairs = [make_pair((1, i), (2, i), target=[2, 3], distractor=[4]) for i in (1, 2)]
    monkeypatch.setattr(pair_planner, "MAX_METRIC_TOKENS", 6)
    plan(pairs)
    monkeypatch.setattr(pair_planner, "MAX_METRIC_TOKENS", 5)
    assert refused(lambda: plan(pairs)) == {"pairs": "name 6 tokens in their metrics, and may name 5 together"}


def test_ablations_are_planned_for_the_first_prompt_and_the_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 10,000 of them, for 2000 prompts, take 20 minutes."""
    planned: list[int] = []

    def noted(asked: DeriveRequest, *arguments: Any) -> Any:
        planned.extend(len(asked.prompt.token_ids or ()) for _ in asked.ablation_specs if asked.prompt is not None)
        return plan_run(asked, *arguments)

    monkeypatch.setattr(pair_planner, "plan_run", noted)
    lengths = (4, 3, 5, 2, 3, 4)
    pairs = [make_pair(tuple(range(1, n + 1)), tuple(range(2, n + 2)), target=[2]) for n in lengths]

    def plan(token: int, reference: tuple[int, ...]) -> object:
        asked: dict[str, Any] = {"alternative": "mean", "reference": [reference, (1, 2, 3)], "curve": True}
        return plan_circuit(make_circuit_request(pairs=pairs, ablations=[ablation(token)], **asked), WORLD.registry)

    found = plan(1, (1, 2))
    assert planned == [4, 2]
    assert len(found.plan.run.interventions) == 1  # type: ignore[attr-defined]
    planned.clear()
    assert list(refused(lambda: plan(1, (1,)))) == ["ablation_specs[0].index.tensor_indices[0]"]
    assert planned == [4, 2, 1]
    assert list(refused(lambda: plan(3, (1, 2)))) == ["ablation_specs[0].index.tensor_indices[0]"]


def ablation(token: int) -> AblationSpec:
    index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, tensor_indices=(token, 0), layer_index=0)
    return AblationSpec(index=index, value=0.0)


@pytest.mark.parametrize("plan", [plan_attribute, plan_circuit, plan_patch])
def test_planning_that_nobody_waits_for_ends(plan: Callable[..., object]) -> None:
    makers: dict[Any, Callable[..., Any]] = {
        plan_attribute: make_attribute_request,
        plan_circuit: make_circuit_request,
        plan_patch: make_patch_request,
    }
    asked = {"edges": ["m0->logits"]} if plan is plan_patch else {}
    request = makers[plan]((1, 2), (2, 1), target=[2], **asked)
    wanted = Cancellation()
    plan(request, WORLD.registry, check=wanted.check)
    wanted.cancel()
    with pytest.raises(Cancelled):
        plan(request, WORLD.registry, check=wanted.check)
