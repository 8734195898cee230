"""One row of facts per activation location (tap): its axes, its place in the layer, when it exists.

Facts that depend on a model (sizes) or on a derived scalar are elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from dst_grpc.domain.components import AttentionTraceType, Dimension, LocationWithinLayer, NodeType, PreOrPostAct
from dst_grpc.domain.tables import one_row_each

_TOKENS = Dimension.SEQUENCE_TOKENS
_KEYS = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_RESIDUAL = Dimension.RESIDUAL_STREAM_CHANNELS
_NEURONS = Dimension.MLP_ACTS
_HEADS = Dimension.ATTN_HEADS
_QK = Dimension.QUERY_AND_KEY_CHANNELS
_VALUE = Dimension.VALUE_CHANNELS
_LATENTS = Dimension.AUTOENCODER_LATENTS
_VOCABULARY = Dimension.VOCAB_SIZE
_ONE = Dimension.SINGLETON


class ActivationLocationType(StrEnum):
    """A place in the forward pass where a tensor can be tapped: recorded, ablated, differentiated."""

    RESID_POST_EMBEDDING = "resid.post_emb"
    RESID_DELTA_ATTN = "resid.delta_attn"
    RESID_POST_ATTN = "resid.post_attn"
    RESID_DELTA_MLP = "resid.delta_mlp"
    RESID_POST_MLP = "resid.post_mlp"
    MLP_INPUT_LAYER_NORM_SCALE = "mlp_ln.scale"
    ATTN_INPUT_LAYER_NORM_SCALE = "attn_ln.scale"
    RESID_FINAL_LAYER_NORM_SCALE = "resid.ln_f.scale"
    ATTN_QUERY = "attn.q"
    ATTN_KEY = "attn.k"
    ATTN_VALUE = "attn.v"
    ATTN_QK_LOGITS = "attn.qk_logits"
    ATTN_QK_PROBS = "attn.qk_probs"
    ATTN_WEIGHTED_SUM_OF_VALUES = "attn.v_out"
    MLP_PRE_ACT = "mlp.pre_act"
    MLP_POST_ACT = "mlp.post_act"
    LOGITS = "logits"
    ONLINE_AUTOENCODER_LATENT = "online_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_LATENT = "online_mlp_autoencoder_latent"
    ONLINE_ATTENTION_AUTOENCODER_LATENT = "online_attention_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_ERROR = "online_mlp_autoencoder_error"
    ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR = "online_residual_mlp_autoencoder_error"
    ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR = "online_residual_attention_autoencoder_error"
    ATTN_OUTPUT_LAYER_NORM_SCALE = "attn.output_layer_norm.scale"
    MLP_OUTPUT_LAYER_NORM_SCALE = "mlp.output_layer_norm.scale"
    ONLINE_RESIDUAL_AUTOENCODER_ERROR = "online_residual_autoencoder_error"
    ONLINE_RESIDUAL_AUTOENCODER_OUTPUT = "online_residual_autoencoder_output"

    @property
    def facts(self) -> LocationFacts:
        """The row of facts of this location."""
        return LOCATION_FACTS[self]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The axes of the tapped tensor, for one prompt."""
        return LOCATION_FACTS[self].dimensions

    @property
    def has_no_layers(self) -> bool:
        """Whether the location exists once per model rather than once per layer."""
        return LOCATION_FACTS[self].has_no_layers

    @property
    def node_type(self) -> NodeType:
        """What the last axis runs over."""
        return node_type_of(self.dimensions)

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Where in its layer the location lies, or None where that is unknown."""
        return LOCATION_FACTS[self].location_within_layer


def node_type_of(dimensions: tuple[Dimension, ...]) -> NodeType:
    """Type of the nodes along the last of *dimensions*; raises ValueError if they are not nodes."""
    node_type = dimensions[-1].node_type
    if node_type is None:
        raise ValueError(f"{dimensions[-1]} is the last axis of no tensor")
    return node_type


@dataclass(frozen=True, slots=True, eq=False)
class LocationFacts:
    """What is known about an activation location without a model."""

    type: ActivationLocationType
    dimensions: tuple[Dimension, ...]
    """Axes of the tensor of one prompt, outermost first."""
    location_within_layer: LocationWithinLayer | None = None
    """Order within the layer; None where unknown from the location alone."""
    step: int = 0
    """Order of computation among those of a layer, or among those after all layers. 0 for what a spliced autoencoder
    has: that comes right after the tap which it is spliced in at."""
    has_no_layers: bool = False
    """True for what exists once per model."""
    is_after_layers: bool = False
    """Whether it is computed after the last layer."""
    needs_sequential_layers: bool = False
    """Whether it exists only in models whose MLP reads the residual after attention."""
    needs_post_norms: bool = False
    """Whether it exists only in models with post-norms."""
    needs_splice: bool = False
    """Whether it exists only while an autoencoder is spliced in."""
    is_made_on_demand: bool = False
    """Whether its tensor is computed only on demand; the others are computed in any pass, so recording them costs
    memory but almost no time."""
    keeps_gradient: bool = False
    """Whether derived scalars other than the tap itself read gradients at it. A backward pass frees the other gradients
    as it goes; keeping them too would triple its memory."""
    traced_at: PreOrPostAct | None = None
    """Whether a trace from an entry starts before or after the nonlinearity; None if none can start here."""
    head_input: AttentionTraceType | None = None
    """Q, K or V for the query, key or value of a head; None for the rest."""
    token_axes: tuple[int, ...] = field(init=False)
    """Numbers of the axes that are as long as the prompt."""

    def __post_init__(self) -> None:
        """Find the axes of tokens."""
        axes = tuple(i for i, one in enumerate(self.dimensions) if one.is_sequence_token_dimension)
        object.__setattr__(self, "token_axes", axes)

    @property
    def is_residual(self) -> bool:
        """Whether it is the residual stream itself, the sum of all that was written so far."""
        return self.location_within_layer in {LocationWithinLayer.RESID_POST_ATTN, LocationWithinLayer.RESID_POST_MLP}

    @property
    def is_within_source(self) -> bool:
        """Whether it is within a head or an MLP, or what an MLP writes. What attention writes is the sum of heads."""
        is_of_layer = self.location_within_layer in {LocationWithinLayer.ATTN, LocationWithinLayer.MLP}
        return is_of_layer and not self.needs_splice and self.type is not ActivationLocationType.RESID_DELTA_ATTN

    @property
    def is_attention_matrix(self) -> bool:
        """Whether it has an entry per pair of tokens, which fused attention never makes."""
        return self.dimensions[:2] == (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)

    @property
    def is_free(self) -> bool:
        """Whether any pass of a model that has it computes its tensor, recorded or not."""
        return not self.is_made_on_demand and not self.needs_splice


_L = ActivationLocationType
_ATTN = LocationWithinLayer.ATTN
_MLP = LocationWithinLayer.MLP

# fmt: off
_ROWS = (
    LocationFacts(_L.RESID_POST_EMBEDDING, (_TOKENS, _RESIDUAL), has_no_layers=True),
    LocationFacts(_L.RESID_DELTA_ATTN, (_TOKENS, _RESIDUAL), _ATTN, step=6),
    LocationFacts(_L.RESID_POST_ATTN, (_TOKENS, _RESIDUAL), LocationWithinLayer.RESID_POST_ATTN,
                  needs_sequential_layers=True, keeps_gradient=True, step=8),
    LocationFacts(_L.RESID_DELTA_MLP, (_TOKENS, _RESIDUAL), _MLP, step=13),
    LocationFacts(_L.RESID_POST_MLP, (_TOKENS, _RESIDUAL),
                  LocationWithinLayer.RESID_POST_MLP, keeps_gradient=True, step=15),
    LocationFacts(_L.MLP_INPUT_LAYER_NORM_SCALE, (_TOKENS, _ONE), is_made_on_demand=True, step=9),
    LocationFacts(_L.ATTN_INPUT_LAYER_NORM_SCALE, (_TOKENS, _ONE), is_made_on_demand=True),
    LocationFacts(_L.RESID_FINAL_LAYER_NORM_SCALE, (_TOKENS, _ONE), has_no_layers=True, is_after_layers=True,
                  is_made_on_demand=True, step=17),
    LocationFacts(_L.ATTN_QUERY, (_TOKENS, _HEADS, _QK), _ATTN, head_input=AttentionTraceType.Q, step=1),
    LocationFacts(_L.ATTN_KEY, (_KEYS, _HEADS, _QK), _ATTN, head_input=AttentionTraceType.K, step=1),
    LocationFacts(_L.ATTN_VALUE, (_KEYS, _HEADS, _VALUE), _ATTN, head_input=AttentionTraceType.V, step=3),
    LocationFacts(_L.ATTN_QK_LOGITS, (_TOKENS, _KEYS, _HEADS), _ATTN, traced_at=PreOrPostAct.PRE, step=2),
    LocationFacts(_L.ATTN_QK_PROBS, (_TOKENS, _KEYS, _HEADS), _ATTN, keeps_gradient=True,
                  traced_at=PreOrPostAct.POST, step=3),
    LocationFacts(_L.ATTN_WEIGHTED_SUM_OF_VALUES, (_TOKENS, _HEADS, _VALUE), _ATTN, keeps_gradient=True, step=4),
    LocationFacts(_L.MLP_PRE_ACT, (_TOKENS, _NEURONS), _MLP, traced_at=PreOrPostAct.PRE, step=10),
    LocationFacts(_L.MLP_POST_ACT, (_TOKENS, _NEURONS),
                  _MLP, keeps_gradient=True, traced_at=PreOrPostAct.POST, step=11),
    LocationFacts(_L.LOGITS, (_TOKENS, _VOCABULARY), has_no_layers=True, is_after_layers=True,
                  is_made_on_demand=True, step=18),
    LocationFacts(_L.ONLINE_AUTOENCODER_LATENT, (_TOKENS, _LATENTS), needs_splice=True, traced_at=PreOrPostAct.POST),
    LocationFacts(_L.ONLINE_MLP_AUTOENCODER_LATENT, (_TOKENS, _LATENTS), needs_splice=True),
    LocationFacts(_L.ONLINE_ATTENTION_AUTOENCODER_LATENT, (_TOKENS, _LATENTS), needs_splice=True),
    LocationFacts(_L.ONLINE_MLP_AUTOENCODER_ERROR, (_TOKENS, _NEURONS), _MLP, needs_splice=True),
    LocationFacts(_L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR, (_TOKENS, _RESIDUAL), needs_splice=True),
    LocationFacts(_L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR, (_TOKENS, _RESIDUAL), needs_splice=True),
    LocationFacts(_L.ATTN_OUTPUT_LAYER_NORM_SCALE, (_TOKENS, _ONE), needs_post_norms=True, step=5),
    LocationFacts(_L.MLP_OUTPUT_LAYER_NORM_SCALE, (_TOKENS, _ONE), needs_post_norms=True, step=12),
    LocationFacts(_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, (_TOKENS, _RESIDUAL), needs_splice=True),
    LocationFacts(_L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT, (_TOKENS, _RESIDUAL), needs_splice=True),
)
# fmt: on

LOCATION_FACTS = one_row_each(ActivationLocationType, _ROWS)
"""The table."""
