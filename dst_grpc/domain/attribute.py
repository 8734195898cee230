"""Attribution: how scores are computed, and of what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.tables import one_row_each


class AttributionMethod(StrEnum):
    """Where the gradients of scores are taken. A score is the difference of an activation times a gradient."""

    ATTRIBUTION_PATCHING = "attribution_patching"
    """At the base run: attribution patching (AtP) of nodes, edge attribution patching (EAP) of edges."""
    CLEAN_CORRUPT = "clean_corrupt"
    """The mean of those at the clean and at the corrupt run."""
    INTEGRATED_INPUTS = "integrated_inputs"
    """The mean along a path between the token embeddings of both prompts (EAP-IG, inputs)."""
    INTEGRATED_ACTIVATIONS = "integrated_activations"
    """The mean along a path between the outputs of one group of sources in both runs, for each group: the embedding,
    all heads of a layer, an MLP (EAP-IG, activations)."""
    INTEGRATED_GRADIENTS = "integrated_gradients"
    """The integral along a path from a baseline to the prompt's token embeddings: shares of its tokens in the change of
    the metric, which they add up to."""


class PathRule(StrEnum):
    """At which points of a path gradients are taken, from alpha = 0, the other input, to 1, the base run's own."""

    LEFT = "left"
    """m points from 0 on, without 1."""
    RIGHT = "right"
    """m points up to 1, without 0."""
    MIDDLE = "middle"
    """The middles of m equal steps."""
    TRAPEZOID = "trapezoid"
    """m + 1 points, both ends included at half weight."""
    GAUSS_LEGENDRE = "gauss_legendre"
    """m points, exact for polynomials of degree 2 m - 1."""


class PropagationRule(StrEnum):
    """How gradients pass through norms, attention and MLPs. Values are those of the model."""

    PLAIN = "plain"
    """Calculus."""
    FROZEN_PATTERNS = "frozen_patterns"
    """Attention patterns are constants."""
    FROZEN_NORMS = "frozen_norms"
    """The scales of norms are constants."""
    FROZEN = "frozen"
    """Both are constants."""
    RELP = "relp"
    """Relevance patching: scales are constants, activation functions f multiply by the constant f(x)/x, and the
    gradient of a gated product is halved."""
    RELP_FROZEN_PATTERNS = "relp_frozen_patterns"
    """RelP with constant attention patterns (its AH-rule)."""
    GIM = "gim"
    """Gradient interaction modifications: scales are constants, softmax at temperature 2, and smaller gradients at
    queries, keys, values and gates."""


class PostNormJacobian(StrEnum):
    """How the write of a head passes the norm on the output of its layer's attention, in scores of edges."""

    EXACT = "exact"
    """By the derivative of the norm: scores are the first-order effects of patching an edge."""
    FROZEN = "frozen"
    """By its derivative with its scale in the base run as a constant."""
    RAW = "raw"
    """As if there were no norm."""


class PathGroups(StrEnum):
    """Which groups of sources the gradients of an edge or node are averaged over, on a path between activations."""

    OWN_LAYER = "own_layer"
    """The group of its own source."""
    EVERY_LAYER = "every_layer"
    """All groups, as the EAP-IG library does."""


class Baseline(StrEnum):
    """Where the path of integrated gradients begins."""

    CORRUPT = "corrupt"
    """The token embeddings of the other prompt of the pair."""
    ZERO = "zero"
    """Embeddings of 0."""
    MEAN = "mean"
    """The mean of all token embeddings."""


@dataclass(frozen=True, slots=True, eq=False)
class AttributionMethodFacts:
    """What is known about a method without a model."""

    type: AttributionMethod
    steps: int = 0
    """Steps of its path unless a request says otherwise; 0 if it has none."""
    path_rule: PathRule | None = None
    """Points of its path unless a request says otherwise."""


ATTRIBUTION_METHODS = one_row_each(
    AttributionMethod,
    (
        AttributionMethodFacts(AttributionMethod.ATTRIBUTION_PATCHING),
        AttributionMethodFacts(AttributionMethod.CLEAN_CORRUPT),
        AttributionMethodFacts(AttributionMethod.INTEGRATED_INPUTS, 5, PathRule.RIGHT),
        AttributionMethodFacts(AttributionMethod.INTEGRATED_ACTIVATIONS, 5, PathRule.RIGHT),
        AttributionMethodFacts(AttributionMethod.INTEGRATED_GRADIENTS, 20, PathRule.GAUSS_LEGENDRE),
    ),
)
"""The table."""


class AttributedNode(StrEnum):
    """A kind of node that scores are computed of."""

    INPUT = "input"
    """The token embedding."""
    RESID_PRE = "resid_pre"
    """The residual that enters a layer."""
    RESID_MID = "resid_mid"
    """The residual between attention and MLP; not in models with parallel layers."""
    RESID_POST = "resid_post"
    """The residual after a layer."""
    ATTN_OUT = "attn_out"
    """What attention adds to the residual."""
    MLP_OUT = "mlp_out"
    """What an MLP adds to the residual."""
    HEAD = "head"
    """A head's output z, before the output matrix."""
    QUERY = "query"
    """A head's query."""
    KEY = "key"
    """A head's key, a copy for each query head."""
    VALUE = "value"
    """A head's value, a copy for each query head."""
    PATTERN = "pattern"
    """A head's attention from one token to all."""
    NEURON = "neuron"
    """A neuron after the nonlinearity."""
    LATENT = "latent"
    """A latent of a spliced autoencoder."""
    LATENT_ERROR = "latent_error"
    """The reconstruction error of a spliced autoencoder."""


@dataclass(frozen=True, slots=True, eq=False)
class AttributedNodeFacts:
    """What is known about a kind of node without a model."""

    type: AttributedNode
    tap: ActivationLocationType | None = None
    """The tap that holds the nodes' values, one vector of each layer; None if that depends on the autoencoder."""
    is_entry: bool = False
    """Whether each entry of the tap's last axis is a node, rather than all together."""
    is_of_previous_layer: bool = False
    """Whether the node of a layer is the tap of the layer before, and that of the first layer the embedding."""
    is_source: bool = False
    """Whether it is a source of the graph, whose scores the edges that leave it add up to."""


_N = AttributedNode
_L = ActivationLocationType

# fmt: off
_ROWS = (
    AttributedNodeFacts(_N.INPUT, _L.RESID_POST_EMBEDDING, is_source=True),
    AttributedNodeFacts(_N.RESID_PRE, _L.RESID_POST_MLP, is_of_previous_layer=True),
    AttributedNodeFacts(_N.RESID_MID, _L.RESID_POST_ATTN),
    AttributedNodeFacts(_N.RESID_POST, _L.RESID_POST_MLP),
    AttributedNodeFacts(_N.ATTN_OUT, _L.RESID_DELTA_ATTN),
    AttributedNodeFacts(_N.MLP_OUT, _L.RESID_DELTA_MLP, is_source=True),
    AttributedNodeFacts(_N.HEAD, _L.ATTN_WEIGHTED_SUM_OF_VALUES, is_source=True),
    AttributedNodeFacts(_N.QUERY, _L.ATTN_QUERY),
    AttributedNodeFacts(_N.KEY, _L.ATTN_KEY),
    AttributedNodeFacts(_N.VALUE, _L.ATTN_VALUE),
    AttributedNodeFacts(_N.PATTERN, _L.ATTN_QK_PROBS),
    AttributedNodeFacts(_N.NEURON, _L.MLP_POST_ACT, is_entry=True),
    AttributedNodeFacts(_N.LATENT, is_entry=True),
    AttributedNodeFacts(_N.LATENT_ERROR),
)
# fmt: on

ATTRIBUTED_NODES = one_row_each(AttributedNode, _ROWS)
"""The table."""
