"""The answer of `patch`, as arrays with named axes, assembled from the parts of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dst_grpc._gen.dst.v1.patch_pb2 import PatchResponse
from dst_grpc.client._given import how_many
from dst_grpc.client._labels import token_at
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.patch_answers import (
    PatchAxis,
    PatchedCells,
    PatchedPair,
    PatchGridInfo,
    PatchGridKind,
    PatchHeader,
    PatchMeans,
    PatchPartKind,
)
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.pieces import corrupt

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MAX_ANSWER_PLACES = 1 << 27
"""Most places of all grids and pairs that an answer may announce."""
_NAMES = {
    PatchGridKind.DIRECT_PATHS: "paths",
    PatchGridKind.PATHS_THROUGH_MLPS: "paths",
    PatchGridKind.INTERVENTIONS: "cells",
}


class PatchProgress(NamedTuple):
    """How far the work is."""

    done: int
    """Changed runs that are done."""
    total: int
    """How many there are."""


class RankedCell(NamedTuple):
    """One cell, with its place."""

    metric: float
    """Its mean metric."""
    recovery: float
    """Its mean recovery; NaN if there is none."""
    labels: tuple[str, ...]
    """Its label along each axis; of a token with its position: "9 ' John'"."""

    def __str__(self) -> str:
        """Metric, recovery and labels."""
        return " ".join((f"{self.metric:+z.4g}", f"({self.recovery:+z.0%})", *self.labels))


@dataclass(frozen=True, eq=False)
class PatchedGrid:
    """A grid of changed runs: arrays of one shape with named axes, NaN at places that have no cell. Where an array is
    wanted, it is `metric`."""

    info: PatchGridInfo
    """What its cells change, and its axes."""
    metrics: Array
    """The metric of each changed run, [pairs, ...] float64."""
    metric: Array
    """Its mean over pairs, [...] float64."""
    recovery: Array
    """Mean over pairs of (metric - base) / (source - base), [...] float64: 0 where a cell changes nothing, 1 where it
    makes all of the difference. NaN if the metrics of no pair differ enough."""
    divergences: Array | None = None
    """KL(clean run, changed run) of each changed run in nats, [pairs, ...]; None if not asked for."""
    divergence: Array | None = None
    """Its mean over pairs, [...]."""
    logits: Array | None = None
    """Logits at the last token, [pairs, ..., V or k] float32; None if not asked for."""
    logit_ids: Array | None = None
    """The tokens of the k largest logits, [pairs, ..., k]; None if all or none were asked for."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, e.g. ("layer", "position")."""
        return tuple(axis.name for axis in self.info.axes)

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """Labels along each axis: numbers, tokens or names."""
        return tuple(axis.labels for axis in self.info.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.info.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.metric, dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        """A part of the mean metrics; of paths also by the edge's name, `paths["a0.h1->m2"]`."""
        if not isinstance(index, str):
            return self.metric[index]
        names = (index,) if len(self.shape) == 1 else tuple(index.split("->"))
        try:
            place = tuple(labels.index(name) for labels, name in zip(self.labels, names, strict=True))
        except ValueError:
            raise KeyError(f"the grid has no cell {index}") from None
        return self.metric[place]

    def top(self, k: int = 10) -> tuple[RankedCell, ...]:
        """The *k* cells with the largest magnitude of recovery, or else of the metric, the largest first; raises
        InvalidRequest if *k* is negative."""
        values = self.metric if np.isnan(self.recovery).all() else self.recovery
        known = np.flatnonzero(~np.isnan(values.reshape(-1)))
        order = known[np.argsort(-np.abs(values.reshape(-1)[known]), kind="stable")[: how_many("k", k)]]
        return tuple(
            RankedCell(
                float(self.metric.reshape(-1)[place]),
                float(self.recovery.reshape(-1)[place]),
                tuple(
                    _label(axis, int(i))
                    for axis, i in zip(self.info.axes, np.unravel_index(place, self.shape), strict=True)
                ),
            )
            for place in order
        )

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis.name}: {len(axis.labels)}" for axis in self.info.axes)
        return f"<PatchedGrid of {self.info.node or self.info.kind} [{axes}]>"


def _label(axis: PatchAxis, i: int) -> str:
    """The label of one place along an axis."""
    is_token = axis.name == "position" and i < len(axis.indices)
    return token_at(axis.indices[i], axis.labels[i]) if is_token else axis.labels[i]


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchAnswer:
    """The whole answer of `patch`: `answer["resid_pre"].recovery`, `answer["paths"]`, `answer.grids[0]`."""

    request_id: str
    """The request's own id."""
    header: PatchHeader
    """What the cells are."""
    pairs: tuple[PatchedPair, ...]
    """Each pair's own runs, in the order of the request."""
    grids: tuple[PatchedGrid, ...]
    """The grids, in the order of the request: of nodes, of paths, of edges, of its own cells."""
    trailer: RunsTrailer
    """How it ended."""

    @property
    def base(self) -> float:
        """Mean metric of the prompts that are run."""
        return float(np.mean([pair.metric for pair in self.pairs]))

    @property
    def source(self) -> float:
        """Mean metric of the other prompts; NaN if there are none."""
        found = [np.nan if pair.source_metric is None else pair.source_metric for pair in self.pairs]
        return float(np.mean(found))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the first pair's prompt that is run."""
        return self.pairs[0].token_strings

    def __getitem__(self, name: str) -> PatchedGrid:
        """The first grid of a node, or "paths", "edges", "cells"; raises KeyError if there is none."""
        for grid in self.grids:
            if name in self._names(grid):
                return grid
        known = ", ".join(dict.fromkeys(each for grid in self.grids for each in self._names(grid)))
        raise KeyError(f"the answer has no grid of {name}, but of {known}")

    def _names(self, grid: PatchedGrid) -> tuple[str, ...]:
        if grid.info.node is not None:
            return (grid.info.node.value,)
        return ("edges",) if grid.axes == ("edge",) else (_NAMES[grid.info.kind],)

    def __repr__(self) -> str:
        header = self.header
        return f"<PatchAnswer {header.orientation}, {header.alternative}, {len(self.pairs)} pairs, {list(self.grids)}>"


@dataclass(slots=True)
class _Filled:
    """One grid, as far as it has come."""

    info: PatchGridInfo
    metrics: Array
    counts: Array
    means: PatchMeans | None = None
    divergences: Array | None = None
    logits: Array | None = None
    logit_ids: Array | None = None

    def take(self, part: PatchedCells) -> None:
        """Fill in cells of a pair; raises DataLoss if they do not fit."""
        n, cells = len(part.cells), list(part.cells)
        lists = (part.metrics, part.divergences or part.metrics)
        if any(len(values) != n for values in lists) or (n and len(part.logits) % n):
            raise corrupt(f"the lists of cells of grid {part.grid} are of different lengths")
        if n and max(cells) >= self.info.size:
            raise corrupt(f"grid {part.grid} has no cell {max(cells)}")
        self.counts[part.pair, cells] += 1
        self.metrics[part.pair, cells] = part.metrics
        if part.divergences:
            self.divergences = self._room(self.divergences, ())
            self.divergences[part.pair, cells] = part.divergences
        each = len(part.logits) // n if n else 0
        if part.logits:
            self.logits = self._room(self.logits, (each,), np.float32)
            self.logits[part.pair, cells] = np.reshape(part.logits, (n, each))
        if part.logit_ids:
            if len(part.logit_ids) != len(part.logits):
                raise corrupt(f"the logits of grid {part.grid} are not as many as their tokens")
            self.logit_ids = self._room(self.logit_ids, (each,), np.int64)
            self.logit_ids[part.pair, cells] = np.reshape(part.logit_ids, (n, each))

    def _room(self, known: Array | None, each: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """The array [pairs, places, *each*] to fill in."""
        shape = (*self.metrics.shape, *each)
        if known is None:
            return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -1, dtype)
        if known.shape != shape:
            raise corrupt("cells have different numbers of logits")
        return known

    def whole(self) -> PatchedGrid | None:
        """The grid; None if a cell is missing, or came twice."""
        means = self.means
        is_complete = (self.counts <= 1).all() and (self.counts.sum(axis=1) == self.info.cell_count).all()
        if means is None or not is_complete or len(means.cells) != self.info.cell_count:
            return None
        shape = self.info.shape

        def mean(values: tuple[float, ...]) -> Array:
            found = np.full(self.info.size, np.nan)
            if values:
                found[list(means.cells)] = values
            return found.reshape(shape)

        def of_pairs(values: Array | None) -> Array | None:
            return None if values is None else values.reshape(len(self.metrics), *shape, *values.shape[2:])

        return PatchedGrid(
            self.info,
            self.metrics.reshape(-1, *shape),
            mean(means.metrics),
            mean(means.recoveries),
            of_pairs(self.divergences),
            mean(means.divergences) if means.divergences else None,
            of_pairs(self.logits),
            of_pairs(self.logit_ids),
        )


class PatchCollector:
    """From messages to a PatchAnswer, checked: nothing is missing, repeated or out of order."""

    def __init__(self, request_id: str, on_progress: Callable[[PatchProgress], None] | None = None) -> None:
        self._request_id, self._on_progress = request_id, on_progress
        self._reader = ValueReader(_CLASSES)
        self._header: PatchHeader | None = None
        self._pairs: list[PatchedPair] = []
        self._grids: list[_Filled] = []

    def add(self, message: PatchResponse) -> PatchAnswer | None:
        """Take the next message; see Collector."""
        whole: PatchAnswer | None = None
        for frame in message.frames:
            part = self._reader.read(frame)
            if part is not None:
                whole = self._take(*part) or whole
        return whole

    def _take(self, kind: str, value: Any) -> PatchAnswer | None:
        if kind == PatchPartKind.HEADER:
            self._begin(value)
        elif self._header is None:
            raise corrupt(f"a {kind} came before the header")
        elif kind == PatchPartKind.TRAILER:
            return self._finished(self._header, value)
        elif kind == PatchPartKind.PAIR:
            if value.pair != len(self._pairs) or value.pair >= self._header.pair_count:
                raise corrupt(f"pair {value.pair} came after {len(self._pairs)} of {self._header.pair_count}")
            self._pairs.append(value)
        elif kind == PatchPartKind.CELLS:
            if value.pair >= len(self._pairs):
                raise corrupt(f"cells of pair {value.pair} came before it")
            self._grid(value).take(value)
            self._report()
        elif kind == PatchPartKind.MEANS:
            grid = self._grid(value)
            if grid.means is not None or (value.cells and max(value.cells) >= grid.info.size):
                raise corrupt(f"the means of grid {value.grid} came twice, or do not fit it")
            grid.means = value
        return None

    def _begin(self, header: PatchHeader) -> None:
        if self._header is not None:
            raise corrupt("a second header came")
        total = header.pair_count * sum(info.size for info in header.grids)
        if total > MAX_ANSWER_PLACES:
            raise corrupt(f"the header announces {total} places, more than {MAX_ANSWER_PLACES}")
        self._header = header
        for info in header.grids:
            shape = (header.pair_count, info.size)
            self._grids.append(_Filled(info, np.full(shape, np.nan), np.zeros(shape, np.uint8)))

    def _grid(self, part: PatchedCells | PatchMeans) -> _Filled:
        if part.grid >= len(self._grids):
            raise corrupt(f"there is no grid {part.grid}")
        return self._grids[part.grid]

    def _report(self) -> None:
        if self._on_progress is not None and self._header is not None:
            total = self._header.pair_count * sum(info.cell_count for info in self._header.grids)
            self._on_progress(PatchProgress(int(sum(grid.counts.sum() for grid in self._grids)), total))

    def _finished(self, header: PatchHeader, trailer: RunsTrailer) -> PatchAnswer:
        grids = [grid.whole() for grid in self._grids]
        known = tuple(grid for grid in grids if grid is not None)
        are_all = len(known) == len(grids) and len(self._pairs) == header.pair_count
        if not are_all or trailer.frame_count != self._reader.count:
            what = f"{self._reader.count} of {trailer.frame_count} frames came"
            raise DataLoss(f"the answer is truncated: {what}", reason=Reason.ANSWER_TRUNCATED)
        return PatchAnswer(
            request_id=self._request_id, header=header, pairs=tuple(self._pairs), grids=known, trailer=trailer
        )


_CLASSES: tuple[type, ...] = (PatchHeader, PatchedPair, PatchedCells, PatchMeans, RunsTrailer)
