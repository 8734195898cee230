"""Whole answers of Graph and QueryGraph, of a random graph, for fakes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from dst_grpc.domain.graph_answers import (
    GraphHeader,
    GraphNodeScores,
    GraphPart,
    GraphPartKind,
    GraphPath,
    GraphPaths,
    GraphPhase,
    GraphProgress,
    GraphSummary,
    GraphTargetInfo,
    GraphValue,
    KeptGraph,
)
from dst_grpc.domain.graph_probe_answers import (
    GraphAttentionScore,
    GraphChange,
    GraphChanges,
    GraphHeadLoading,
    GraphHeadLoadings,
    GraphNodePair,
    GraphProbePart,
    GraphProbePartKind,
    GraphProbeValue,
    GraphScoredFeature,
    GraphTokenScore,
    GraphVerifiedFeature,
)
from tests.fake_runs import MODEL_HANDLE
from tests.random_graphs import RandomGraph, random_graph

_P, _PROBED = GraphPartKind, GraphProbePartKind
TRANSCODERS_HANDLE = "tiny/plt@0123456789ab:float32:cpu"
GRAPH = random_graph(targets=(7, "up", 3))
KEPT = KeptGraph(
    handle="graph-one",
    byte_count=1000,
    expire_time=datetime(2030, 1, 1, tzinfo=UTC),
    model=MODEL_HANDLE,
    transcoders=TRANSCODERS_HANDLE,
    prompt="abcd",
    node_count=len(GRAPH),
)


def header_of(graph: RandomGraph = GRAPH) -> GraphHeader:
    names = [name.partition(":")[2] for name in graph.table.names[-3:]]
    targets = tuple(
        GraphTargetInfo(name=name, token_id=int(name) if name.isdigit() else None, weight=float(weight))
        for name, weight in zip(names, graph.target_weights, strict=True)
    )
    return GraphHeader(
        model=MODEL_HANDLE,
        transcoders=TRANSCODERS_HANDLE,
        token_ids=(1, 2, 3, 4),
        token_strings=("a", "b", "c", "d"),
        is_begin_token_added=True,
        zeroed_token_count=1,
        layer_count=3,
        targets=targets,
        active_feature_count=20,
        feature_count=12,
        node_count=len(graph),
        byte_count=2000,
    )


def scores_of(graph: RandomGraph = GRAPH) -> GraphNodeScores:
    return GraphNodeScores(
        nodes=graph.table.nodes,
        cumulative_scores=np.linspace(1, 0.1, len(graph), dtype=np.float32),
        input_sums=graph.edges.sums(len(graph)),
        kept=np.arange(len(graph)) % 2 == 0,
    )


def graph_parts(graph: RandomGraph = GRAPH, *, is_kept: bool = True) -> list[GraphPart]:
    """The parts of a whole answer of Graph with all edges, but for its trailer; tables and edges in two pieces."""
    first, second = graph.edges.pieces(len(graph.edges) // 2 + 1)
    scores, half = scores_of(graph), len(graph) // 2
    summary = GraphSummary(
        edge_count=len(graph.edges),
        node_threshold=0.8,
        edge_threshold=0.98,
        kept_node_count=int(scores.kept.sum()),
        kept_edge_count=17,
        replacement_score=0.5,
        completeness_score=0.75,
    )
    parts: list[tuple[GraphPartKind, GraphValue]] = [
        (_P.HEADER, header_of(graph)),
        (_P.PROGRESS, GraphProgress(phase=GraphPhase.TARGETS, done=3, total=3)),
        (_P.PROGRESS, GraphProgress(phase=GraphPhase.FEATURES, done=12, total=12)),
        (_P.NODES, graph.table.rows(slice(half))),
        (_P.NODES, graph.table.rows(slice(half, None))),
        (_P.SCORES, scores),
        (_P.EDGES, second),
        (_P.EDGES, first),
        (_P.SUMMARY, summary),
    ]
    if is_kept:
        parts.append((_P.KEPT, KEPT))
    return [GraphPart(kind=kind, value=value) for kind, value in parts]


def query_parts(graph: RandomGraph = GRAPH) -> list[GraphPart]:
    """The parts of an answer of QueryGraph, but for its trailer: two nodes, the edge between them, and its path."""
    source, target = int(graph.edges.sources[0]), int(graph.edges.ends[0])
    nodes = np.array(sorted([source, target]))
    parts: list[tuple[GraphPartKind, GraphValue]] = [
        (_P.NODES, graph.table.rows(nodes)),
        (_P.SCORES, scores_of(graph).rows(nodes)),
        (_P.EDGES, graph.edges.at(np.array([0]))),
        (_P.PATHS, GraphPaths(paths=(GraphPath(nodes=(source, target), strength=0.25),))),
    ]
    return [GraphPart(kind=kind, value=value) for kind, value in parts]


def probe_parts(features: Iterable[str] = ("f1.3@2",)) -> list[GraphProbePart]:
    """A part of each kind of an answer of ProbeGraph, but for its trailer; and tokens of *features*."""
    change = GraphChange(node="logit:7", predicted=0.5, measured=0.25)
    loading = GraphHeadLoading(layer=1, head=2, through=0.5, last=0.25, first=0.125, only=0.0625)
    pair = GraphNodePair(query="f1.3@2", key="constant", contribution=-0.5)
    parts: list[tuple[GraphProbePartKind, GraphProbeValue]] = [
        (_PROBED.CHANGES, GraphChanges(index=0, name="a group", changes=(change, change))),
        (_PROBED.CHANGES, GraphChanges(index=1)),
        (
            _PROBED.VERIFIED,
            GraphVerifiedFeature(node="f1.3@2", size=2.0, held_deviation=0.0, free_size=1.0, free_deviation=0.5),
        ),
        (_PROBED.EDGE_HEADS, GraphHeadLoadings(weight=0.75, without_heads=0.5, heads=(loading,))),
        (
            _PROBED.ATTENTION,
            GraphAttentionScore(score=1.5, capped_score=1.25, probability=0.5, pairs=(pair,), remainder=2.0),
        ),
    ]
    token = GraphTokenScore(token_id=5, token=" e", score=0.5)
    scored = (GraphScoredFeature(node=name, promoted=(token,), read=(token,)) for name in features)
    parts += [(_PROBED.SCORED, one) for one in scored]
    return [GraphProbePart(kind=kind, value=value) for kind, value in parts]
