"""Answers of Patch: the metric of each changed run, cell by cell, and means over pairs. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.pairs import Alternative, Orientation


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAxis:
    """An axis of a grid."""

    name: str
    """What it runs over: "layer", "head", "group", "neuron", "latent", "position", "sender", "receiver", "edge" or
    "cell"."""
    labels: tuple[str, ...]
    """A label for each place along it: numbers, tokens, or names."""
    indices: tuple[int, ...] = ()
    """The number of each: of the layer, head, position; empty where there are only names."""


class PatchGridKind(StrEnum):
    """What the cells of a grid change."""

    NODES = "nodes"
    """A node, in all that reads it."""
    DIRECT_PATHS = "direct_paths"
    """What a reader reads of a source, and nothing in between."""
    PATHS_THROUGH_MLPS = "paths_through_mlps"
    """What readers read of a head, directly and through MLPs in between."""
    INTERVENTIONS = "interventions"
    """What the request says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGridInfo:
    """One grid of an answer."""

    kind: PatchGridKind
    """What its cells change."""
    node: AttributedNode | None = None
    """The node, of NODES."""
    all_positions: bool = False
    """Whether a cell changes all its positions at once."""
    axes: tuple[PatchAxis, ...] = ()
    """Its axes, outermost first. The number of a cell is its place in this order, row-major."""
    cell_count: int
    """How many cells there are: fewer than places if some places, such as those of edges that do not exist, have
    none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        return tuple(len(axis.labels) for axis in self.axes)

    @property
    def size(self) -> int:
        """How many places it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchHeader:
    """The start of an answer: its grids, and what their cells are."""

    model: str
    """Handle of the model that ran."""
    orientation: Orientation
    """Which prompt of a pair was run."""
    alternative: Alternative
    """What took the place of nodes."""
    pair_count: int
    """Pairs of prompts."""
    grids: tuple[PatchGridInfo, ...]
    """The grids, in the order of the request: of nodes, of paths, of edges, of its own cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedPair:
    """The runs of a pair without any change."""

    pair: int
    """Which pair."""
    token_strings: tuple[str, ...]
    """The tokens of the prompt that is run."""
    metric: float
    """Its metric."""
    source_metric: float | None = None
    """The metric of the other prompt; None if there is none."""
    has_recovery: bool = False
    """Whether the two differ enough for recoveries: by at least 1e-6 of the larger, or of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedCells:
    """Cells of one grid and pair, as soon as they are done, in any order."""

    grid: int
    """Which grid."""
    pair: int
    """Which pair."""
    cells: tuple[int, ...]
    """The number of each cell."""
    metrics: tuple[float, ...]
    """The metric of each changed run."""
    divergences: tuple[float, ...] = ()
    """KL(clean run, changed run) of the last token's distributions, in nats, if asked for."""
    logit_ids: tuple[int, ...] = ()
    """If only the largest logits were asked for: their tokens, those of one cell after those of another."""
    logits: tuple[float, ...] = ()
    """Logits at the last token, if asked for: of all tokens, or of `logit_ids`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMeans:
    """Means over pairs of the cells of one grid, once all are done."""

    grid: int
    """Which grid."""
    cells: tuple[int, ...]
    """The number of each cell, ascending."""
    metrics: tuple[float, ...]
    """Mean metrics."""
    recoveries: tuple[float, ...] = ()
    """Mean recoveries, over the pairs that have one; empty if none has."""
    divergences: tuple[float, ...] = ()
    """Mean divergences, if asked for."""
    recovery_pair_count: int = 0
    """How many pairs have recoveries."""


class PatchPartKind(StrEnum):
    """What a frame of an answer of Patch holds."""

    HEADER = "header"
    """A PatchHeader, the first."""
    PAIR = "pair"
    """A PatchedPair, one for each pair, before its cells."""
    CELLS = "cells"
    """PatchedCells, any number."""
    MEANS = "means"
    """PatchMeans, one for each grid, after all cells."""
    TRAILER = "trailer"
    """A RunsTrailer, the last."""


PatchValue = PatchHeader | PatchedPair | PatchedCells | PatchMeans | RunsTrailer


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPart:
    """One frame of an answer of Patch."""

    kind: PatchPartKind
    """What it holds."""
    value: PatchValue
    """Its content."""
