"""Answers of Graph and QueryGraph: a header, progress, nodes, edges, paths, a trailer. Plain values; columns are numpy
arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import numpy as np

from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph import GraphSource
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeTable, check_columns

MAX_PROMPT_CHARACTERS = 200
"""Of the prompt of a kept graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTargetInfo:
    """A target of a graph."""

    name: str
    """The text of its token, or what the request calls its direction."""
    token_id: int | None = None
    """The id of its token; None for a direction."""
    weight: float
    """How much it counts when influences are added up: by default its probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphHeader:
    """The start of an answer: the run, and which nodes there are."""

    model: str
    """Handle of the model that ran."""
    transcoders: str
    """Handle of the transcoders; empty if features are no units."""
    token_ids: tuple[int, ...]
    """The prompt as it ran."""
    token_strings: tuple[str, ...]
    """Each token decoded alone."""
    is_begin_token_added: bool = False
    """Whether its first token was put before the request's prompt."""
    zeroed_token_count: int = 0
    """Tokens, from the first, at which transcoders have neither features nor errors; 0 if features are no units."""
    layer_count: int
    """Layers of the model."""
    targets: tuple[GraphTargetInfo, ...]
    """The targets, in order."""
    active_feature_count: int
    """Pairs of a unit and a token that are active."""
    feature_count: int
    """Those of them that are nodes."""
    node_count: int
    """All nodes."""
    byte_count: int
    """At most so many bytes does the graph take, if it is kept."""
    sources: tuple[GraphSource, ...] = (GraphSource.FEATURES,)
    """What units are."""
    autoencoders: tuple[str, ...] = ()
    """Handles of the autoencoders whose latents are units."""


class GraphPhase(StrEnum):
    """What an answer is made by."""

    TARGETS = "targets"
    """The edges into targets are computed."""
    FEATURES = "features"
    """The edges into units are computed."""
    PRUNING = "pruning"
    """Influences are added up, and nodes and edges pruned."""
    RECORDING = "recording"
    """The prompt is run, before all else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphProgress:
    """How far the work is."""

    phase: GraphPhase
    """At what."""
    done: int
    """How much is done: nodes whose edges are known, or parts of recording and pruning."""
    total: int
    """How much there is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphNodeScores:
    """What is known of nodes once all edges are; m rows."""

    nodes: np.ndarray[Any, Any]
    """Their numbers, int32 [m]."""
    cumulative_scores: np.ndarray[Any, Any]
    """The share of all influence that the node and those of more influence have together, float32 [m]."""
    input_sums: np.ndarray[Any, Any]
    """The sum of the magnitudes of the edges into the node, over the whole graph, float32 [m]."""
    kept: np.ndarray[Any, Any]
    """Whether pruning keeps the node, bool [m]."""

    def __post_init__(self) -> None:
        """Check that all columns are as long; raises InvalidRequest."""
        check_columns(self)

    def rows(self, places: Any) -> Self:
        """The rows at *places*."""
        return type(self)(**{each.name: getattr(self, each.name)[places] for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """What pruning leaves, and how much of the graph passes through units rather than errors."""

    edge_count: int
    """Edges of the whole graph that are not 0."""
    node_threshold: float
    """The threshold of nodes."""
    edge_threshold: float
    """The threshold of edges."""
    kept_node_count: int
    """Nodes that are left."""
    kept_edge_count: int
    """Edges that are left."""
    replacement_score: float
    """Of the influence that ends in embeddings or errors, the share that ends in embeddings; of the whole graph."""
    completeness_score: float
    """The mean, over nodes by their influence, of the share of their input that does not come from errors; of the whole
    graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPath:
    """A path along edges."""

    nodes: tuple[int, ...]
    """Numbers of its nodes, from the first to the last."""
    strength: float
    """The product of its edges' shares of their targets, each with the sign of the edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPaths:
    """Paths, the strongest first."""

    paths: tuple[GraphPath, ...] = ()
    """The paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGraph:
    """A graph that the server keeps."""

    handle: str
    """What requests name it by."""
    byte_count: int
    """Bytes that it takes."""
    expire_time: datetime
    """When it is dropped, unless it is used before."""
    model: str
    """Handle of its model."""
    transcoders: str
    """Handle of its transcoders; empty if features are no units."""
    prompt: str
    """Its prompt, as text; the beginning of a long one."""
    node_count: int
    """Its nodes."""
    sources: tuple[GraphSource, ...] = (GraphSource.FEATURES,)
    """What its units are."""
    autoencoders: tuple[str, ...] = ()
    """Handles of the autoencoders whose latents are units."""


class GraphPartKind(StrEnum):
    """What a frame of an answer of Graph or QueryGraph holds."""

    HEADER = "header"
    """A GraphHeader, the first of Graph."""
    PROGRESS = "progress"
    """A GraphProgress, any number, of Graph."""
    NODES = "nodes"
    """A GraphNodeTable: of Graph all nodes, in order and in pieces; of QueryGraph those that the answer names."""
    SCORES = "scores"
    """The GraphNodeScores of the same nodes."""
    EDGES = "edges"
    """GraphEdges, in pieces."""
    SUMMARY = "summary"
    """The GraphSummary."""
    PATHS = "paths"
    """GraphPaths, of QueryGraph."""
    KEPT = "kept"
    """The KeptGraph, of Graph."""
    TRAILER = "trailer"
    """A RunsTrailer, the last."""


GraphValue = (
    GraphHeader
    | GraphProgress
    | GraphNodeTable
    | GraphNodeScores
    | GraphEdges
    | GraphSummary
    | GraphPaths
    | KeptGraph
    | RunsTrailer
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphPart:
    """One frame of an answer of Graph or QueryGraph."""

    kind: GraphPartKind
    """What it holds."""
    value: GraphValue
    """Its content."""
