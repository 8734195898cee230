"""What a row of facts about a derived scalar type says, and what follows from it.

A derived scalar is a **component** of the model (residual vector, neuron, head, latent, ...), a **quantity** of it
(activation, write vector, write norm, act x grad, projection of the write on a direction, ...), where the quantity
needs one a **direction**, and a **form** (full, flattened to token pairs, summed). The rows themselves are in
`scalars`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from dst_grpc.domain.components import Dimension, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import NODE_TYPE_OF_LAST_DIMENSION, ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType


class Component(Enum):
    """What part of the model a derived scalar is about."""

    TAP = auto()
    """A tapped tensor as it is."""
    RESIDUAL = auto()
    """A residual vector per token: the embedding, a residual sum, a layer's write."""
    PREVIOUS_RESIDUAL = auto()
    """The residual entering a layer."""
    ONE = auto()
    """The constant one, per token."""
    NEURON = auto()
    """An MLP neuron at a token; writes its activation times its row of Wout."""
    HEAD_PAIR = auto()
    """An attention head at a pair of tokens; writes A[t,u,h] v[u,h] WO[h]."""
    HEAD_AT_TOKEN = auto()
    """An attention head at a query token, summed over keys; writes o[t,h] WO[h]."""
    OFFLINE_LATENT = auto()
    """An autoencoder latent computed from recorded taps after the run."""
    LATENT = auto()
    """A latent of an autoencoder that is spliced into the run."""
    NEURON_ERROR = auto()
    """Reconstruction error of a spliced autoencoder of neurons; writes through Wout."""
    RESIDUAL_ERROR = auto()
    """Reconstruction error of a spliced autoencoder of a residual write."""
    SINGLE_NODE = auto()
    """The write of the one node that `node_index_for_attribution` names."""
    QUERY = auto()
    """An attention pair as reached through its query."""
    KEY = auto()
    """An attention pair as reached through its key."""
    VALUE = auto()
    """An attention pair as reached through its value."""
    VOCABULARY = auto()
    """Every token of the vocabulary, as an input."""


class Quantity(Enum):
    """What is said about a component."""

    ACTIVATION = auto()
    WRITE = auto()
    WRITE_NORM = auto()
    ACT_TIMES_GRAD = auto()
    PROJECTION = auto()
    """Inner product of the write with a direction, zero where the component does not precede the direction."""
    DIRECTION = auto()
    """The direction itself."""
    IN_EDGE_ACTIVATION = auto()
    """How the component's activation moves with the write of one upstream node."""
    IN_EDGE_ATTRIBUTION = auto()
    """The same, times the component's gradient."""


class Direction(Enum):
    """What a write is projected on; a vector of residual channels per token."""

    FINAL_RESIDUAL_GRAD = auto()
    """Gradient at the residual just before the origin, from the backward pass."""
    FINAL_ACTIVATION_RESIDUAL_GRAD = auto()
    """The same for a trace, recomputed locally from the recorded residual; needs no backward pass."""
    SUBNODE_GRAD = auto()
    """Gradient of one downstream subnode's attribution at the residual before it."""
    LATENT_READ = auto()
    """What one traced latent reads: its gradient at the autoencoder's input."""
    ALL_LATENT_READS = auto()
    """What each latent of the layer's autoencoder reads."""


class Form(Enum):
    """How the full tensor is reduced or laid out."""

    FULL = auto()
    FLATTENED = auto()
    """Lower triangle of (t, u), t-major: rows (0,0), (1,0), (1,1), (2,0), ..."""
    SUM_HEADS = auto()
    FLATTENED_SUM_HEADS = auto()
    SUM_KEYS = auto()
    SUM_CHANNELS = auto()
    SUM_NEURONS = auto()


class Backward(Enum):
    """What `derive_gradients` adds."""

    GRADIENT = auto()
    """The gradient at the tap."""
    RATIO = auto()
    """Gradient of the attention probability over the norm of what it multiplies."""
    ABSENT = auto()
    """Nothing: the type is a value only. The reference repeats FORWARD here; we do not."""
    REFUSED = auto()
    """The request is refused."""


@dataclass(frozen=True, slots=True)
class ScalarFacts:
    """What is known about a derived scalar type without a model."""

    type: DerivedScalarType
    dimensions: tuple[Dimension, ...]
    """Axes of one layer's tensor. In a flattened form the first axis is declared SEQUENCE_TOKENS but is P long."""
    component: Component
    quantity: Quantity
    direction: Direction | None = None
    form: Form = Form.FULL
    tap: ActivationLocationType | None = None
    """The tapped tensor, for TAP, RESIDUAL and RESIDUAL_ERROR components."""
    autoencoder: NodeType | None = None
    """Type of autoencoder the type needs: generic (the only one), MLP or attention; None if it needs none."""
    formula: str = ""
    """The value in words and symbols of the legend in `components`."""
    once: bool = False
    """True if there is one tensor per model rather than one per layer."""
    single_layer: bool = False
    """True if `layer_indices` must name exactly one layer."""
    node: NodeType | None = None
    """Node type where it does not follow from the last axis."""

    @property
    def node_type(self) -> NodeType:
        """What the entries along the last axis are."""
        return self.node or NODE_TYPE_OF_LAST_DIMENSION[self.dimensions[-1]]

    @property
    def is_raw(self) -> bool:
        """Whether the type is a tapped tensor (one of the 17), with its gradient as BACKWARD."""
        return self.component is Component.TAP and self.form is Form.FULL

    @property
    def is_flattened(self) -> bool:
        """Whether the first axis runs over the token pairs of the lower triangle."""
        return self.form in {Form.FLATTENED, Form.FLATTENED_SUM_HEADS}

    @property
    def is_of_writes(self) -> bool:
        """Whether the value is made of write vectors, rather than of activations."""
        return self.quantity in {Quantity.WRITE, Quantity.WRITE_NORM, Quantity.PROJECTION}

    @property
    def requires_grad_for_forward_pass(self) -> bool:
        """Whether even the FORWARD value needs the backward pass of an origin."""
        return self.quantity in {Quantity.ACT_TIMES_GRAD, Quantity.IN_EDGE_ATTRIBUTION} or self.direction in {
            Direction.FINAL_RESIDUAL_GRAD,
            Direction.SUBNODE_GRAD,
        }

    @property
    def backward(self) -> Backward:
        """What `derive_gradients` adds to this type."""
        if self.type in _BACKWARD_ABSENT:
            return Backward.ABSENT
        if self.component in {Component.TAP, Component.PREVIOUS_RESIDUAL}:
            return Backward.GRADIENT
        if self.component is Component.HEAD_PAIR and self.quantity is Quantity.WRITE_NORM:
            return Backward.RATIO
        return Backward.REFUSED

    @property
    def needs_trace(self) -> bool:
        """Whether the config must carry a trace_config, whatever the origin."""
        return self.direction in {Direction.FINAL_ACTIVATION_RESIDUAL_GRAD, Direction.LATENT_READ}

    @property
    def needs_attribution_node(self) -> bool:
        """Whether the config must carry node_index_for_attribution."""
        return (
            self.component is Component.SINGLE_NODE
            or self.direction is Direction.SUBNODE_GRAD
            or self.quantity in {Quantity.IN_EDGE_ACTIVATION, Quantity.IN_EDGE_ATTRIBUTION}
        )

    @property
    def needs_fake_grad_index(self) -> bool:
        """Whether the config must carry activation_index_for_fake_grad."""
        return self.component is Component.VOCABULARY

    @property
    def required_config_fields(self) -> tuple[str, ...]:
        """Fields that the config must set, by name. A request's own trace serves as its config's."""
        required = {
            "layer_indices": self.single_layer,
            "trace_config": self.needs_trace,
            "activation_index_for_fake_grad": self.needs_fake_grad_index,
            "node_index_for_attribution": self.needs_attribution_node,
        }
        return tuple(field for field, is_required in required.items() if is_required)

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Where in its layer the component lies; None where the type alone does not say."""
        if self.node_type is NodeType.VOCAB_TOKEN:
            return None
        if self.tap is not None and (self.is_raw or self.component is Component.NEURON_ERROR):
            return self.tap.location_within_layer
        return {
            NodeType.MLP_NEURON: LocationWithinLayer.MLP,
            NodeType.ATTENTION_HEAD: LocationWithinLayer.ATTN,
            NodeType.QK_CHANNEL: LocationWithinLayer.ATTN,
            NodeType.V_CHANNEL: LocationWithinLayer.ATTN,
        }.get(self.node_type)


_T = DerivedScalarType
_BACKWARD_ABSENT = frozenset(
    {
        _T.ALWAYS_ONE,
        _T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
        _T.ONLINE_AUTOENCODER_ACT_TIMES_GRAD,
        _T.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
        _T.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
        _T.ONLINE_MLP_AUTOENCODER_ERROR_ACT_TIMES_GRAD,
        _T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT,
        _T.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS,
        _T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS,
        _T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION,
    }
)
