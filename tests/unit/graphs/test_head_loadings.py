"""Which heads carry an edge: parts that add up to it, and what is gone without a head."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.engine.cancellation import never_cancelled
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.changes import writes_of
from dst_grpc.graphs.head_loadings import head_loadings
from dst_grpc.graphs.local_model import LocalModel
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion
from dst_grpc.graphs.recording import record
from dst_grpc.graphs.sources import Sources
from tests import models
from tests.models import ARCHITECTURES, TOKENS
from tests.transcoders import random_transcoders

from .building import built, sources_of
from .frozen_run import FrozenRun
from .test_truth import KINDS


def graph_of(decoder: Decoder, given: Sources | Transcoders) -> tuple[AttributionGraph, LocalModel]:
    chosen = ChosenTarget(token_id=5), ChosenTarget(token_id=2)
    graph, _ = built(GraphQuestion(token_ids=TOKENS, targets=chosen), decoder, given)
    sources = sources_of(given)
    recording = record(decoder, sources, TOKENS, 1, never_cancelled)
    return graph, LocalModel(decoder, sources, recording, keeps_layers=True, check=never_cancelled)


def strong_edges(graph: AttributionGraph) -> list[tuple[int, int]]:
    """Source and target of the strongest edge from each kind of node into features and into targets."""
    nodes, found = graph.nodes, []
    sources = [0, nodes.first_error, nodes.first_embedding, nodes.first_target]
    for rows in (slice(0, nodes.first_error), slice(nodes.first_target, len(nodes))):
        for first, last in pairwise(sources):
            part = np.abs(graph.adjacency[rows, first:last])
            target, source = np.unravel_index(part.argmax(), part.shape)
            found.append((int(source) + first, int(target) + rows.start))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loadings_add_up_to_the_edge(architecture: str, kind: str) -> None:
    config = ARCHITECTURES[architecture]
    graph, model = graph_of(models.decoder(config=config), random_transcoders(config, **KINDS[kind]))
    for source, target in strong_edges(graph):
        found = head_loadings(model, graph.nodes, source, target)
        size = float(np.abs(found.last).sum() + np.abs(found.first).sum()) + abs(found.without_heads)
        assert found.weight == pytest.approx(graph.adjacency[target, source], abs=1e-6 * size)
        for parts in (found.last, found.first):
            assert found.without_heads + parts.sum() == pytest.approx(found.weight, abs=1e-6 * size)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma"])
def test_what_passes_through_a_head_is_gone_without_it(architecture: str) -> None:
    config = ARCHITECTURES[architecture]
    decoder, transcoders = models.decoder(config=config), random_transcoders(config, has_skip=True)
    graph, model = graph_of(decoder, transcoders)
    run = FrozenRun(decoder, transcoders, TOKENS)
    for source, target in strong_edges(graph):
        found = head_loadings(model, graph.nodes, source, target)
        writes = writes_of(model, graph.nodes, source)
        for layer, head in ((0, 0), (config.n_layers - 1, config.n_heads - 1)):
            weights = models.weights(config=config)
            width = config.d_head
            weights[f"layers.{layer}.attn.out.weight"][head * width : (head + 1) * width] = 0
            without = _effect(Decoder(config, weights), run, graph.nodes, target, writes)
            assert found.weight - found.through[layer, head] == pytest.approx(without, rel=1e-5, abs=1e-6)


def _effect(decoder: Decoder, base: FrozenRun, nodes: GraphNodes, target: int, writes: Any) -> float:
    """What *writes* do to *target* in another *decoder*, all that is constant being as in *base*."""
    run = FrozenRun(decoder, base.transcoders, TOKENS)
    run.base = base.base
    found = []
    for size in (1.0, 0.0):
        embedding = torch.zeros(()) if writes.embedding is None else size * writes.embedding
        seen = run.changed(embedding, {layer: size * write for (layer, _), write in writes.places.items()})
        if target < nodes.first_target:
            found.append(run.pre_activation_change(nodes.feature(target), seen))
        else:
            vector = torch.from_numpy(nodes.targets.vectors[nodes.target(target)]).double()
            found.append(run.projection_change(vector, seen))
    return found[0] - found[1]
