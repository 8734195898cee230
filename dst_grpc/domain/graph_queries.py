"""Requests of QueryGraph: questions about a kept graph. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dst_grpc.domain.graph import DEFAULT_EDGE_THRESHOLD, DEFAULT_NODE_THRESHOLD, check_thresholds
from dst_grpc.domain.graph_node_table import GraphNode, GraphNodeKind
from dst_grpc.domain.indices import check_number
from dst_grpc.domain.requests import check_id
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Collection

DEFAULT_NEIGHBOURS: Final = 20
MAX_NEIGHBOURS: Final = 100_000
DEFAULT_PATHS: Final = 10
MAX_PATHS: Final = 1000


class GraphEdgeDirection(StrEnum):
    """Which edges of a node."""

    BOTH = "both"
    """Those into it, and those from it."""
    INPUTS = "inputs"
    """Those into it."""
    OUTPUTS = "outputs"
    """Those from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNeighbours:
    """The edges of a node that have the largest magnitude."""

    node: str
    """The node, by name."""
    direction: GraphEdgeDirection = GraphEdgeDirection.BOTH
    """Which edges."""
    top_k: int = DEFAULT_NEIGHBOURS
    """At most so many in each direction."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_node(problems, "node", self.node)
        check_count(problems, self.top_k, MAX_NEIGHBOURS)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPathQuery:
    """The paths from one node to another that have the largest strength."""

    source: str
    """Where they begin, by name."""
    target: str
    """Where they end, by name."""
    top_k: int = DEFAULT_PATHS
    """At most so many."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_node(problems, "source", self.source)
        check_node(problems, "target", self.target)
        if not problems.count:
            problems.check(self.source != self.target, "target", "must be another node than the source")
        check_count(problems, self.top_k, MAX_PATHS)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdgeQuery:
    """All edges of a magnitude of at least a number."""

    min_weight: float = 0.0
    """The number."""

    def __post_init__(self) -> None:
        """Check the number; raises InvalidRequest."""
        problems = Violations()
        is_magnitude = 0 <= self.min_weight < math.inf
        problems.check(is_magnitude, "min_weight", f"must be 0 or more, and finite, not {self.min_weight}")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPruning:
    """What pruning with other thresholds leaves."""

    node_threshold: float = DEFAULT_NODE_THRESHOLD
    """The share of all influence that the nodes have together that are kept."""
    edge_threshold: float = DEFAULT_EDGE_THRESHOLD
    """The same of edges."""

    def __post_init__(self) -> None:
        """Check the thresholds; raises InvalidRequest."""
        problems = Violations()
        check_thresholds(problems, self.node_threshold, self.edge_threshold)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNodeFilter:
    """Restricts which nodes are considered, besides those that a query names."""

    layers: tuple[int, ...] = ()
    """Units and errors of other layers are left out; empty = of none."""
    tokens: tuple[int, ...] = ()
    """Nodes at other positions are left out; empty = at none."""
    kinds: tuple[GraphNodeKind, ...] = ()
    """Nodes of other kinds are left out; empty = of none."""

    def __post_init__(self) -> None:
        """Check that indices can be; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        for name in ("layers", "tokens"):
            for i, value in enumerate(getattr(self, name)):
                check_number(problems, f"{name}[{i}]", value)
        problems.raise_if_any()


GraphQuestion = GraphNeighbours | GraphPathQuery | GraphEdgeQuery | GraphPruning


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGraphRequest:
    """A question about a kept graph."""

    graph: str
    """The handle of the graph."""
    query: GraphQuestion
    """What is asked."""
    request_id: str = ""
    """The client's own id."""
    filter: GraphNodeFilter = field(default_factory=GraphNodeFilter)
    """Restricts the nodes at the other end, within paths, at both ends, or of the pruned graph."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        check_asked(self.request_id, self.graph)


def check_asked(request_id: str, graph: str) -> None:
    """Check what every question about a kept graph has; raises InvalidRequest with all that is wrong."""
    problems = Violations()
    check_id(problems, "request_id", request_id)
    check_text(problems, "graph", graph)
    problems.check(bool(graph), "graph", "is required: the handle of a kept graph")
    problems.raise_if_any()


def check_node(problems: Violations, path: str, name: str, kinds: Collection[GraphNodeKind] = ()) -> None:
    """Note a *name* that no node can have; or none of *kinds*, if there are any."""
    if not name:
        problems.add(path, "is required: the name of a node")
        return
    before = problems.count
    check_text(problems, path, name)
    if problems.count > before:
        return
    try:
        kind = GraphNode.named(name).kind
    except ValueError as error:
        problems.add(path, str(error))
        return
    wanted = " or ".join(map(str, kinds))
    problems.check(not kinds or kind in kinds, path, f"must be of kind {wanted}, and {name} is of kind {kind}")


def check_count(problems: Violations, count: int, most: int, path: str = "top_k") -> None:
    """Note a *count* that is not between 1 and *most*."""
    problems.check(1 <= count <= most, path, f"must be between 1 and {most}, not {count}")
