"""Whole graphs, from the prompt to what pruning leaves, as circuit-tracer computes them.

No influence of these graphs is nearer to a threshold than 3e-5 of it, which is far more than rounding: masks are
compared for equality.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dst_grpc.graphs.influence import prune, scores
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion, MostProbable
from tests.graph_goldens import NAMES, THRESHOLDS, GoldenGraph, golden_graph, golden_model, golden_transcoders

from .building import built


def question_of(case: GoldenGraph) -> GraphQuestion:
    """What circuit-tracer was asked."""
    asked = case.arguments
    if "attribution_targets" in asked:
        targets: Any = tuple(ChosenTarget(token_id=token) for token in asked["attribution_targets"])
    else:
        targets = MostProbable(max_n_logits=asked["max_n_logits"], desired_logit_prob=asked["desired_logit_prob"])
    return GraphQuestion(
        token_ids=tuple(case.tensors["tokens"].tolist()),
        targets=targets,
        max_feature_nodes=asked["max_feature_nodes"],
        batch_size=asked["batch_size"],
        update_interval=asked.get("update_interval", 4),
        n_zeroed=len(case.facts["zero_positions"]),
    )


def assert_close(found: Any, golden: Any) -> None:
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-6 + 1e-4 * np.abs(golden).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_that_of_circuit_tracer(name: str) -> None:
    case = golden_graph(name)
    model, transcoders = case.facts["model"], case.facts["transcoders"]
    found, _ = built(question_of(case), golden_model(model).decoder, golden_transcoders(model, transcoders))
    nodes, golden = found.nodes, case.graph.nodes
    assert nodes.active.tolist() == golden.active.tolist()
    assert nodes.selected.tolist() == golden.selected.tolist()
    assert nodes.targets.token_ids.tolist() == golden.targets.token_ids.tolist()
    assert_close(nodes.activations, golden.activations)
    assert_close(nodes.targets.weights, golden.targets.weights)
    assert_close(found.adjacency, case.graph.adjacency)
    for thresholds in THRESHOLDS:
        left = prune(found, *thresholds)
        assert (left.node_mask == case.pruned("node_mask", thresholds)).all()
        assert (left.edge_mask == case.pruned("edge_mask", thresholds)[nodes.readers]).all()
        np.testing.assert_allclose(left.cumulative_scores, case.pruned("cumulative_scores", thresholds), atol=1e-4)
    assert scores(found).replacement == pytest.approx(case.facts["replacement_score"], abs=1e-4)
    assert scores(found).completeness == pytest.approx(case.facts["completeness_score"], abs=1e-4)
