"""Building a graph step by step: a pass, the rows of targets, then those of units, by their influence.

A row of the adjacency holds the direct effects on one node. Rows are computed in blocks of nodes at near tokens, one
block in a step, so that whoever runs the steps can do other work in between, and pass rows on as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.domain.graph_answers import GraphPhase
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import OutOfRange
from dst_grpc.graphs.local_model import LocalModel
from dst_grpc.graphs.memory import GraphMemory
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes
from dst_grpc.graphs.recording import record
from dst_grpc.graphs.rows import Rows
from dst_grpc.graphs.targets import targets_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.graphs.nodes import Floats, GraphTargets, Integers
    from dst_grpc.graphs.question import GraphQuestion
    from dst_grpc.graphs.recording import Recording
    from dst_grpc.graphs.sources import Sources


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GraphStep:
    """A step that is done."""

    phase: GraphPhase
    """What it does."""
    done: int
    """How many rows of the phase are known."""
    total: int
    """How many there will be."""
    candidates: GraphNodes
    """What the nodes would be if all active units were, N."""
    nodes: Integers
    """The candidates whose rows this step computed, [m]."""
    rows: Floats
    """These rows: the direct effects of all candidates on each, [m, N]."""
    peak_bytes: int
    """Memory that the graph and its computation take from here on, beside weights; about."""


def build(
    question: GraphQuestion, decoder: Decoder, sources: Sources, check: Check = never_cancelled
) -> Generator[GraphStep, None, AttributionGraph]:
    """Build a graph: yields the steps as they are done, and returns the graph.

    Args:
        question: what is asked; its prompt is not empty, its numbers are positive, its tokens are the model's.
        decoder: the model.
        sources: what units are, on the same device.
        check: raises Cancelled to end the work.

    Raises:
        Exhausted: (MEMORY_BUDGET_EXCEEDED) if it does not fit the question's memory: before the pass if that is sure,
            else after it, when it is known how many units are active.
        OutOfRange: if the run of the prompt, or an edge, is not finite.
    """
    surely_active = sources.known_units(decoder.config, len(question.token_ids))
    GraphMemory.of(question, decoder, sources, n_active=surely_active, n_targets=0).check()
    recording = record(decoder, sources, question.token_ids, question.n_zeroed, check)
    targets = targets_of(question.targets, recording.logits, decoder)
    memory = GraphMemory.of(question, decoder, sources, n_active=recording.n_active, n_targets=len(targets))
    memory.check()
    candidates = _candidates(recording, targets)
    rows, peak_bytes = Rows(candidates, question.max_feature_nodes), memory.peak

    def step(phase: GraphPhase, done: int, total: int, nodes: Integers, effects: Floats) -> GraphStep:
        if not np.isfinite(effects).all():
            raise OutOfRange("the graph has edges that are not finite")
        added = rows.add(nodes, effects)
        return GraphStep(
            phase=phase,
            done=done,
            total=total,
            candidates=candidates,
            nodes=nodes,
            rows=added,
            peak_bytes=peak_bytes,
        )

    model = LocalModel(decoder, sources, recording, keeps_layers=memory.keeps_layers, check=check)
    yield step(GraphPhase.RECORDING, 1, 1, np.zeros(0, dtype=np.int64), np.zeros((0, model.n_sources), np.float32))
    size = memory.block_size(recording.n_tokens)
    for first in range(0, len(targets), size):
        vectors = torch.from_numpy(targets.vectors[first : first + size]).to(model.device, model.dtype)
        nodes = candidates.first_target + np.arange(first, first + len(vectors))
        effects = model.effects(model.block_of_targets(vectors))
        yield step(GraphPhase.TARGETS, first + len(vectors), len(targets), nodes, _on_host(effects))
    while rows.n_known < rows.n_features:
        pending = rows.next_features(question.update_interval * question.batch_size)
        for nodes in _blocks(pending, candidates, memory):
            effects = model.effects(model.block_of_units(torch.from_numpy(nodes).to(model.device)))
            n_known = rows.n_known + len(nodes)
            yield step(GraphPhase.FEATURES, n_known, rows.n_features, nodes, _on_host(effects))
    return rows.graph()


def _on_host(effects: torch.Tensor) -> Floats:
    found: Floats = effects.float().cpu().numpy()
    return found


def _candidates(recording: Recording, targets: GraphTargets) -> GraphNodes:
    """The nodes if all active units are."""
    found = [one.active for one in recording.units]
    no_places, nothing = torch.zeros(0, 3, dtype=torch.long), np.zeros(0, dtype=np.int32)
    active = [
        torch.stack((torch.full_like(one.tokens, units.layer), one.tokens, one.features), 1).cpu()
        for units, one in zip(recording.units, found, strict=True)
    ]
    kinds = [np.full(len(units), units.kind.number, dtype=np.int32) for units in recording.units]
    return GraphNodes(
        token_ids=recording.tokens.cpu().numpy(),
        n_layers=len(recording.layers),
        active=torch.cat([no_places, *active]).int().numpy(),
        kinds=np.concatenate([nothing, *kinds]),
        errors=tuple((one.kind, one.layer) for one in recording.missed),
        activations=torch.cat([torch.zeros(0), *(one.values.float().cpu() for one in found)]).numpy(),
        selected=np.arange(recording.n_active),
        targets=targets,
    )


def _blocks(pending: Integers, candidates: GraphNodes, memory: GraphMemory) -> Iterator[Integers]:
    """The units *pending* in blocks of near tokens, and in each the later ones first."""
    tokens = candidates.active[:, 1]
    left = pending[np.argsort(-tokens[pending], kind="stable")]
    while len(left):
        size = memory.block_size(int(tokens[left[0]]) + 1)
        block, left = left[:size], left[size:]
        yield np.sort(block)[::-1].copy()
