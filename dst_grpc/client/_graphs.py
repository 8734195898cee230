"""The answers of `graph` and of questions about kept graphs, assembled from the parts of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from dst_grpc._gen.dst.v1.graph_pb2 import GraphResponse, QueryGraphResponse
from dst_grpc.client._graph_requests import make_pruning
from dst_grpc.client._graph_views import Array, GraphView
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_answers import (
    GraphHeader,
    GraphNodeScores,
    GraphPart,
    GraphPartKind,
    GraphPath,
    GraphPaths,
    GraphProgress,
    GraphSummary,
    KeptGraph,
)
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, GraphNodeKind, GraphNodeTable
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from dst_grpc.graphs.influence import prune
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes, GraphTargets
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.pieces import corrupt

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphAnswer(GraphView):
    """The whole answer of `graph`: all nodes, and the edges that were asked for."""

    request_id: str
    """The request's own id."""
    header: GraphHeader
    """The run, and which nodes there are."""
    summary: GraphSummary
    """The pruned graph as a whole."""
    kept: KeptGraph | None = None
    """The graph that the server keeps; None if it keeps none."""

    @property
    def handle(self) -> str | None:
        """What questions about the kept graph name it by; None if it is not kept."""
        return None if self.kept is None else self.kept.handle

    @property
    def is_whole(self) -> bool:
        """Whether all edges are here."""
        return len(self.edges) == self.summary.edge_count

    @cached_property
    def adjacency(self) -> Array:
        """Weights by target and source, [n, n] float32; 0 where there is no edge, or it is not here."""
        return self.edges.matrix(len(self.table))

    @property
    def replacement_score(self) -> float:
        """Of the influence that ends in embeddings or errors, the share that ends in embeddings."""
        return self.summary.replacement_score

    @property
    def completeness_score(self) -> float:
        """The mean, over nodes by their influence, of the share of their input that does not come from errors."""
        return self.summary.completeness_score

    def prune(self, node_threshold: float, edge_threshold: float) -> GraphAnswer:
        """The graph pruned at other thresholds, which needs all edges: those of `edges="whole"`.

        Raises:
            InvalidRequest: If a threshold is no share, or not all edges are here; `prune_graph` of the client asks the
                server for it.
        """
        asked = make_pruning(node_threshold, edge_threshold)
        if not self.is_whole:
            raise InvalidRequest.of(
                "edges", 'must have been "whole": not all edges are here, but prune_graph prunes a graph that is kept'
            )
        nodes = self._graph_nodes
        graph = AttributionGraph(nodes=nodes, effects=self.edges.matrix(len(nodes), nodes.readers))
        found = prune(graph, asked.node_threshold, asked.edge_threshold)
        edges = self.edges.at(found.edge_mask[np.searchsorted(nodes.readers, self.edges.ends), self.edges.sources])
        summary = replace(
            self.summary,
            node_threshold=asked.node_threshold,
            edge_threshold=asked.edge_threshold,
            kept_node_count=int(found.node_mask.sum()),
            kept_edge_count=len(edges),
        )
        return replace(self, scores=replace(self.scores, kept=found.node_mask), edges=edges, summary=summary)

    @property
    def _graph_nodes(self) -> GraphNodes:
        """The nodes, as far as pruning reads them."""
        header, table = self.header, self.table
        of_features, of_errors = (table.rows(table.has_kind(*kinds)) for kinds in (UNIT_KINDS, ERROR_KINDS))
        first = of_errors.rows(of_errors.tokens == 0)
        n_targets = len(header.targets)
        return GraphNodes(
            token_ids=np.array(header.token_ids),
            n_layers=header.layer_count,
            active=np.stack([of_features.layers, of_features.tokens, of_features.features], axis=1),
            kinds=of_features.kinds,
            errors=tuple(
                (GraphNodeKind.numbered(kind), layer)
                for kind, layer in zip(first.kinds.tolist(), first.layers.tolist(), strict=True)
            ),
            activations=of_features.activations,
            selected=np.arange(len(of_features)),
            targets=GraphTargets(
                token_ids=np.array([-1 if one.token_id is None else one.token_id for one in header.targets]),
                names=tuple(one.name for one in header.targets),
                weights=np.array([one.weight for one in header.targets], np.float32),
                vectors=np.zeros((n_targets, 0), np.float32),
            ),
        )

    def __repr__(self) -> str:
        summary = self.summary
        counts = (
            f"{summary.kept_node_count} of {len(self.table)} nodes, {len(self.edges)} of {summary.edge_count} edges"
        )
        return f"<GraphAnswer {counts}, replacement {self.replacement_score:.3f}>"


@dataclass(slots=True)
class _Parts:
    """The parts so far."""

    header: GraphHeader | None = None
    tables: list[GraphNodeTable] = field(default_factory=list)
    scores: list[GraphNodeScores] = field(default_factory=list)
    edges: list[GraphEdges] = field(default_factory=list)
    paths: tuple[GraphPath, ...] = ()
    summary: GraphSummary | None = None
    kept: KeptGraph | None = None


_CLASSES = (
    GraphHeader,
    GraphProgress,
    GraphNodeTable,
    GraphNodeScores,
    GraphEdges,
    GraphSummary,
    GraphPaths,
    KeptGraph,
    RunsTrailer,
)


class GraphPartReader:
    """Reads messages as parts, and counts the frames."""

    def __init__(self) -> None:
        self._reader = ValueReader(_CLASSES)

    def read(self, message: GraphResponse | QueryGraphResponse) -> Sequence[GraphPart]:
        """The parts that *message* completes.

        Raises:
            DataLoss: If it cannot be read (ANSWER_CORRUPT), or frames are missing (ANSWER_TRUNCATED).
        """
        parts = []
        for frame in message.frames:
            found = self._reader.read(frame)
            if found is None:
                continue
            kind, value = found
            if isinstance(value, RunsTrailer) and value.frame_count != self._reader.count:
                message_text = f"the trailer counts {value.frame_count} frames, and {self._reader.count} came"
                raise DataLoss(f"the answer is truncated: {message_text}", reason=Reason.ANSWER_TRUNCATED)
            parts.append(GraphPart(kind=GraphPartKind(kind), value=value))
        return parts


class GraphViewCollector:
    """From messages to a GraphView, checked: nothing is repeated or contradicts the rest."""

    def __init__(self, on_progress: Callable[[GraphProgress], None] | None = None) -> None:
        self._on_progress = on_progress
        self._reader = GraphPartReader()
        self._parts = _Parts()

    def add(self, message: GraphResponse | QueryGraphResponse) -> GraphView | None:
        """Take the next message; see Collector."""
        whole: GraphView | None = None
        for part in self._reader.read(message):
            whole = self.take(part) or whole
        return whole

    def take(self, part: GraphPart) -> GraphView | None:
        """Take the next part.

        Returns:
            The answer, if this part is the trailer.

        Raises:
            DataLoss: (ANSWER_CORRUPT) If the part contradicts earlier ones.
        """
        parts, value = self._parts, part.value
        if isinstance(value, GraphProgress):
            if self._on_progress is not None:
                self._on_progress(value)
        elif isinstance(value, GraphNodeTable):
            parts.tables.append(value)
        elif isinstance(value, GraphNodeScores):
            parts.scores.append(value)
        elif isinstance(value, GraphEdges):
            parts.edges.append(value)
        elif isinstance(value, GraphPaths):
            parts.paths += value.paths
        elif isinstance(value, RunsTrailer):
            return self._finished(value)
        elif getattr(parts, part.kind) is not None:
            raise corrupt(f"the answer has two parts {part.kind}")
        else:
            setattr(parts, part.kind, value)
        return None

    def _finished(self, trailer: RunsTrailer) -> GraphView:
        return GraphView(**self._columns(), trailer=trailer, summary=self._parts.summary)

    def _columns(self) -> dict[str, Any]:
        """Nodes, scores, edges and paths, checked against one another."""
        parts = self._parts
        table, scores = _joined(GraphNodeTable, parts.tables), _joined(GraphNodeScores, parts.scores)
        edges = GraphEdges.joined(parts.edges).ascending
        if (np.diff(table.nodes) <= 0).any() or (table.nodes < 0).any():
            raise corrupt("the numbers of nodes do not ascend")
        if not np.array_equal(table.nodes, scores.nodes):
            raise corrupt("the scores are not those of the nodes")
        if not {*table.kinds.tolist()} <= {kind.number for kind in GraphNodeKind}:
            raise corrupt("there are nodes of unknown kinds")
        named = [edges.sources, edges.targets, np.array([node for path in parts.paths for node in path.nodes], int)]
        if not np.isin(np.concatenate(named), table.nodes).all():
            raise corrupt("edges or paths name nodes that are not there")
        return {"table": table, "scores": scores, "edges": edges, "paths_found": parts.paths}


class GraphCollector(GraphViewCollector):
    """From messages to a GraphAnswer, checked: nothing is missing, repeated or out of order."""

    def __init__(self, request_id: str, on_progress: Callable[[GraphProgress], None] | None = None) -> None:
        super().__init__(on_progress)
        self._request_id = request_id

    def take(self, part: GraphPart) -> GraphAnswer | None:
        """Take the next part; as of GraphViewCollector, and a header must come first."""
        if self._parts.header is None and part.kind is not GraphPartKind.HEADER:
            raise corrupt(f"a {part.kind} came before the header")
        whole = super().take(part)
        assert whole is None or isinstance(whole, GraphAnswer)  # noqa: S101  that is what _finished makes
        return whole

    def add(self, message: GraphResponse | QueryGraphResponse) -> GraphAnswer | None:
        """Take the next message; see Collector."""
        whole: GraphAnswer | None = None
        for part in self._reader.read(message):
            whole = self.take(part) or whole
        return whole

    def _finished(self, trailer: RunsTrailer) -> GraphAnswer:
        parts = self._parts
        if parts.header is None or parts.summary is None:
            raise corrupt("the answer has no summary")
        columns = self._columns()
        if not np.array_equal(columns["table"].nodes, np.arange(parts.header.node_count)):
            raise corrupt(f"the answer has {len(columns['table'])} of {parts.header.node_count} nodes")
        return GraphAnswer(
            **columns,
            trailer=trailer,
            request_id=self._request_id,
            header=parts.header,
            summary=parts.summary,
            kept=parts.kept,
        )


def _joined(cls: type[T], pieces: Sequence[T]) -> T:
    """The rows of all *pieces* of a table."""
    columns = {each.name: [getattr(piece, each.name) for piece in pieces] for each in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    if not pieces:
        raise corrupt(f"the answer has no {cls.__name__}")
    return cls(
        **{
            name: sum(found, ()) if isinstance(found[0], tuple) else np.concatenate(found)
            for name, found in columns.items()
        }
    )
