"""One row of facts per node type: the tensor that its index points into, its component, its names.

Where a fact depends on the autoencoder that a latent belongs to, it is in `autoencoder_inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dst_grpc.domain.components import Component, Dimension, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.tables import one_row_each


@dataclass(frozen=True, eq=False)
class NodeFacts:
    """What is known about a node type without a model."""

    type: NodeType
    word: str
    """Its name in tables."""
    tap: ActivationLocationType | None = None
    """Tap whose entries are the nodes' activations: what an index of a node points into; None if there is none."""
    component: Component | None = None
    """The component of a node that is ablated, traced, or the end of an edge; None if nodes of the type never are."""
    letter: str = ""
    """How the type is written on the command line, as in 2.h3; empty if it is not."""
    location: LocationWithinLayer | None = None
    """Place within the layer; None if it has none, or if that depends on its autoencoder."""
    reads: LocationWithinLayer | None = None
    """The residual that it is computed from: the one entering the layer (END_OF_PREV_LAYER), or the one that the MLP
    reads (RESID_POST_ATTN). None if it is computed from neither, or if that depends on its autoencoder."""
    autoencoder: str = ""
    """For latents: the autoencoder that they need, in words."""
    is_autoencoder_latent: bool = False
    """Whether it is a latent of an autoencoder."""

    @property
    def axes(self) -> tuple[Dimension, ...]:
        """Axes of the tensor that its index points into; empty if there is none."""
        return () if self.tap is None else self.tap.dimensions

    @cached_property
    def rank(self) -> int | None:
        """Number of axes that its index has; None if it points into no tensor."""
        return None if self.tap is None else len(self.tap.dimensions)

    @property
    def is_of_autoencoder(self) -> bool:
        """Whether it is a latent or an error of an autoencoder."""
        return self.is_autoencoder_latent or self.type is NodeType.AUTOENCODER_ERROR

    @property
    def ablated_tap(self) -> ActivationLocationType | None:
        """Tap whose entries are overwritten to ablate a node; None if no node of the type can be ablated."""
        return None if self.component is None else self.tap

    @property
    def may_read_one_token(self) -> bool:
        """Whether nodes of the type can be computed from a residual one token at a time, as from the MLP's input; some
        generic latents are."""
        follows_autoencoder = self.reads is None and self.component is Component.LATENT
        return follows_autoencoder or self.reads is LocationWithinLayer.RESID_POST_ATTN


_N = NodeType
_L = ActivationLocationType
_ENTERING, _BEFORE_MLP = LocationWithinLayer.END_OF_PREV_LAYER, LocationWithinLayer.RESID_POST_ATTN
_ATTN, _MLP = LocationWithinLayer.ATTN, LocationWithinLayer.MLP

# fmt: off
_ROWS = (
    NodeFacts(_N.ATTENTION_HEAD, "head", tap=_L.ATTN_QK_PROBS, component=Component.HEAD_PAIR,
              letter="h", location=_ATTN, reads=_ENTERING),
    NodeFacts(_N.QK_CHANNEL, "channel", location=_ATTN),
    NodeFacts(_N.V_CHANNEL, "channel", location=_ATTN),
    NodeFacts(_N.MLP_NEURON, "neuron", tap=_L.MLP_POST_ACT, component=Component.NEURON, letter="n", location=_MLP,
              reads=_BEFORE_MLP),
    NodeFacts(_N.AUTOENCODER_LATENT, "latent", tap=_L.ONLINE_AUTOENCODER_LATENT, component=Component.LATENT,
              letter="r", autoencoder="exactly one autoencoder, or one of the residual stream",
              is_autoencoder_latent=True),
    NodeFacts(_N.MLP_AUTOENCODER_LATENT, "latent", tap=_L.ONLINE_MLP_AUTOENCODER_LATENT,
              component=Component.LATENT, letter="z", reads=_BEFORE_MLP, autoencoder="an autoencoder of the MLPs",
              is_autoencoder_latent=True),
    NodeFacts(_N.ATTENTION_AUTOENCODER_LATENT, "latent", tap=_L.ONLINE_ATTENTION_AUTOENCODER_LATENT,
              component=Component.LATENT, letter="a", reads=_ENTERING, autoencoder="an autoencoder of attention",
              is_autoencoder_latent=True),
    NodeFacts(_N.AUTOENCODER_LATENT_BY_TOKEN_PAIR, "latent", is_autoencoder_latent=True),
    NodeFacts(_N.LAYER, "layer"),
    NodeFacts(_N.RESIDUAL_STREAM_CHANNEL, "channel", tap=_L.RESID_POST_MLP),
    NodeFacts(_N.VOCAB_TOKEN, "token"),
    NodeFacts(_N.AUTOENCODER_ERROR, "error"),
)
# fmt: on

NODES = one_row_each(NodeType, _ROWS)
"""The table."""
