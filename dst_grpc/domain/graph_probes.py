"""Requests of ProbeGraph: questions about a kept graph that the model answers. Plain values.

Where a docstring says feature, it means any unit of the graph, unless it says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, GraphNodeKind
from dst_grpc.domain.graph_queries import check_asked, check_count, check_node
from dst_grpc.domain.indices import check_number
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

DEFAULT_VERIFIED: Final = 10
MAX_VERIFIED: Final = 1000
DEFAULT_PAIRS: Final = 20
MAX_PAIRS: Final = 10_000
DEFAULT_TOKENS: Final = 5
MAX_TOKENS: Final = 100
MAX_NAME_CHARACTERS: Final = 256
SCORED_KINDS = tuple(kind for kind in UNIT_KINDS if kind is not GraphNodeKind.HEAD)
"""Kinds of units whose tokens can be asked for: what they write does not depend on the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFeatureSetting:
    """Sets features to other activations."""

    nodes: tuple[str, ...]
    """The features, by name."""
    activation: float | None = None
    """The activation to set them to; None if *factor* is given."""
    factor: float | None = None
    """How many times their own activation; 0 switches them off. None if *activation* is given."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.nodes), "nodes", "is required: the names of features")
        for i, name in enumerate(self.nodes):
            check_node(problems, f"nodes[{i}]", name, UNIT_KINDS)
        one = (self.activation is None) is not (self.factor is None)
        problems.check(one, "", "give exactly one of activation and factor")
        for field, value in (("activation", self.activation), ("factor", self.factor)):
            problems.check(value is None or math.isfinite(value), field, f"must be finite, not {value}")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphIntervention:
    """A run of the prompt with features set; layers before the first free one are held."""

    settings: tuple[GraphFeatureSetting, ...]
    """The features to set, none of them twice."""
    name: str = ""
    """What the answer calls it."""
    first_free_layer: int | None = None
    """The first layer that is not held; None = all are."""
    with_features: bool = False
    """Whether to send the changes of features too, not of targets only."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_text(problems, "name", self.name)
        short = len(self.name) <= MAX_NAME_CHARACTERS
        problems.check(short, "name", f"must have at most {MAX_NAME_CHARACTERS} characters")
        problems.check(bool(self.settings), "settings", "is required: at least one")
        check_number(problems, "first_free_layer", self.first_free_layer)
        seen: dict[str, str] = {}
        for i, setting in enumerate(self.settings):
            for j, node in enumerate(setting.nodes):
                path = f"settings[{i}].nodes[{j}]"
                first = seen.setdefault(node, path)
                problems.check(first == path, path, f"is set by {first} too")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInterventions:
    """Runs of the prompt with features set, one after the other."""

    interventions: tuple[GraphIntervention, ...]
    """The runs."""

    def __post_init__(self) -> None:
        """Check that there is one; raises InvalidRequest."""
        problems = Violations()
        problems.check(bool(self.interventions), "interventions", "is required: at least one")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVerification:
    """Features, drawn by the sizes of their outgoing edges, are switched off one by one and compared with the graph."""

    count: int = DEFAULT_VERIFIED
    """How many; at most as many as are nodes."""
    seed: int = 0
    """Which ones are drawn."""

    def __post_init__(self) -> None:
        """Check the count; raises InvalidRequest."""
        problems = Violations()
        check_count(problems, self.count, MAX_VERIFIED, "count")
        check_number(problems, "seed", self.seed, most=2**64 - 1)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdgeHeads:
    """Which heads carry an edge."""

    source: str
    """Where it comes from, by name: a unit, an error or an embedding."""
    target: str
    """Where it ends, by name: a unit or a target."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_node(problems, "source", self.source, (*UNIT_KINDS, *ERROR_KINDS, GraphNodeKind.EMBEDDING))
        check_node(problems, "target", self.target, (*UNIT_KINDS, GraphNodeKind.TARGET))
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphAttention:
    """Which pairs of nodes the score of a head is made of."""

    layer: int = 0
    """The layer."""
    head: int = 0
    """The query head."""
    query: int = 0
    """The position that attends."""
    key: int = 0
    """The position that is attended to."""
    top_k: int = DEFAULT_PAIRS
    """How many pairs."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        for field in ("layer", "head", "query", "key"):
            check_number(problems, field, getattr(self, field))
        problems.check(self.key <= self.query, "key", "must be at most the query: no token attends to a later one")
        check_count(problems, self.top_k, MAX_PAIRS)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFeatureTokens:
    """Which tokens features read, and which they write."""

    nodes: tuple[str, ...]
    """Features, neurons or latents, by name."""
    top_k: int = DEFAULT_TOKENS
    """How many tokens of each kind."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.nodes), "nodes", "is required: the names of features")
        for i, name in enumerate(self.nodes):
            check_node(problems, f"nodes[{i}]", name, SCORED_KINDS)
        check_count(problems, self.top_k, MAX_TOKENS)
        problems.raise_if_any()


GraphProbe = GraphInterventions | GraphVerification | GraphEdgeHeads | GraphAttention | GraphFeatureTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeGraphRequest:
    """A question about a kept graph that the model answers."""

    graph: str
    """The handle of the graph."""
    probe: GraphProbe
    """What is asked."""
    request_id: str = ""
    """The client's own id."""

    def __post_init__(self) -> None:
        """Check what needs no graph; raises InvalidRequest with all that is wrong."""
        check_asked(self.request_id, self.graph)
