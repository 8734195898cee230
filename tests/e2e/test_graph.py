"""Graph over a socket: the golden data of four families, kept graphs, what is refused, cancelling, eviction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import AsyncClient, GraphAnswer, make_graph_request
from tests.e2e.conftest import served
from tests.graph_goldens import NAMES, THRESHOLDS, GoldenGraph, golden_graph, model_folder

GOLDEN_MODELS = ("gpt2", "llama", "qwen3", "gemma2")


@pytest.fixture(scope="module", name="address")
def _address() -> Iterator[str]:
    """HOST:PORT of a server with the models of golden graphs, a process of its own."""
    models = {model: str(model_folder(model)) for model in GOLDEN_MODELS}
    with served(models=models, allow_failed_checks=True) as address:  # the transcoders are random
        yield address


def question(case: GoldenGraph, **arguments: Any) -> Any:
    """The request of *case*."""
    given = dict(case.arguments)
    asked: dict[str, Any] = {"model": case.facts["model"], "targets": given.pop("attribution_targets", ())}
    name = f"{case.facts['model']}/{case.facts['transcoders']}"
    return make_graph_request(case.tensors["tokens"].tolist(), name, **asked | given | arguments)


def assert_close(found: Any, golden: Any) -> None:
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-6 + 1e-4 * np.abs(golden).max(initial=0))


def assert_is_golden(answer: GraphAnswer, case: GoldenGraph) -> None:
    """The nodes, targets and scores of *case*."""
    golden = case.graph.nodes
    features = golden.active[golden.selected]
    table, k = answer.table, len(features)
    columns = np.stack([table.layers, table.tokens, table.features], axis=1)
    assert columns[:k].tolist() == features.tolist()
    assert_close(table.activations[:k], golden.activations[golden.selected])
    assert len(table) == len(golden)
    assert answer.header.active_feature_count == case.facts["n_active_features"]
    assert list(answer.header.token_ids) == golden.token_ids.tolist()
    assert [one.token_id for one in answer.header.targets] == golden.targets.token_ids.tolist()
    assert_close([one.weight for one in answer.header.targets], golden.targets.weights)
    assert answer.replacement_score == pytest.approx(case.facts["replacement_score"], abs=1e-4)
    assert answer.completeness_score == pytest.approx(case.facts["completeness_score"], abs=1e-4)


def assert_is_pruned(answer: Any, case: GoldenGraph, thresholds: tuple[float, float]) -> None:
    """The masks of *case* at *thresholds*."""
    assert (answer.scores.kept == case.pruned("node_mask", thresholds)).all()
    mask = np.zeros_like(case.graph.adjacency, dtype=bool)
    mask[answer.edges.ends, answer.edges.sources] = True
    assert (mask == case.pruned("edge_mask", thresholds)).all()
    golden = case.pruned("cumulative_scores", thresholds)
    np.testing.assert_allclose(answer.scores.cumulative_scores, golden, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
async def test_graphs_are_those_of_circuit_tracer(address: str, name: str) -> None:
    case = golden_graph(name)
    async with AsyncClient(address) as client:
        whole = await client.graph_request(question(case, edges="whole"))
        assert_is_golden(whole, case)
        assert_close(whole.adjacency, case.graph.adjacency)
        assert whole.is_whole
        for thresholds in THRESHOLDS:
            assert_is_pruned(whole.prune(*thresholds), case, thresholds)
            node_threshold, edge_threshold = thresholds
            pruned = await client.graph_request(
                question(case, node_threshold=node_threshold, edge_threshold=edge_threshold)
            )
            assert_is_golden(pruned, case)
            assert_is_pruned(pruned, case, thresholds)
            left = await client.prune_graph(whole, *thresholds)
            assert left.table.nodes.tolist() == np.flatnonzero(pruned.scores.kept).tolist()
            assert left.edges.weights.tolist() == pruned.edges.weights.tolist()
