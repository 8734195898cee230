"""The answer of `circuit`, as arrays with names, assembled from the parts of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dst_grpc._gen.dst.v1.circuit_pb2 import CircuitResponse
from dst_grpc.domain.circuit import (
    CircuitEdges,
    CircuitEvaluation,
    CircuitHeader,
    CircuitKind,
    CircuitNodes,
    CircuitPart,
    CircuitPartKind,
    CircuitProgress,
    CurveSummary,
)
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.pieces import corrupt

Array = np.ndarray[Any, np.dtype[Any]]


class ScoredEdge(NamedTuple):
    """An edge of a circuit."""

    source: str
    """Who writes."""
    reader: str
    """Who reads."""
    score: float
    """Its score; NaN without one."""

    def __str__(self) -> str:
        """Its name."""
        return f"{self.source}->{self.reader}"


class ScoredNode(NamedTuple):
    """A node of a circuit with latents."""

    name: str
    """Its name, such as "a0.h1" or "m2.l17"."""
    score: float
    """Its score; NaN without one."""

    def __str__(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitAnswer:
    """The whole answer of `circuit`."""

    request_id: str
    """The request's own id."""
    header: CircuitHeader
    """The graph, and how its circuits are made."""
    evaluations: tuple[CircuitEvaluation, ...]
    """Of all circuits: all edges, none, those given, those of the curve, the one that ACDC found."""
    trailer: RunsTrailer
    """How it ended."""
    curve: CurveSummary | None = None
    """The curve as a whole; None if there is none."""
    circuit: CircuitEdges | None = None
    """The edges of the smallest circuit of the curve that is as faithful as wanted; None if none is."""
    found: CircuitEdges | None = None
    """The edges that ACDC kept."""
    all_scores: CircuitEdges | None = None
    """All edges with their scores, if they were asked for."""
    kept_nodes: CircuitNodes | None = None
    """With latents, the nodes of the smallest circuit of the curve that is as faithful as wanted; None if none is."""
    found_nodes: CircuitNodes | None = None
    """With latents, the nodes that ACDC kept."""
    all_node_scores: CircuitNodes | None = None
    """With latents, all nodes with their scores, if they were asked for."""

    def of_kind(self, kind: CircuitKind) -> tuple[CircuitEvaluation, ...]:
        """The evaluations of one kind, in order."""
        return tuple(one for one in self.evaluations if one.kind is kind)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names along the first axis of scores (S)."""
        return self.header.sources

    @property
    def readers(self) -> tuple[str, ...]:
        """Names along the second axis of scores (D)."""
        return self.header.readers

    @property
    def whole(self) -> float:
        """Mean metric of the whole model."""
        return self.of_kind(CircuitKind.WHOLE)[0].metric

    @property
    def empty(self) -> float:
        """Mean metric of the circuit without edges."""
        return self.of_kind(CircuitKind.EMPTY)[0].metric

    @property
    def fractions(self) -> Array:
        """Fractions that the circuits of the curve keep, [n]."""
        return np.array([one.fraction for one in self.of_kind(CircuitKind.CURVE)], dtype=np.float64)

    @property
    def faithfulness(self) -> Array:
        """Faithfulness of the circuits of the curve, [n]; NaN where there is none."""
        values = [one.faithfulness for one in self.of_kind(CircuitKind.CURVE)]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    @property
    def edges(self) -> tuple[ScoredEdge, ...]:
        """The edges of the circuit: of the curve's, else of what ACDC found; empty if there is neither."""
        return self._named(self.circuit or self.found or CircuitEdges())

    @property
    def nodes(self) -> tuple[ScoredNode, ...]:
        """With latents, the nodes of the circuit: of the curve's, else of what ACDC found; empty without either."""
        found = self.kept_nodes or self.found_nodes or CircuitNodes()
        scores: Iterable[float] = found.scores or [np.nan] * len(found.nodes)
        return tuple(ScoredNode(self.node_name(i), score) for i, score in zip(found.nodes, scores, strict=True))

    def node_name(self, place: int) -> str:
        """The name of the node at a place of `scores`, with latents; raises IndexError if there is none."""
        if place < len(self.sources):
            return self.sources[place]
        for part in self.header.parts:
            latent = place - part.first_node
            if 0 <= latent < part.latent_count + part.has_error:
                return f"{part.name}.l{latent}" if latent < part.latent_count else f"{part.name}.error"
        raise IndexError(f"there are {self.header.node_count} nodes, and none at {place}")

    def place_of(self, name: str) -> int:
        """The place of a node, such as "m2.l17", among `scores`, with latents; raises KeyError if there is none."""
        if name in self.sources:
            return self.sources.index(name)
        owner, _, own = name.partition(".")
        for part in self.header.parts:
            if part.name != owner:
                continue
            if own == "error" and part.has_error:
                return part.first_node + part.latent_count
            if own[:1] == "l" and own[1:].isdecimal() and int(own[1:]) < part.latent_count:
                return part.first_node + int(own[1:])
        raise KeyError(name)

    @cached_property
    def scores(self) -> Array | None:
        """Scores of edges by source and reader, [S, D] float32, 0 where there is no edge; with latents, of nodes, [N];
        None if not asked for."""
        if self.all_node_scores is not None:
            return np.array(self.all_node_scores.scores, np.float32)
        if self.all_scores is None:
            return None
        scores = np.zeros((len(self.sources), len(self.readers)), np.float32)
        scores[list(self.all_scores.sources), list(self.all_scores.readers)] = self.all_scores.scores
        return scores

    def __repr__(self) -> str:
        kept = f"{len(self.edges)} of {self.header.edge_count} edges"
        if self.header.node_count:
            kept = f"{len(self.nodes)} of {self.header.node_count} nodes"
        counts = f"{self.header.pair_count} pairs, {kept}"
        return f"<CircuitAnswer {self.header.orientation}, {self.header.alternative}, {counts}>"

    def _named(self, edges: CircuitEdges) -> tuple[ScoredEdge, ...]:
        scores: Iterable[float] = edges.scores or [np.nan] * len(edges.sources)
        return tuple(
            ScoredEdge(self.sources[s], self.readers[r], score)
            for s, r, score in zip(edges.sources, edges.readers, scores, strict=True)
        )


@dataclass(slots=True)
class _Parts:
    """The parts so far."""

    header: CircuitHeader | None = None
    evaluations: list[CircuitEvaluation] = field(default_factory=list)
    single: dict[CircuitPartKind, Any] = field(default_factory=dict)


_CLASSES = (
    CircuitHeader,
    CircuitProgress,
    CircuitEvaluation,
    CurveSummary,
    CircuitEdges,
    CircuitNodes,
    RunsTrailer,
)


class CircuitCollector:
    """From messages to a CircuitAnswer, checked: nothing is missing, repeated or out of order."""

    def __init__(self, request_id: str, on_progress: Callable[[CircuitProgress], None] | None = None) -> None:
        self._request_id, self._on_progress = request_id, on_progress
        self._reader = ValueReader(_CLASSES)
        self._parts = _Parts()

    def add(self, message: CircuitResponse) -> CircuitAnswer | None:
        """Take the next message; see Collector."""
        whole: CircuitAnswer | None = None
        for frame in message.frames:
            found = self._reader.read(frame)
            whole = whole if found is None else self.take(CircuitPart(kind=CircuitPartKind(found[0]), value=found[1]))
        return whole

    def take(self, part: CircuitPart) -> CircuitAnswer | None:
        """Take the next part.

        Returns:
            The answer, if this part is the trailer.

        Raises:
            DataLoss: If the part contradicts earlier ones (ANSWER_CORRUPT), or frames are missing (ANSWER_TRUNCATED).
        """
        parts, value = self._parts, part.value
        if isinstance(value, CircuitHeader):
            if parts.header is not None:
                raise corrupt("the answer has two headers")
            parts.header = value
            return None
        if parts.header is None:
            raise corrupt(f"a {part.kind} came before the header")
        if isinstance(value, CircuitProgress):
            if self._on_progress is not None:
                self._on_progress(value)
        elif isinstance(value, CircuitEvaluation):
            parts.evaluations.append(value)
        elif isinstance(value, RunsTrailer):
            return self._finished(parts.header, value)
        elif part.kind in parts.single:
            raise corrupt(f"the answer has two parts {part.kind}")
        else:
            _check_items(parts.header, part)
            parts.single[part.kind] = value
        return None

    def _finished(self, header: CircuitHeader, trailer: RunsTrailer) -> CircuitAnswer:
        if trailer.frame_count != self._reader.count:
            message = f"the trailer counts {trailer.frame_count} frames, and {self._reader.count} came"
            raise DataLoss(f"the answer is truncated: {message}", reason=Reason.ANSWER_TRUNCATED)
        single: Mapping[CircuitPartKind, Any] = self._parts.single
        answer = CircuitAnswer(
            request_id=self._request_id,
            header=header,
            evaluations=tuple(self._parts.evaluations),
            trailer=trailer,
            curve=single.get(CircuitPartKind.CURVE),
            circuit=single.get(CircuitPartKind.CIRCUIT),
            found=single.get(CircuitPartKind.FOUND),
            all_scores=single.get(CircuitPartKind.SCORES),
            kept_nodes=single.get(CircuitPartKind.NODES),
            found_nodes=single.get(CircuitPartKind.FOUND_NODES),
            all_node_scores=single.get(CircuitPartKind.NODE_SCORES),
        )
        if not answer.of_kind(CircuitKind.WHOLE) or not answer.of_kind(CircuitKind.EMPTY):
            raise corrupt("the whole model or the empty circuit is missing")
        return answer


def _check_items(header: CircuitHeader, part: CircuitPart) -> None:
    """Check that edges and nodes are those of the header."""
    if isinstance(part.value, CircuitNodes):
        nodes = part.value
        if len(nodes.scores) not in {0, len(nodes.nodes)}:
            raise corrupt(f"the lists of {part.kind} are of different lengths")
        if nodes.nodes and max(nodes.nodes) >= header.node_count:
            raise corrupt(f"{part.kind} has nodes that the header does not count")
    if not isinstance(part.value, CircuitEdges):
        return
    edges = part.value
    n = len(edges.sources)
    if len(edges.readers) != n or len(edges.scores) not in {0, n}:
        raise corrupt(f"the lists of {part.kind} are of different lengths")
    if n and (max(edges.sources) >= len(header.sources) or max(edges.readers) >= len(header.readers)):
        raise corrupt(f"{part.kind} has edges of nodes that the header does not name")
