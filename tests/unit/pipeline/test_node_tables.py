"""Tables of nodes: the same whether what they are looked up in was kept or is derived again."""

from __future__ import annotations

import pytest

from dst_grpc.domain.explain import ExplainRun
from dst_grpc.domain.explanations import RunExplanation
from dst_grpc.domain.requests import Prompt
from dst_grpc.pipeline import explain_plan, node_tables
from tests import explaining, models
from tests.comparing import same

WORLD = models.world()
RUNS = tuple(ExplainRun(prompt=Prompt(token_ids=ids), loss_fn_config=models.LOSS) for ids in (models.TOKENS, (4, 4, 2)))


def tables(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> tuple[RunExplanation, ...]:
    for module in (node_tables, explain_plan):
        monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    return explaining.explain(WORLD, explaining.request(runs=RUNS)).runs


@pytest.mark.parametrize("kept_bytes", [0, 1000])
def test_tables_are_the_same_whatever_is_kept(kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in zip(tables(monkeypatch, kept_bytes), tables(monkeypatch, 1 << 30), strict=True):
        assert same(found.node_table, expected.node_table)
        assert same(found.component_sums, expected.component_sums)


def test_what_is_kept_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = explaining.plan(WORLD, explaining.request())
    size = sum(scalar.output_bytes for scalar in plan.plans[0].scalars)
    counted = {}
    for kept_bytes in (0, size, 2 * size):
        monkeypatch.setattr(explain_plan, "KEPT_BYTES", kept_bytes)
        counted[kept_bytes] = plan._choosing_bytes
    assert counted[size] - counted[0] == size
    assert counted[2 * size] == counted[size]
