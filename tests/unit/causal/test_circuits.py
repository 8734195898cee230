"""Which edges a circuit keeps, and how good it is: by hand, and as the golden data has it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dst_grpc.causal.circuits import (
    areas,
    edges_of_nodes,
    faithfulness,
    greedy_edges,
    live_readers,
    pruned,
    reached_sources,
    top,
    top_edges,
)
from dst_grpc.causal.graph import Graph
from dst_grpc.domain.circuit import FRACTIONS
from dst_grpc.domain.graph_nodes import Edge
from tests.causal_goldens import CASES
from tests.unit.causal.cutting import GoldenPair

GRAPHS = [Graph(2, 2), Graph(3, 1), Graph(2, 2, is_parallel=True)]
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def kept_of(graph: Graph, *names: str) -> Mask:
    """The circuit of the edges of these names."""
    kept = np.zeros_like(graph.mask)
    for edge in map(Edge.named, names):
        kept[graph.index_of_source(edge.source), graph.index_of_reader(edge.reader)] = True
    return kept


def names_of(graph: Graph, kept: Mask) -> list[str]:
    return [str(Edge(graph.sources[s], graph.readers[r])) for s, r in np.argwhere(kept)]


def fixed_point(graph: Graph, kept: Mask) -> Mask:
    """Pruning as the EAP-IG library describes it: nodes without an edge in or out go, until none is left to go."""
    node = {reader: str(reader).split("<")[0] for reader in graph.readers}
    while True:
        edges = [(graph.sources[s], graph.readers[r]) for s, r in np.argwhere(kept)]
        out, into = {str(source) for source, _ in edges}, {node[reader] for _, reader in edges} | {"input"}
        alive = (out & into) | {"logits"}
        new = kept.copy()
        for s, r in np.argwhere(kept):
            new[s, r] = str(graph.sources[s]) in alive and node[graph.readers[r]] in alive
        if (new == kept).all():
            return new
        kept = new


@pytest.mark.parametrize("graph", GRAPHS)
def test_pruning_leaves_what_lies_on_a_path_through_all(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0.02, 0.6, 30):
        kept = graph.mask & (rng.random(graph.mask.shape) < share)
        assert (pruned(graph, kept) == fixed_point(graph, kept)).all()


def test_what_lies_on_a_path_is_seen_from_both_ends() -> None:
    graph = GRAPHS[0]
    kept = kept_of(graph, "input->a0.h1<k>", "a0.h1->m1", "m1->logits", "a0.h0->m1", "m0->a1.h0<v>")
    assert names_of(graph, pruned(graph, kept)) == ["input->a0.h1<k>", "a0.h1->m1", "m1->logits"]
    live = [str(graph.readers[r]) for r in np.flatnonzero(live_readers(graph, kept))]
    assert live == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m1", "logits"]
    assert [str(graph.sources[s]) for s in np.flatnonzero(reached_sources(graph, kept))] == ["input", "a0.h1", "m1"]


def test_several_circuits_are_pruned_at_once_as_one_by_one() -> None:
    graph = GRAPHS[2]
    several = graph.mask & (np.random.default_rng(1).random((4, *graph.mask.shape)) < 0.3)
    assert (pruned(graph, several) == np.stack([pruned(graph, one) for one in several])).all()


def test_a_node_that_is_left_out_loses_all_edges_out_of_it() -> None:
    graph = GRAPHS[0]
    nodes = np.array([str(source) in {"input", "m1"} for source in graph.sources])
    kept = edges_of_nodes(graph, nodes)
    assert {name.split("->")[0] for name in names_of(graph, kept)} == {"input", "m1"}
    assert kept.sum() == graph.mask[nodes].sum()


def test_of_equal_values_the_first_are_chosen() -> None:
    assert top(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [False, True, True, False, False]
    graph = GRAPHS[0]
    assert names_of(graph, top_edges(graph, np.ones(graph.mask.shape), 3)) == [str(edge) for edge in graph.edges[:3]]
    assert top_edges(graph, -np.ones(graph.mask.shape), 10**6).sum() == graph.n_edges


@pytest.mark.parametrize("name", CASES)
def test_edges_are_chosen_in_the_order_of_the_golden_data(name: str) -> None:
    two = GoldenPair.of(name)
    scores = two.case.tensors["eap_ig.left"].numpy()
    for order, values in (("circuit.order", np.abs(scores)), ("circuit.order_signed", -scores)):
        for count in two.case.facts["circuit"]["counts"]:
            assert (top_edges(two.graph, values, count) == two.first(order, count)).all()


@pytest.mark.parametrize("name", CASES)
def test_the_areas_of_a_curve_are_those_of_the_golden_data(name: str) -> None:
    two = GoldenPair.of(name)
    facts = two.case.facts["circuit"]
    for order, golden in (("circuit.order", facts), ("circuit.order_signed", facts["signed"])):
        counts = [0, *(int(fraction * two.graph.n_edges) for fraction in FRACTIONS)]
        circuits = [pruned(two.graph, two.first(order, count)) for count in counts]
        empty, *metrics = two.metric(two.runs.logits([two.circuit(one) for one in circuits])).tolist()
        clean = two.metric(two.logits(two.clean)).item()
        values = [faithfulness(metric, clean=clean, empty=empty) for metric in metrics]
        cpr, cmd = areas(FRACTIONS, [value for value in values if value is not None])
        # A metric is within 2e-5 (1 + |metric|) of the golden one, and the gap of two such metrics is divided by.
        bound = 8e-5 * (1 + max(map(abs, (*metrics, clean, empty)))) / abs(clean - empty)
        assert cpr == pytest.approx(golden["cpr"], abs=bound * max(1, *map(abs, filter(None, values))))
        assert cmd == pytest.approx(golden["cmd"], abs=bound * max(1, *map(abs, filter(None, values))))


def test_faithfulness_is_the_share_of_the_gap_and_nothing_without_a_gap() -> None:
    assert faithfulness(2.0, clean=3.0, empty=1.0) == 0.5
    assert faithfulness(5.0, clean=3.0, empty=1.0) == 2.0
    assert faithfulness(2.0, clean=3.0, empty=3.0 + 1e-6) is None


def test_areas_by_hand() -> None:
    assert areas((0.0, 0.5, 1.0), (0.0, 1.0, 1.5)) == (0.25 + 0.625, 0.25 + 0.125)


def test_greedy_edges_grow_from_the_logits() -> None:
    graph = GRAPHS[0]
    values = np.zeros(graph.mask.shape)
    strong = kept_of(graph, "input->a0.h0<q>", "a0.h0->a1.h1<v>", "m0->m1")
    values[strong] = (9.0, 8.0, 7.0)
    values[kept_of(graph, "a1.h1->logits", "m1->logits")] = (2.0, 1.0)
    found = [names_of(graph, greedy_edges(graph, values, count)) for count in range(1, 6)]
    assert found[0] == ["a1.h1->logits"]
    assert set(found[1]) == {"a1.h1->logits", "a0.h0->a1.h1<v>"}
    assert set(found[2]) == {*found[1], "input->a0.h0<q>"}
    assert set(found[3]) == {*found[2], "m1->logits"}
    assert set(found[4]) == {*found[3], "m0->m1"}


@pytest.mark.parametrize(("graph", "count"), list(product(GRAPHS, (0, 1, 7, 10**6))))
def test_greedy_edges_are_never_cut_off_from_the_logits(graph: Graph, count: int) -> None:
    kept = greedy_edges(graph, np.random.default_rng(2).random(graph.mask.shape), count)
    assert kept.sum() == min(count, graph.n_edges)
    assert (kept & ~live_readers(graph, kept)).sum() == 0


def test_a_curve_of_a_graph_begins_with_few_edges() -> None:
    assert [int(fraction * 32491) for fraction in FRACTIONS[:3]] == [32, 64, 162]
    assert torch.tensor(FRACTIONS).diff().min() > 0
