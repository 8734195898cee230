"""Planning of pairs: what is wrong with one is named by its own place in the request, whatever is wrong with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dst_grpc.client import make_attribute_request, make_circuit_request, make_pair, make_patch_request
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.attribute_planner import plan_attribute
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.patch_planner import plan_patch
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
