"""Answers of Attribute: a header, the metrics of pairs, scores, a trailer. Plain values; scores are numpy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from dst_grpc.domain.attribute import AttributedNode, AttributionMethod, PropagationRule
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.pairs import Orientation
from dst_grpc.domain.results import Axis


class ScoredKind(StrEnum):
    """What scores are of."""

    NODES = "nodes"
    """Nodes of one kind."""
    EDGES = "edges"
    """Edges of the graph."""
    TOKENS = "tokens"
    """Tokens of the prompt, as inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresInfo:
    """An array of scores, without its elements."""

    tensor_id: int
    """Number of the array within its answer, from 0."""
    kind: ScoredKind
    """What the scores are of."""
    axes: tuple[Axis, ...]
    """Axes, outermost first."""
    node: AttributedNode | None = None
    """The kind of nodes, for NODES."""
    layer_indices: tuple[int, ...] = ()
    """The layers along the axis of layers; empty if there is none."""
    autoencoder: str = ""
    """Handle of the autoencoder set, for latents and their errors; empty for other nodes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeHeader:
    """The start of an answer: what the scores mean, and which follow."""

    model: str
    """Handle of the model that ran."""
    sources: tuple[str, ...] = ()
    """Names of the sources (S) of the graph, in their order."""
    readers: tuple[str, ...] = ()
    """Names of the readers (D), in their order."""
    edge_count: int = 0
    """Edges of the graph."""
    pair_count: int
    """Pairs of prompts."""
    orientation: Orientation
    """Which prompt of a pair is the base run."""
    method: AttributionMethod
    """Where gradients were taken."""
    rule: PropagationRule
    """How gradients passed."""
    meaning: str
    """What a score estimates, as a formula in words, with its sign."""
    token_ids: tuple[int, ...]
    """Tokens of the base prompt of the first pair."""
    token_strings: tuple[str, ...]
    """Each of them decoded alone."""
    scores: tuple[ScoresInfo, ...]
    """Every array that follows, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeProgress:
    """How far the work is."""

    done: int
    """Pairs that are scored, then pairs whose edges are verified."""
    total: int
    """Both, of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMetrics:
    """The metric of one pair."""

    base: float
    """In the base run."""
    source: float | None = None
    """In the source run, or at the baseline."""
    residual: float | None = None
    """For integrated gradients: base - source minus the sum of all attributions."""
    relative_residual: float | None = None
    """It over base - source; None if that is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributedPairs:
    """The metrics of all pairs, in the order of the request."""

    pairs: tuple[PairMetrics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEdges:
    """Exact effects of single edges, beside their scores; those of the largest magnitudes first."""

    sources: tuple[int, ...]
    """The source of each edge, by its place in the header."""
    readers: tuple[int, ...]
    """Its reader."""
    scores: tuple[float, ...]
    """Its score."""
    effects: tuple[float, ...]
    """By how much the metric changes if that edge alone carries the value of the source run; means over the pairs."""
    correlation: float | None = None
    """Pearson's correlation of scores and effects; None of fewer than two edges, or if either does not vary."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreValues:
    """Some consecutive elements of an array of scores, row-major."""

    tensor_id: int
    """Which array."""
    values: np.ndarray[Any, Any]
    """The elements [n]."""
    first: int = 0
    """Place of the first of them among all."""


class AttributePartKind(StrEnum):
    """What a frame of an answer of Attribute holds."""

    HEADER = "header"
    """An AttributeHeader, the first."""
    PROGRESS = "progress"
    """An AttributeProgress, any number."""
    PAIRS = "pairs"
    """The AttributedPairs."""
    VALUES = "values"
    """ScoreValues, array by array in the order of the header, each from its first element to its last."""
    VERIFIED = "verified"
    """The VerifiedEdges, if they are asked for."""
    TRAILER = "trailer"
    """A RunsTrailer, the last."""


AttributeValue = AttributeHeader | AttributeProgress | AttributedPairs | ScoreValues | VerifiedEdges | RunsTrailer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttributePart:
    """A part of an answer."""

    kind: AttributePartKind
    """What it is."""
    value: AttributeValue
    """The part."""
