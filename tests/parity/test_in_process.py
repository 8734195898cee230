"""Every stored row of the reference, derived in process: one plan and one run per case, all its rows together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests.parity.cases import CASES, load_case
from tests.parity.comparison import Tensors, compare, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.scalars.explained_model import AutoencoderSet


def test_every_row_is_there() -> None:
    """The stored cases hold 1,319 rows, of all 106 types."""
    rows = [row for name in CASES for row in load_case(name, "golden").rows]
    assert len(rows) == 1319
    assert len({row.spec.dst for row in rows}) == 106


@pytest.mark.parametrize("name", CASES)
def test_case(
    name: str,
    registry: Registry,
    model: ModelContext,
    sets: dict[str, AutoencoderSet],
    count_row: Callable[[str, str], None],
) -> None:
    """Every row of the case equals the reference's, or differs by the one rule stated for it; one pass each way."""
    case = load_case(name, "golden")
    (result,) = run([make_plan(case.request, registry)], model.decoder, sets)
    assert result.statistics.forward_passes == 1
    assert result.statistics.backward_passes <= 1
    problems = []
    for row, scalar in zip(case.rows, result.plan.scalars, strict=True):
        derivation = result.derivation(scalar)
        found: Tensors = {
            (pass_type, layer): tensor.numpy()
            for layer in scalar.layers
            for pass_type, tensor in derivation.at(layer).items()
        }
        wrong = compare(case, row, found, result.loss, result.activation_value)
        problems += [f"{row.spec.dst}: {problem}" for problem in wrong]
        count_row("in process", "different" if wrong else "on purpose" if rule_of(row) else "equal")
    assert not problems
