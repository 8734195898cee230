"""What a pipeline of fakes answers to causal questions: the same whatever is asked, but for how many pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dst_grpc.domain.attribute import AttributedNode, AttributionMethod, PropagationRule
from dst_grpc.domain.attribute_answers import (
    AttributedPairs,
    AttributeHeader,
    AttributePart,
    AttributePartKind,
    AttributeProgress,
    PairMetrics,
    ScoredKind,
    ScoresInfo,
    ScoreValues,
)
from dst_grpc.domain.circuit import (
    CircuitEdges,
    CircuitEvaluation,
    CircuitHeader,
    CircuitKind,
    CircuitNodes,
    CircuitPart,
    CircuitPartKind,
    CircuitParts,
    CircuitProgress,
    CircuitSelection,
    CircuitStage,
    CircuitValue,
    CurveSummary,
)
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.pairs import Alternative, Orientation
from dst_grpc.domain.patch_answers import (
    PatchAxis,
    PatchedCells,
    PatchedPair,
    PatchGridInfo,
    PatchGridKind,
    PatchHeader,
    PatchMeans,
    PatchPart,
    PatchPartKind,
    PatchValue,
)
from dst_grpc.domain.results import (
    Axis,
    RunSummary,
)
from tests.fake_runs import MODEL_HANDLE, SUMMARY


def circuit_parts(
    n_pairs: int = 1,
    *,
    has_curve: bool = False,
    has_gap: bool = True,
    orientation: Orientation = Orientation.NOISING,
    has_latents: bool = False,
) -> list[CircuitPart | RunSummary]:
    """The parts of a whole answer of Circuit: the whole model, no edge, and perhaps a curve of two circuits; *has_gap*
    says whether the metrics of the first two differ, *has_latents* whether circuits are of nodes."""
    header = CircuitHeader(
        model=MODEL_HANDLE,
        sources=("input", "a0.h0", "m0"),
        readers=("a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "m0", "logits"),
        edge_count=8,
        d_model=8,
        pair_count=n_pairs,
        orientation=orientation,
        alternative=Alternative.PATCHING,
        prune=not has_latents,
    )
    if has_latents:
        part = CircuitParts(autoencoder="set", name="m0", first_node=2, latent_count=4, has_error=True)
        header = replace(header, sources=header.sources[:2], node_count=7, parts=(part,))
    evaluations = [
        CircuitEvaluation(
            kind=kind,
            chosen_edge_count=n_edges,
            edge_count=n_edges,
            node_count=min(n_edges, 3),
            metric=float(n_edges),
            metrics=(float(n_edges),) * n_pairs,
            faithfulness=float(n_edges > 0) if has_gap else None,
        )
        for kind, n_edges in ((CircuitKind.WHOLE, 8), (CircuitKind.EMPTY, 0))
    ]
    progress = CircuitProgress(stage=CircuitStage.EVALUATION, done=2, total=2)
    parts: list[tuple[CircuitPartKind, CircuitValue]] = [
        (CircuitPartKind.HEADER, header),
        (CircuitPartKind.PROGRESS, progress),
        *((CircuitPartKind.EVALUATION, one) for one in evaluations),
    ]
    if has_curve:
        curve = CURVE if has_gap else [facts | {"faithfulness": None} for facts in CURVE]
        parts += [
            (CircuitPartKind.EVALUATION, replace(evaluations[0], kind=CircuitKind.CURVE, index=i, **facts))
            for i, facts in enumerate(curve)
        ]
        summary = CurveSummary(selection=CircuitSelection.ABSOLUTE, of_nodes=has_latents)
        if has_gap:
            summary = replace(summary, cpr=0.7, cmd=0.2, chosen_index=1)
            nodes = CircuitNodes(nodes=(6, 1, 5), scores=(-3.0, -2.0, 0.5))
            edges = CircuitEdges(sources=(2, 0, 0), readers=(4, 3, 0), scores=(-3.0, -2.0, 0.5))
            parts.append((CircuitPartKind.NODES, nodes) if has_latents else (CircuitPartKind.CIRCUIT, edges))
        of_all = (CircuitPartKind.NODE_SCORES, ALL_NODES) if has_latents else (CircuitPartKind.SCORES, ALL_EDGES)
        parts += [(CircuitPartKind.CURVE, summary), of_all]
    return [*(CircuitPart(kind=kind, value=value) for kind, value in parts), SUMMARY]


CURVE: tuple[dict[str, Any], ...] = (
    {"fraction": 0.1, "edge_count": 0, "node_count": 0, "metric": 0.0, "faithfulness": 0.0},
    {"fraction": 0.4, "edge_count": 3, "node_count": 2, "metric": 7.0, "faithfulness": 0.875},
)
ALL_EDGES = CircuitEdges(
    sources=(0, 0, 0, 0, 0, 1, 1, 2), readers=(0, 1, 2, 3, 4, 3, 4, 4), scores=(0.5, 0, 0.25, -2.0, 0.25, 0, 0, -3.0)
)


ALL_NODES = CircuitNodes(nodes=tuple(range(7)), scores=(0.25, -2.0, 0.25, 0, 0, 0.5, -3.0))


def patch_parts(n_pairs: int = 1) -> list[PatchPart | RunSummary]:
    """The parts of a whole answer of Patch: the MLPs of two layers."""
    info = PatchGridInfo(
        kind=PatchGridKind.NODES,
        node=AttributedNode.MLP_OUT,
        all_positions=True,
        axes=(PatchAxis(name="layer", labels=("0", "1"), indices=(0, 1)),),
        cell_count=2,
    )
    header = PatchHeader(
        model=MODEL_HANDLE,
        orientation=Orientation.NOISING,
        alternative=Alternative.PATCHING,
        pair_count=n_pairs,
        grids=(info,),
    )
    parts: list[tuple[PatchPartKind, PatchValue]] = [(PatchPartKind.HEADER, header)]
    for i in range(n_pairs):
        pair = PatchedPair(pair=i, token_strings=("a", "b"), metric=1.0, source_metric=3.0, has_recovery=True)
        parts.append((PatchPartKind.PAIR, pair))
        parts.append((PatchPartKind.CELLS, PatchedCells(grid=0, pair=i, cells=(1, 0), metrics=(2.0, 1.0))))
    means = PatchMeans(grid=0, cells=(0, 1), metrics=(1.0, 2.0), recoveries=(0.0, 0.5), recovery_pair_count=n_pairs)
    parts.append((PatchPartKind.MEANS, means))
    return [*(PatchPart(kind=kind, value=value) for kind, value in parts), SUMMARY]


def attribute_parts(n_pairs: int = 1) -> list[AttributePart | RunSummary]:
    """The parts of a whole answer of Attribute: two scores of MLPs."""
    info = ScoresInfo(
        tensor_id=0,
        kind=ScoredKind.NODES,
        axes=(Axis(Dimension.LAYERS, 2),),
        node=AttributedNode.MLP_OUT,
        layer_indices=(0, 1),
    )
    header = AttributeHeader(
        model=MODEL_HANDLE,
        sources=("input", "m0", "m1"),
        readers=("m0", "m1", "logits"),
        edge_count=6,
        pair_count=n_pairs,
        orientation=Orientation.NOISING,
        method=AttributionMethod.ATTRIBUTION_PATCHING,
        rule=PropagationRule.PLAIN,
        meaning="a change",
        token_ids=(1, 2),
        token_strings=("a", "b"),
        scores=(info,),
    )
    pairs = AttributedPairs(pairs=(PairMetrics(base=1.0, source=2.0),) * n_pairs)
    values = ScoreValues(0, np.array([0.5, -0.25], np.float32))
    progress = AttributeProgress(done=n_pairs, total=n_pairs)
    return [
        AttributePart(kind=AttributePartKind.HEADER, value=header),
        AttributePart(kind=AttributePartKind.PROGRESS, value=progress),
        AttributePart(kind=AttributePartKind.PAIRS, value=pairs),
        AttributePart(kind=AttributePartKind.VALUES, value=values),
        SUMMARY,
    ]
