"""Questions about kept graphs that the model answers: what a graph does not have, and which features are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.graph import GraphRequest, GraphTarget
from dst_grpc.domain.graph_probes import (
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureSetting,
    GraphIntervention,
    GraphInterventions,
    GraphProbe,
    GraphVerification,
    ProbeGraphRequest,
)
from dst_grpc.domain.graph_queries import GraphNodeFilter
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import InvalidRequest, NotFound, Violations, require
from dst_grpc.pipeline.graph_probe_answer import drawn
from dst_grpc.pipeline.graph_probe_planner import ProbePlan, plan_probe
from tests.graph_goldens import golden_graph, model_folder
from tests.unit.pipeline.whole_graphs import whole_graph

REGISTRY = Registry.build(models={"gpt2": model_folder("gpt2")}, include_embedded=False, default_model="gpt2")
GRAPH = whole_graph()
NAMES = GRAPH.table.names
SETTING = GraphFeatureSetting(nodes=(NAMES[0],), factor=0.0)


def plan(probe: GraphProbe, known: Violations | None = None) -> ProbePlan:
    return plan_probe(ProbeGraphRequest(graph="graph-one", probe=probe), GRAPH, REGISTRY, known)


def refusal(probe: GraphProbe, known: Violations | None = None) -> dict[str, str]:
    """What is said of each field."""
    with pytest.raises(InvalidRequest) as caught:
        plan(probe, known)
    return {violation.field: violation.description for violation in caught.value.violations}


def one(*settings: GraphFeatureSetting, first_free_layer: int | None = None) -> GraphInterventions:
    return GraphInterventions(interventions=(GraphIntervention(settings=settings, first_free_layer=first_free_layer),))


def test_the_prompt_of_the_graph_is_run_with_its_contexts() -> None:
    found = plan(one(SETTING))
    assert found.plan.token_ids == tuple(GRAPH.nodes.token_ids.tolist())
    assert require(found.transcoders).name == "gpt2/plt_relu"
    assert found.n_zeroed == 1
    assert found.peak_bytes > found.plan.cost.peak_bytes
    assert found.digest("m", ["t"]) == plan(one(SETTING)).digest("m", ["t"])
    assert found.digest("m", ["t"]) != plan(one(replace(SETTING, factor=2.0))).digest("m", ["t"])


def test_there_is_a_step_for_each_run() -> None:
    assert plan(one(SETTING)).n_steps == 2
    assert plan(GraphVerification(count=3)).n_steps == 4
    assert plan(GraphVerification(count=1000)).n_steps == 1 + GRAPH.nodes.n_features
    assert plan(GraphAttention()).n_steps == 1


@pytest.mark.parametrize("count", [1, 2])
def test_all_that_a_graph_does_not_have_is_told(count: int) -> None:
    missing = [GraphFeatureSetting(nodes=(NAMES[0], f"f0.{900 + i}@1"), factor=0.0) for i in range(count)]
    missing = [replace(setting, nodes=setting.nodes[i > 0 :]) for i, setting in enumerate(missing)]
    found = refusal(one(*missing, first_free_layer=3))
    root = "interventions.interventions[0]"
    expected = {f"{root}.settings[0].nodes[1]": GRAPH.table.missing("f0.900@1")}
    expected |= {f"{root}.settings[{i}].nodes[0]": GRAPH.table.missing(f"f0.{900 + i}@1") for i in range(1, count)}
    assert found == expected | {f"{root}.first_free_layer": "must be below 3, the number of layers, not 3"}


def test_ends_of_an_edge_are_nodes() -> None:
    found = refusal(GraphEdgeHeads(source="t99", target="logit:99999"))
    assert found == {
        "edge_heads.source": GRAPH.table.missing("t99"),
        "edge_heads.target": GRAPH.table.missing("logit:99999"),
    }


def test_a_score_is_of_a_head_and_tokens_that_there_are() -> None:
    n_heads, n_tokens = REGISTRY.model_entry("gpt2").dimensions.n_heads, GRAPH.nodes.n_tokens
    found = refusal(GraphAttention(layer=3, head=n_heads, query=n_tokens, key=n_tokens))
    assert found == {
        "attention.layer": "must be below 3, the number of layers, not 3",
        "attention.head": f"must be below {n_heads}, the number of heads, not {n_heads}",
        "attention.query": f"must be below {n_tokens}, the number of tokens, not {n_tokens}",
    }


def test_what_reading_found_is_told_with_the_rest() -> None:
    known = Violations()
    known.add("edge_heads.source", "is no node")
    found = refusal(GraphEdgeHeads(source="t99", target="logit:99999"), known)
    assert found == {
        "edge_heads.source": "is no node",
        "edge_heads.target": GRAPH.table.missing("logit:99999"),
    }


def test_a_graph_whose_files_are_others_now_is_not_found() -> None:
    request = ProbeGraphRequest(graph="graph-one", probe=GraphVerification())
    for other in (replace(GRAPH, model="gone"), replace(GRAPH, transcoders="gpt2/gone")):
        with pytest.raises(NotFound, match="gone"):
            plan_probe(request, other, REGISTRY)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GraphFeatureSetting(nodes=("t1",), factor=0.0), "nodes[0]"),
        (lambda: GraphFeatureSetting(nodes=("nothing",), factor=0.0), "nodes[0]"),
        (lambda: GraphFeatureSetting(nodes=(), factor=0.0), "nodes"),
        (lambda: GraphFeatureSetting(nodes=("f0.1@2",)), ""),
        (lambda: GraphFeatureSetting(nodes=("f0.1@2",), factor=0.0, activation=0.0), ""),
        (lambda: GraphFeatureSetting(nodes=("f0.1@2",), activation=float("nan")), "activation"),
        (lambda: GraphIntervention(settings=()), "settings"),
        (lambda: GraphIntervention(settings=(SETTING,), name="x" * 257), "name"),
        (lambda: GraphIntervention(settings=(SETTING, SETTING)), "settings[1].nodes[0]"),
        (lambda: GraphInterventions(interventions=()), "interventions"),
        (lambda: GraphIntervention(settings=(SETTING,), first_free_layer=-1), "first_free_layer"),
        (lambda: GraphVerification(count=0), "count"),
        (lambda: GraphVerification(seed=-1), "seed"),
        (lambda: GraphVerification(seed=2**64), "seed"),
        (lambda: GraphNodeFilter(layers=(0, -1)), "layers[1]"),
        (lambda: GraphNodeFilter(tokens=(2**40,)), "tokens[0]"),
        (lambda: GraphTarget(token_id=1, weight=1e39), "weight"),
        (lambda: GraphTarget(token_id=1, weight=1e-46), "weight"),
        (lambda: GraphTarget(direction=RequestTensor(tensor=np.full(3, 1e30, np.float32)), name="x"), "direction"),
        (lambda: GraphRequest(prompt=Prompt(text="a"), transcoders="t", max_feature_nodes=2**32), "max_feature_nodes"),
        (lambda: GraphRequest(prompt=Prompt(text="a"), transcoders="t", max_bytes=2**64), "max_bytes"),
        (lambda: GraphEdgeHeads(source="logit:1", target="logit:2"), "source"),
        (lambda: GraphEdgeHeads(source="t1", target="t2"), "target"),
        (lambda: GraphAttention(query=1, key=2), "key"),
        (lambda: GraphAttention(top_k=0), "top_k"),
    ],
)
def test_what_no_graph_has_is_refused_by_its_path(make: object, field: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_features_are_drawn_by_the_sizes_of_their_edges() -> None:
    graph = golden_graph("gpt2_plt_relu_whole").graph
    k = graph.nodes.n_features
    assert sorted(drawn(graph, 10 * k, 0)) == [*range(k)]
    assert drawn(graph, 5, 1) == drawn(graph, 5, 1) != drawn(graph, 5, 2)
    sizes = np.abs(graph.adjacency[:, :k]).sum(axis=0)
    draws = 2000
    counts = np.bincount([drawn(graph, 1, seed)[0] for seed in range(draws)], minlength=k)
    expected = draws * sizes / sizes.sum()
    # Poisson counts: none of so few differs from its mean by more than five deviations.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()
