"""The answer of `attribute`, as arrays with named axes, assembled from the parts of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from dst_grpc._gen.dst.v1.attribute_pb2 import AttributeResponse
from dst_grpc.client._given import how_many
from dst_grpc.client._labels import token_at
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.attribute_answers import (
    AttributedPairs,
    AttributeHeader,
    AttributePartKind,
    AttributeProgress,
    PairMetrics,
    ScoredKind,
    ScoresInfo,
    ScoreValues,
    VerifiedEdges,
)
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_nodes import Edge
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.pieces import corrupt

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

MAX_ANSWER_ELEMENTS = 2 << 30
"""Most scores that an answer may announce."""


class ScoredEntry(NamedTuple):
    """One score, with its place."""

    score: float
    """The score."""
    labels: tuple[str, ...]
    """Its label along each axis; of a token with its position: "9 ' John'"."""

    def __str__(self) -> str:
        """Score and labels."""
        return " ".join((f"{self.score:+z.4g}", *self.labels))


@dataclass(frozen=True, eq=False)
class Scores:
    """An array of scores with named axes. It can be used wherever an array can."""

    info: ScoresInfo
    """What the scores are of."""
    values: Array
    """The scores."""
    labels: tuple[tuple[str, ...], ...]
    """Labels along each axis: names of sources and readers, tokens, or numbers."""

    @property
    def axes(self) -> tuple[Dimension, ...]:
        """What each axis runs over."""
        return tuple(axis.dimension for axis in self.info.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.info.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        """A part of the values; of edges also by name: `edges["a0.h1->m2"]`."""
        if not isinstance(index, str):
            return self.values[index]
        if self.info.kind is not ScoredKind.EDGES:
            raise KeyError(f"only edges have names, not {self.info.kind}")
        edge = Edge.named(index)
        try:
            place = self.labels[-2].index(str(edge.source)), self.labels[-1].index(str(edge.reader))
        except ValueError:
            raise KeyError(f"the model has no edge {index}") from None
        return self.values[(..., *place)]

    def places(self, k: int = 10) -> tuple[tuple[int, ...], ...]:
        """Where the *k* scores of the largest magnitudes are, the largest first: their indices along each axis.

        Raises:
            InvalidRequest: If *k* is negative.
        """
        order = np.argsort(-np.abs(self.values.reshape(-1)), kind="stable")[: how_many("k", k)]
        # One at a time: numpy has no lists of places in an array without axes.
        return tuple(tuple(map(int, np.unravel_index(place, self.values.shape))) for place in order)

    def top(self, k: int = 10) -> tuple[ScoredEntry, ...]:
        """The *k* scores of the largest magnitudes, the largest first; raises InvalidRequest if *k* is negative."""
        return tuple(
            ScoredEntry(float(self.values[place]), tuple(map(self._label, range(len(place)), place)))
            for place in self.places(k)
        )

    def _label(self, axis: int, i: int) -> str:
        """The label of one place along an axis."""
        label = self.labels[axis][i]
        return token_at(i, label) if self.axes[axis] is Dimension.SEQUENCE_TOKENS else label

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis.dimension}: {axis.size}" for axis in self.info.axes)
        return f"<Scores of {self.info.node or self.info.kind} [{axes}]>"


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionAnswer:
    """The whole answer of `attribute`: `answer.edges`, `answer["head"]`, `answer.tokens`."""

    request_id: str
    """The request's own id."""
    header: AttributeHeader
    """What the scores mean."""
    pairs: tuple[PairMetrics, ...]
    """The metrics of all pairs, in the order of the request."""
    scores: tuple[Scores, ...]
    """All arrays of scores."""
    trailer: RunsTrailer
    """How it ended."""
    verified: VerifiedEdges | None = None
    """Exact effects of the best edges; None if not asked for."""

    @property
    def edges(self) -> Scores:
        """Scores of edges by source and reader, 0 where there is no edge; raises KeyError if not asked for."""
        return self._only(ScoredKind.EDGES)

    @property
    def tokens(self) -> Scores:
        """Integrated gradients of tokens; raises KeyError if not asked for."""
        return self._only(ScoredKind.TOKENS)

    def _only(self, kind: ScoredKind) -> Scores:
        for one in self.scores:
            if one.info.kind is kind:
                return one
        raise KeyError(f"the answer has no scores of {kind}")

    def __getitem__(self, node: AttributedNode | str) -> Scores:
        """Scores of one kind of nodes."""
        found = [one for one in self.scores if one.info.node == node]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"there are several autoencoders with nodes of kind {node}: look through `scores`")
        known = ", ".join(one.info.node for one in self.scores if one.info.node) or "no nodes"
        raise KeyError(f"the answer has no {node}; it has {known}")

    def __iter__(self) -> Iterator[Scores]:
        return iter(self.scores)

    def __repr__(self) -> str:
        return f"<AttributionAnswer {self.header.method}, {len(self.pairs)} pairs, {list(self.scores)}>"


@dataclass(slots=True)
class _Parts:
    """The parts so far."""

    header: AttributeHeader | None = None
    values: list[Array] = field(default_factory=list)
    filled: int = 0
    single: dict[str, Any] = field(default_factory=dict)


class AttributionCollector:
    """From messages to an AttributionAnswer, checked: nothing is missing, repeated or out of order."""

    def __init__(self, request_id: str, on_progress: Callable[[AttributeProgress], None] | None = None) -> None:
        self._request_id, self._on_progress = request_id, on_progress
        self._reader = ValueReader(_CLASSES)
        self._parts = _Parts()

    def add(self, message: AttributeResponse) -> AttributionAnswer | None:
        """Take the next message; see Collector."""
        whole: AttributionAnswer | None = None
        for frame in message.frames:
            part = self._reader.read(frame)
            if part is not None:
                whole = self._take(*part) or whole
        return whole

    def _take(self, kind: str, value: Any) -> AttributionAnswer | None:
        if kind == AttributePartKind.HEADER:
            self._begin(value)
        elif self._parts.header is None:
            raise corrupt(f"a {kind} came before the header")
        elif kind == AttributePartKind.TRAILER:
            return self._finished(self._parts.header, value)
        elif kind == AttributePartKind.VALUES:
            self._fill(self._parts.header, value)
        elif kind == AttributePartKind.PROGRESS:
            if self._on_progress is not None:
                self._on_progress(value)
        elif kind in self._parts.single:
            raise corrupt(f"a second {kind} came")
        else:
            self._parts.single[kind] = value
        return None

    def _begin(self, header: AttributeHeader) -> None:
        if self._parts.header is not None:
            raise corrupt("a second header came")
        total = sum(info.size for info in header.scores)
        if total > MAX_ANSWER_ELEMENTS:
            raise corrupt(f"the header announces {total} scores, more than {MAX_ANSWER_ELEMENTS}")
        self._parts.header = header

    def _fill(self, header: AttributeHeader, piece: ScoreValues) -> None:
        values, place = self._parts.values, len(self._parts.values) - 1
        if not values or (self._parts.filled == values[-1].size and piece.tensor_id == len(values)):
            place += 1
            if place >= len(header.scores):
                raise corrupt("scores came that the header does not announce")
            values.append(np.empty(header.scores[place].size, np.float32))
            self._parts.filled = 0
        end = self._parts.filled + piece.values.size
        is_next = piece.tensor_id == place and piece.first == self._parts.filled
        if not is_next or piece.values.ndim != 1 or end > values[-1].size:
            raise corrupt(f"{piece.values.size} scores from {piece.first} of array {piece.tensor_id} were not due")
        values[-1][self._parts.filled : end] = piece.values
        self._parts.filled = end

    def _finished(self, header: AttributeHeader, trailer: RunsTrailer) -> AttributionAnswer:
        parts = self._parts
        is_filled = not parts.values or parts.filled == parts.values[-1].size
        are_all = len(parts.values) == len(header.scores) and is_filled and AttributePartKind.PAIRS in parts.single
        if not are_all or trailer.frame_count != self._reader.count:
            what = f"{self._reader.count} of {trailer.frame_count} frames came"
            raise DataLoss(f"the answer is truncated: {what}", reason=Reason.ANSWER_TRUNCATED)
        return AttributionAnswer(
            request_id=self._request_id,
            header=header,
            pairs=cast("AttributedPairs", parts.single[AttributePartKind.PAIRS]).pairs,
            scores=tuple(_scores(header, *each) for each in zip(header.scores, parts.values, strict=True)),
            trailer=trailer,
            verified=parts.single.get(AttributePartKind.VERIFIED),
        )


def _scores(header: AttributeHeader, info: ScoresInfo, values: Array) -> Scores:
    named: Mapping[Dimension, tuple[str, ...]] = {
        Dimension.GRAPH_SOURCES: header.sources,
        Dimension.GRAPH_READERS: header.readers,
        Dimension.SEQUENCE_TOKENS: header.token_strings,
        Dimension.LAYERS: tuple(map(str, info.layer_indices)),
    }
    labels = []
    for axis in info.axes:
        found = named.get(axis.dimension) or tuple(map(str, range(axis.size)))
        if len(found) != axis.size:
            raise corrupt(f"an axis of {axis.dimension} has size {axis.size}, and {len(found)} labels")
        labels.append(found)
    return Scores(info, values.reshape(info.shape), tuple(labels))


_CLASSES: tuple[type, ...] = (
    AttributeHeader,
    AttributeProgress,
    AttributedPairs,
    ScoreValues,
    VerifiedEdges,
    RunsTrailer,
)
