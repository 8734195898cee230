"""The columns of a row of facts about a derived scalar type, and what follows from them.

A derived scalar is a **component** of the model (residual vector, neuron, head, latent, ...), a **quantity** of it
(activation, write vector, write norm, act x grad, projection of the write on a direction, ...), where the quantity
needs one a **direction**, and a **form** (full, flattened to token pairs, summed over an axis). The rows themselves are
in `scalars`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from dst_grpc.domain.components import Component, Dimension, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import ActivationLocationType, node_type_of
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_types import DerivedScalarType


class Quantity(Enum):
    """The quantity of a component."""

    ACTIVATION = auto()
    WRITE = auto()
    WRITE_NORM = auto()
    ACT_TIMES_GRAD = auto()
    PROJECTION = auto()
    """Inner product of the write with a direction, zero where the component does not precede the direction."""
    DIRECTION = auto()
    """The direction itself."""
    IN_EDGE_ACTIVATION = auto()
    """Derivative of the component's activation along the write of one upstream node."""
    IN_EDGE_ATTRIBUTION = auto()
    """The same, times the component's gradient."""

    @property
    def is_of_writes(self) -> bool:
        """Whether it is made of write vectors, rather than of activations."""
        return self in {Quantity.WRITE, Quantity.WRITE_NORM, Quantity.PROJECTION}

    @property
    def is_of_effects(self) -> bool:
        """Whether it is an effect on a scalar, so that the effects of parts add up to that of their sum."""
        return self in {Quantity.ACT_TIMES_GRAD, Quantity.PROJECTION}

    @property
    def is_of_in_edges(self) -> bool:
        """Whether it is about edges from one upstream node into the component."""
        return self in {Quantity.IN_EDGE_ACTIVATION, Quantity.IN_EDGE_ATTRIBUTION}


class Direction(Enum):
    """What a write is projected on; a vector of residual channels per token."""

    FINAL_RESIDUAL_GRAD = auto()
    """Gradient at the residual just before the origin, from the backward pass."""
    FINAL_ACTIVATION_RESIDUAL_GRAD = auto()
    """The same for a trace, recomputed locally from the recorded residual; needs no backward pass."""
    SUBNODE_GRAD = auto()
    """Gradient of one downstream subnode's attribution at the residual before it."""
    LATENT_READ = auto()
    """The read direction of one traced latent: its gradient at the autoencoder's input."""
    ALL_LATENT_READS = auto()
    """The read directions of all latents of the layer's autoencoder."""


class Form(Enum):
    """How the full tensor of a quantity is reshaped or summed."""

    FULL = auto()
    FLATTENED = auto()
    """Lower triangle of (t, u), t-major: rows (0,0), (1,0), (1,1), (2,0), ..."""
    SUM_KEYS = auto()
    """Summed over u."""
    SUM_CHANNELS = auto()
    """Summed over the last axis, which stays with size 1."""


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


@dataclass(frozen=True, slots=True, eq=False)
class ScalarFacts:
    """What is known about a derived scalar type without a model."""

    type: DerivedScalarType
    dimensions: tuple[Dimension, ...]
    """Axes of one layer's tensor. In a flattened form the first axis is declared SEQUENCE_TOKENS but is P long."""
    component: Component
    quantity: Quantity
    direction: Direction | None = None
    form: Form = Form.FULL
    is_summed: bool = False
    """True if writes are summed over all heads or all neurons."""
    tap: ActivationLocationType | None = None
    """The tapped tensor, for TAP, RESIDUAL and RESIDUAL_ERROR components."""
    autoencoder: NodeType | None = None
    """Type of autoencoder the type needs: generic (the only one), MLP or attention; None if it needs none."""
    formula: str = ""
    """The formula, in words and the letters of the legend in `components`."""
    once: bool = False
    """True if there is one tensor per model rather than one per layer."""
    single_layer: bool = False
    """True if `layer_indices` must name exactly one layer."""
    node: NodeType | None = None
    """Node type where it does not follow from the last axis."""
    inputs: tuple[DerivedScalarType, ...] = ()
    """Inputs that its autoencoder may have, where they follow neither from the type of its latents nor from its
    component; else empty."""
    is_value_only: bool = False
    """True if it has no gradient and `derive_gradients` adds nothing, where other types without gradient refuse the
    request."""
    has_hidden_entries: bool = False
    """True if entries of keys that a query does not attend to are -inf rather than 0."""
    note: str = ""
    """A remark for the catalogue, where the formula alone would mislead; else empty."""

    @property
    def node_type(self) -> NodeType:
        """Type of the nodes along the last axis."""
        return self.node or node_type_of(self.dimensions)

    @property
    def is_raw(self) -> bool:
        """Whether the type is a tapped tensor (one of the 17), with its gradient as BACKWARD."""
        return self.component is Component.TAP and self.form is Form.FULL

    @property
    def is_flattened(self) -> bool:
        """Whether the first axis runs over the token pairs of the lower triangle."""
        return self.form is Form.FLATTENED

    @property
    def is_of_writes(self) -> bool:
        """Whether the value is made of write vectors, rather than of activations."""
        return self.quantity.is_of_writes

    @property
    def is_of_vectors(self) -> bool:
        """Whether it has a vector for each of many entries at each token, and so can be very large."""
        is_of_values = self.component is Component.HEAD_PAIR and self.quantity is Quantity.ACTIVATION
        return self.quantity is Quantity.WRITE or is_of_values

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
        if self.is_value_only:
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
            or self.quantity.is_of_in_edges
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
        """Place of the component in its layer; None where the type alone does not determine it."""
        if self.node_type is NodeType.VOCAB_TOKEN:
            return None
        if self.tap is not None and (self.is_raw or self.component is Component.NEURON_ERROR):
            return self.tap.location_within_layer
        return NODES[self.node_type].location
