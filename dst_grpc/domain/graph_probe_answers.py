"""Answers of ProbeGraph. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.explanations import RunsTrailer

CONSTANT = "constant"
"""Stands for biases and positions in place of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphChange:
    """By how much a node differs: the pre-activation of a feature or latent, the activation of a neuron, what a head
    writes along what it wrote, the projection of a target."""

    node: str
    """The node, by name."""
    predicted: float
    """What the graph predicts."""
    measured: float
    """What the run does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphChanges:
    """What a run with features set changes."""

    index: int
    """Which intervention, by its place in the request."""
    name: str = ""
    """Its name."""
    changes: tuple[GraphChange, ...] = ()
    """The changes: of features, if they were asked for; of targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVerifiedFeature:
    """A feature that was switched off."""

    node: str
    """The feature, by name."""
    size: float
    """The largest magnitude of a change that the graph predicts for a feature or target, all layers being held."""
    held_deviation: float
    """The largest difference of a change from that, all layers being held."""
    free_size: float
    """The largest change of a target in the model's own run."""
    free_deviation: float
    """The largest difference of a target's change from what the graph predicts, in the model's own run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphHeadLoading:
    """How much of an edge a head carries."""

    layer: int
    """Its layer."""
    head: int
    """The query head."""
    through: float
    """All paths through it. Paths through several heads count for each."""
    last: float
    """Paths on which no head comes after it."""
    first: float
    """Paths on which no head comes before it."""
    only: float
    """The path through it and no other head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphHeadLoadings:
    """Which heads carry an edge: it is `without_heads` and the `last` of all heads together, or the `first`."""

    weight: float
    """The edge."""
    without_heads: float
    """Paths through no head: along the residual, and through skip connections."""
    heads: tuple[GraphHeadLoading, ...] = ()
    """The heads of the layers between its ends, those that carry most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNodePair:
    """What a pair of nodes adds to a score."""

    query: str
    """What adds to the query: a node by name, or CONSTANT."""
    key: str
    """What adds to the key."""
    contribution: float
    """How much the two add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphAttentionScore:
    """What the score of a head is made of, the scales of norms being constant."""

    score: float
    """The score, before a soft-cap."""
    capped_score: float
    """The score as it enters the softmax."""
    probability: float
    """The attention."""
    pairs: tuple[GraphNodePair, ...] = ()
    """The pairs that add most, the largest magnitudes first."""
    remainder: float
    """What all other pairs add together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTokenScore:
    """A token of a feature."""

    token_id: int
    """The token."""
    token: str
    """Its text."""
    score: float
    """What it scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScoredFeature:
    """Tokens of a feature, whatever the prompt."""

    node: str
    """The feature, by name."""
    promoted: tuple[GraphTokenScore, ...] = ()
    """The tokens whose logits it raises most, at an activation of 1."""
    suppressed: tuple[GraphTokenScore, ...] = ()
    """Those whose logits it lowers most."""
    read: tuple[GraphTokenScore, ...] = ()
    """The tokens that it reads most."""


class GraphProbePartKind(StrEnum):
    """What a frame of an answer of ProbeGraph holds."""

    CHANGES = "changes"
    """GraphChanges, one for each intervention, in order."""
    VERIFIED = "verified"
    """A GraphVerifiedFeature, one for each that is drawn."""
    EDGE_HEADS = "edge_heads"
    """The GraphHeadLoadings."""
    ATTENTION = "attention"
    """The GraphAttentionScore."""
    SCORED = "scored"
    """A GraphScoredFeature, one for each feature whose tokens are asked for, in order."""
    TRAILER = "trailer"
    """A RunsTrailer, the last."""


GraphProbeValue = (
    GraphChanges | GraphVerifiedFeature | GraphHeadLoadings | GraphAttentionScore | GraphScoredFeature | RunsTrailer
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphProbePart:
    """One frame of an answer of ProbeGraph."""

    kind: GraphProbePartKind
    """What it holds."""
    value: GraphProbeValue
    """Its content."""
