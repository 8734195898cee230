"""ACDC: the golden circuits, and the same decisions as one edge after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dst_grpc.causal.acdc import MAX_AHEAD, EdgeCandidates, acdc
from dst_grpc.causal.circuits import Mask, live_readers
from dst_grpc.causal.graph import Graph
from tests.causal_goldens import CASES
from tests.unit.causal.cutting import GoldenPair


@pytest.mark.parametrize("name", CASES)
def test_the_circuits_of_the_golden_data_are_found(name: str) -> None:
    two = GoldenPair.of(name)
    clean = two.logits(two.clean).double().log_softmax(-1)

    def measure(circuits: Sequence[Mask]) -> list[float]:
        found = two.runs.logits([two.circuit(kept) for kept in circuits]).double().log_softmax(-1)
        divergences: list[float] = (clean.exp() * (clean - found)).sum(-1).tolist()
        return divergences

    golden = two.case.facts["acdc"]
    first, *_, last = acdc(EdgeCandidates(two.graph), measure, golden["threshold"])
    assert (first.n_tried, int(first.kept.sum())) == (0, two.graph.n_edges)
    assert first.metric == pytest.approx(0, abs=1e-6)
    assert last.n_tried == two.graph.n_edges
    assert torch.from_numpy(last.kept).equal(two.case.tensors["acdc.kept"])
    assert last.metric == pytest.approx(golden["kl"], abs=2e-5)


class Additive:
    """A metric that is a sum over the edges that are cut and were not without effect."""

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph, self.calls, self.rows = graph, 0, 0
        self.costs = np.random.default_rng(seed).normal(0.2, 1.0, graph.mask.shape)

    def __call__(self, circuits: Sequence[Mask]) -> list[float]:
        self.calls += 1
        self.rows += len(circuits)
        return [self.of(kept) for kept in circuits]

    def of(self, kept: Mask) -> float:
        cut = self.graph.mask & ~kept & live_readers(self.graph, kept)
        return float(self.costs[cut].sum())


def one_by_one(graph: Graph, measure: Additive, threshold: float, *, absolute: bool) -> Mask:
    """The algorithm as it is described."""
    kept = graph.mask.copy()
    metric = measure.of(kept)
    for reader in reversed(range(len(graph.readers))):
        for source in reversed(np.flatnonzero(graph.mask[:, reader])):
            kept[source, reader] = False
            change = measure.of(kept) - metric
            if (abs(change) if absolute else change) < threshold:
                metric += change
            else:
                kept[source, reader] = True
    return kept


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0])
def test_edges_cut_ahead_end_as_edges_cut_one_by_one(threshold: float, absolute: bool) -> None:
    graph = Graph(2, 3)
    for seed in range(5):
        measure = Additive(graph, seed)
        *_, last = acdc(EdgeCandidates(graph), measure, threshold, absolute=absolute)
        assert (last.kept == one_by_one(graph, measure, threshold, absolute=absolute)).all()
        assert last.metric == pytest.approx(measure.of(last.kept))


def test_edges_into_nodes_without_effect_need_no_run() -> None:
    graph = Graph(3, 2)
    measure = Additive(graph, 0)
    measure.costs[:] = 0
    *_, last = acdc(EdgeCandidates(graph), measure, 0.1)
    assert last.kept.sum() == 0
    into_logits = len(graph.sources)
    assert measure.rows == 1 + into_logits
    assert measure.calls <= 1 + 2 + into_logits.bit_length()
    assert into_logits < MAX_AHEAD


@pytest.mark.parametrize("threshold", [-1e9, 0.1, 2.0])
def test_each_state_says_how_many_circuits_are_measured_next(threshold: float) -> None:
    graph = Graph(2, 3)
    measure, before = Additive(graph, 0), 0
    said: list[int] = []
    for state in acdc(EdgeCandidates(graph), measure, threshold):
        if said:
            assert measure.rows - before <= said[-1]
        before = measure.rows
        said.append(state.ahead)
    assert max(said) == 1 if threshold < -1 else max(said) > 1
