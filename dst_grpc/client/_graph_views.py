"""Nodes and edges of attribution graphs, by name: what answers of `graph`, and to questions about kept graphs, hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from dst_grpc.client._given import how_many
from dst_grpc.client._graph_requests import (
    make_edge_query,
    make_neighbours,
    make_node_filter,
    make_path_query,
    node_name,
)
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_answers import GraphNodeScores, GraphPath, GraphSummary
from dst_grpc.domain.graph_edges import LEAST_SUM, GraphEdges
from dst_grpc.domain.graph_node_table import UNIT_KINDS, GraphNodeKind, GraphNodeTable
from dst_grpc.domain.graph_paths import PathSearch
from dst_grpc.domain.graph_queries import DEFAULT_NEIGHBOURS, DEFAULT_PATHS, GraphEdgeDirection
from dst_grpc.errors import NotFound, Reason

Array = np.ndarray[Any, np.dtype[Any]]


class NodeRow(NamedTuple):
    """A node."""

    name: str
    """Its name, such as "f3.120@5"."""
    kind: GraphNodeKind
    """Its kind."""
    layer: int | None
    """The layer of a unit or error; a unit is a feature, neuron, head or latent."""
    token: int
    """The position of its token; of targets, the last."""
    feature: int | None
    """The number of a unit within its layer; the id of the token of an embedding or a logit."""
    activation: float
    """The activation of a unit, else 0."""
    cumulative_score: float
    """The share of all influence that it and nodes of more influence have together: small for those that matter."""
    kept: bool
    """Whether pruning keeps it."""


class NamedEdge(NamedTuple):
    """An edge between two nodes, by their names."""

    source: str
    """Where it comes from."""
    target: str
    """Where it ends."""
    weight: float
    """The direct effect of the source on the target."""
    share: float
    """Its magnitude over the sum of the magnitudes of all edges into the target."""

    def __str__(self) -> str:
        """Its ends and its weight."""
        return f"{self.source} -> {self.target}: {self.weight:+z.4g}"


class NamedPath(NamedTuple):
    """A path along edges, by the names of its nodes."""

    nodes: tuple[str, ...]
    """From the first to the last."""
    strength: float
    """The product of its edges' shares, each with the sign of the edge."""

    def __str__(self) -> str:
        """Its nodes and its strength."""
        return f"{' -> '.join(self.nodes)}: {self.strength:+z.4g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphView:
    """Some of the nodes and edges of a graph; its methods ask about these alone.

    Nodes and edges are columns, in which nodes go by their numbers in the whole graph.
    """

    table: GraphNodeTable
    """The nodes, by ascending number."""
    scores: GraphNodeScores
    """What is known of the same nodes from all edges of the graph."""
    edges: GraphEdges
    """The edges, by ascending target."""
    trailer: RunsTrailer
    """How the answer ended."""
    paths_found: tuple[GraphPath, ...] = ()
    """The paths that were asked for."""
    summary: GraphSummary | None = None
    """The pruned graph as a whole; None if this is not about one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return self.table.names

    @property
    def nodes(self) -> tuple[NodeRow, ...]:
        """The nodes."""
        return tuple(map(self._row, range(len(self.table))))

    def node(self, name: str) -> NodeRow:
        """The node of that *name*; raises NotFound, with the nearest names, or InvalidRequest if it is no name."""
        return self._row(self._place(node_name("name", name)))

    def top(self, n: int, kinds: Iterable[GraphNodeKind | str] = UNIT_KINDS) -> tuple[NodeRow, ...]:
        """The *n* nodes of *kinds*, any units, that have the largest influence on the targets; raises InvalidRequest if
        *n* is negative."""
        most = how_many("n", n)
        places = np.flatnonzero(self.table.allowed((), (), make_node_filter(kinds=kinds).kinds))
        order = np.argsort(self.scores.cumulative_scores[places], kind="stable")
        return tuple(self._row(int(place)) for place in places[order[:most]])

    @property
    def coo(self) -> tuple[Array, Array, Array]:
        """Sources, targets and weights of the edges, [e] each, in which nodes go by their numbers."""
        return self.edges.sources, self.edges.ends, self.edges.weights

    def neighbours(
        self,
        node: str,
        k: int = DEFAULT_NEIGHBOURS,
        *,
        direction: GraphEdgeDirection | str = GraphEdgeDirection.BOTH,
        layers: Iterable[SupportsIndex] = (),
        tokens: Iterable[SupportsIndex] = (),
        kinds: Iterable[GraphNodeKind | str] = (),
    ) -> tuple[NamedEdge, ...]:
        """The edges of a node, the largest magnitudes first.

        Args:
            node: Its name.
            k: At most so many in each direction.
            direction: `inputs`, `outputs` or `both`.
            layers: If given, only edges to and from units and errors of these layers; to and from other kinds all.
            tokens: If given, only edges to and from nodes at these positions.
            kinds: If given, only edges to and from nodes of these kinds.

        Raises:
            NotFound: If there is no such node here; it lists the nearest.
            InvalidRequest: If *k* cannot be, or *node* is no name of a node.
        """
        asked = make_neighbours(node, k, direction)
        number, allowed = self._number(node), self._allowed(layers, tokens, kinds)
        places = []
        if asked.direction is not GraphEdgeDirection.OUTPUTS:
            places.append(self.edges.strongest_inputs(number, allowed, asked.top_k))
        if asked.direction is not GraphEdgeDirection.INPUTS:
            places.append(self.edges.strongest_outputs(number, allowed, asked.top_k))
        return self._named(self.edges.at(np.concatenate(places)))

    def above(
        self,
        min_weight: float = 0.0,
        *,
        layers: Iterable[SupportsIndex] = (),
        tokens: Iterable[SupportsIndex] = (),
        kinds: Iterable[GraphNodeKind | str] = (),
    ) -> tuple[NamedEdge, ...]:
        """The edges of a magnitude of at least *min_weight* between nodes of *layers*, at *tokens*, of *kinds*, the
        largest magnitudes first; raises InvalidRequest if *min_weight* is negative or not finite."""
        asked = make_edge_query(min_weight)
        return self._named(self.edges.at(self.edges.above(asked.min_weight, self._allowed(layers, tokens, kinds))))

    def paths(
        self,
        source: str,
        target: str,
        k: int = DEFAULT_PATHS,
        *,
        layers: Iterable[SupportsIndex] = (),
        tokens: Iterable[SupportsIndex] = (),
        kinds: Iterable[GraphNodeKind | str] = (),
    ) -> tuple[NamedPath, ...]:
        """The *k* strongest paths from *source* to *target*, through nodes of *layers*, at *tokens*, of *kinds*.

        The strength of a path is the product of its edges' shares, each with the sign of the edge.

        Raises:
            NotFound: If there is no such node here; it lists the nearest.
            InvalidRequest: If *k* cannot be, or one of both is no name of a node, or both are the same.
        """
        asked = make_path_query(source, target, k)
        ends = self._number(source), self._number(target)
        search = PathSearch(edges=self.edges, input_sums=self._spread(self.scores.input_sums), depths=self._depths)
        return self._named_paths(search.strongest(*ends, asked.top_k, self._allowed(layers, tokens, kinds)))

    @property
    def found(self) -> tuple[NamedPath, ...]:
        """The paths that were asked for, the strongest first."""
        return self._named_paths(self.paths_found)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.table)} nodes, {len(self.edges)} edges>"

    # Numbers of nodes, and places in the table

    @cached_property
    def _n_numbers(self) -> int:
        return int(self.table.nodes.max(initial=-1)) + 1

    def _spread(self, column: Array) -> Array:
        """A *column* [m] by the numbers of the nodes; 0 for those that are not here."""
        spread = np.zeros(self._n_numbers, column.dtype)
        spread[self.table.nodes] = column
        return spread

    @cached_property
    def _depths(self) -> Array:
        return self._spread(self.table.depths)

    @cached_property
    def _places(self) -> Array:
        return self._spread(np.arange(len(self.table)))

    def _allowed(self, layers: Any, tokens: Any, kinds: Any) -> Array:
        asked = make_node_filter(layers, tokens, kinds)
        return self._spread(self.table.allowed(asked.layers, asked.tokens, asked.kinds))

    def _place(self, name: str) -> int:
        try:
            return self.table.place(name)
        except KeyError:
            raise NotFound(
                self.table.missing(name),
                resource_type="node",
                resource_name=name,
                nearest=self.table.nearest(name),
                reason=Reason.GRAPH_NOT_FOUND,
                metadata={"resource_type": "node", "resource_name": name},
            ) from None

    def _number(self, name: str) -> int:
        return int(self.table.nodes[self._place(name)])

    def _name(self, number: int) -> str:
        return self.table.names[int(self._places[number])]

    def _row(self, place: int) -> NodeRow:
        table, scores = self.table, self.scores
        layer, feature = int(table.layers[place]), int(table.features[place])
        return NodeRow(
            name=table.names[place],
            kind=GraphNodeKind.numbered(int(table.kinds[place])),
            layer=None if layer < 0 else layer,
            token=int(table.tokens[place]),
            feature=None if feature < 0 else feature,
            activation=float(table.activations[place]),
            cumulative_score=float(scores.cumulative_scores[place]),
            kept=bool(scores.kept[place]),
        )

    def _named(self, edges: GraphEdges) -> tuple[NamedEdge, ...]:
        """*edges*, the largest magnitudes first."""
        edges = edges.at(np.argsort(-np.abs(edges.weights), kind="stable"))
        sums = np.maximum(self._spread(self.scores.input_sums)[edges.ends], LEAST_SUM)
        shares = np.abs(edges.weights) / sums
        columns = (edges.sources.tolist(), edges.ends.tolist(), edges.weights.tolist(), shares.tolist())
        return tuple(
            NamedEdge(self._name(source), self._name(target), weight, share)
            for source, target, weight, share in zip(*columns, strict=True)
        )

    def _named_paths(self, paths: Iterable[GraphPath]) -> tuple[NamedPath, ...]:
        return tuple(NamedPath(tuple(map(self._name, path.nodes)), path.strength) for path in paths)
