"""The places of a model: activation locations (taps) and weights, with what is known of them without a model.

A location's facts are one row of a table; what depends on a model (sizes) or on a derived scalar is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from dst_grpc.domain.components import Dimension, LocationWithinLayer, NodeType

_T = Dimension.SEQUENCE_TOKENS
_U = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_D = Dimension.RESIDUAL_STREAM_CHANNELS
_F = Dimension.MLP_ACTS
_H = Dimension.ATTN_HEADS
_CK = Dimension.QUERY_AND_KEY_CHANNELS
_CV = Dimension.VALUE_CHANNELS
_Z = Dimension.AUTOENCODER_LATENTS
_V = Dimension.VOCAB_SIZE
_1 = Dimension.SINGLETON

NODE_TYPE_OF_LAST_DIMENSION = {
    _F: NodeType.MLP_NEURON,
    _H: NodeType.ATTENTION_HEAD,
    _CK: NodeType.QK_CHANNEL,
    _CV: NodeType.V_CHANNEL,
    _1: NodeType.LAYER,
    _D: NodeType.RESIDUAL_STREAM_CHANNEL,
    _V: NodeType.VOCAB_TOKEN,
    _Z: NodeType.AUTOENCODER_LATENT,
    Dimension.AUTOENCODER_LATENTS_BY_TOKEN_PAIR: NodeType.AUTOENCODER_LATENT_BY_TOKEN_PAIR,
}
"""A tensor's nodes are what its last axis runs over."""


class ActivationLocationType(StrEnum):
    """A place in the forward pass where a tensor can be tapped: recorded, ablated, differentiated."""

    RESID_POST_EMBEDDING = "resid.post_emb"
    RESID_DELTA_ATTN = "resid.delta_attn"
    RESID_POST_ATTN = "resid.post_attn"
    RESID_DELTA_MLP = "resid.delta_mlp"
    RESID_POST_MLP = "resid.post_mlp"
    RESID_POST_MLP_LAYER_NORM = "resid.post_mlp_ln"
    RESID_POST_ATTN_LAYER_NORM = "resid.post_attn_ln"
    RESID_POST_FINAL_LAYER_NORM = "resid.post_ln_f"
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
    def exists_by_default(self) -> bool:
        """Whether the location needs no further qualification to exist."""
        return self is not ActivationLocationType.ONLINE_AUTOENCODER_LATENT

    @property
    def node_type(self) -> NodeType:
        """What the last axis runs over."""
        return NODE_TYPE_OF_LAST_DIMENSION[self.dimensions[-1]]

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Where in its layer the location lies, or None where that is unknown."""
        return LOCATION_FACTS[self].location_within_layer


@dataclass(frozen=True, slots=True)
class LocationFacts:
    """What is known about an activation location without a model."""

    dimensions: tuple[Dimension, ...]
    """Axes of the tensor of one prompt, outermost first."""
    location_within_layer: LocationWithinLayer | None = None
    """Order within the layer; None where unknown from the location alone."""
    has_no_layers: bool = False
    """True for what exists once per model."""
    is_tapped: bool = True
    """False for the three layer-norm outputs, which are names only."""


_A = ActivationLocationType
_ATTN = LocationWithinLayer.ATTN
_MLP = LocationWithinLayer.MLP

LOCATION_FACTS: dict[ActivationLocationType, LocationFacts] = {
    _A.RESID_POST_EMBEDDING: LocationFacts((_T, _D), has_no_layers=True),
    _A.RESID_DELTA_ATTN: LocationFacts((_T, _D), _ATTN),
    _A.RESID_POST_ATTN: LocationFacts((_T, _D), LocationWithinLayer.RESID_POST_ATTN),
    _A.RESID_DELTA_MLP: LocationFacts((_T, _D), _MLP),
    _A.RESID_POST_MLP: LocationFacts((_T, _D), LocationWithinLayer.RESID_POST_MLP),
    _A.RESID_POST_MLP_LAYER_NORM: LocationFacts((_T, _D), is_tapped=False),
    _A.RESID_POST_ATTN_LAYER_NORM: LocationFacts((_T, _D), is_tapped=False),
    _A.RESID_POST_FINAL_LAYER_NORM: LocationFacts((_T, _D), has_no_layers=True, is_tapped=False),
    _A.MLP_INPUT_LAYER_NORM_SCALE: LocationFacts((_T, _1)),
    _A.ATTN_INPUT_LAYER_NORM_SCALE: LocationFacts((_T, _1)),
    _A.RESID_FINAL_LAYER_NORM_SCALE: LocationFacts((_T, _1), has_no_layers=True),
    _A.ATTN_QUERY: LocationFacts((_T, _H, _CK), _ATTN),
    _A.ATTN_KEY: LocationFacts((_U, _H, _CK), _ATTN),
    _A.ATTN_VALUE: LocationFacts((_U, _H, _CV), _ATTN),
    _A.ATTN_QK_LOGITS: LocationFacts((_T, _U, _H), _ATTN),
    _A.ATTN_QK_PROBS: LocationFacts((_T, _U, _H), _ATTN),
    _A.ATTN_WEIGHTED_SUM_OF_VALUES: LocationFacts((_T, _H, _CV), _ATTN),
    _A.MLP_PRE_ACT: LocationFacts((_T, _F), _MLP),
    _A.MLP_POST_ACT: LocationFacts((_T, _F), _MLP),
    _A.LOGITS: LocationFacts((_T, _V), has_no_layers=True),
    _A.ONLINE_AUTOENCODER_LATENT: LocationFacts((_T, _Z)),
    _A.ONLINE_MLP_AUTOENCODER_LATENT: LocationFacts((_T, _Z)),
    _A.ONLINE_ATTENTION_AUTOENCODER_LATENT: LocationFacts((_T, _Z)),
    _A.ONLINE_MLP_AUTOENCODER_ERROR: LocationFacts((_T, _F), _MLP),
    _A.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: LocationFacts((_T, _D)),
    _A.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: LocationFacts((_T, _D)),
    _A.ATTN_OUTPUT_LAYER_NORM_SCALE: LocationFacts((_T, _1)),
    _A.MLP_OUTPUT_LAYER_NORM_SCALE: LocationFacts((_T, _1)),
}


class WeightLocationType(Enum):
    """A weight matrix or vector of the model; the value is its dotted name."""

    MLP_TO_HIDDEN = "mlp.to_hidden"
    MLP_TO_RESIDUAL = "mlp.to_residual"
    EMBEDDING = "embedding"
    UNEMBEDDING = "unembedding"
    POSITION_EMBEDDING = "position_embedding"
    ATTN_TO_QUERY = "attn.to_query"
    ATTN_TO_KEY = "attn.to_key"
    ATTN_TO_VALUE = "attn.to_value"
    ATTN_TO_RESIDUAL = "attn.to_residual"
    LAYER_NORM_GAIN_FINAL = "layer_norm_gain.final"
    LAYER_NORM_BIAS_FINAL = "layer_norm_bias.final"
    LAYER_NORM_GAIN_PRE_ATTN = "layer_norm_gain.pre_attn"
    LAYER_NORM_GAIN_PRE_MLP = "layer_norm_gain.pre_mlp"

    @property
    def shape_spec(self) -> tuple[Dimension, ...]:
        """Axes, head first, then input, then output."""
        return _WEIGHT_SHAPES[self]

    @property
    def has_no_layers(self) -> bool:
        """Whether the weight exists once per model."""
        return self.value.split(".")[0] not in {"mlp", "attn"} and not self.value.endswith(("_attn", "_mlp"))

    @property
    def is_mlp_specific(self) -> bool:
        """Whether the weight belongs to the MLP."""
        return self in {
            WeightLocationType.MLP_TO_HIDDEN,
            WeightLocationType.MLP_TO_RESIDUAL,
            WeightLocationType.LAYER_NORM_GAIN_PRE_MLP,
        }

    @property
    def is_absolute_position_embedding_specific(self) -> bool:
        """Whether only models with learned absolute positions have the weight."""
        return self is WeightLocationType.POSITION_EMBEDDING


_W = WeightLocationType
_WEIGHT_SHAPES: dict[WeightLocationType, tuple[Dimension, ...]] = {
    _W.MLP_TO_HIDDEN: (_D, _F),
    _W.MLP_TO_RESIDUAL: (_F, _D),
    _W.EMBEDDING: (_V, _D),
    _W.UNEMBEDDING: (_D, _V),
    _W.POSITION_EMBEDDING: (Dimension.MAX_CONTEXT_LENGTH, _D),
    _W.ATTN_TO_QUERY: (_H, _D, _CK),
    _W.ATTN_TO_KEY: (_H, _D, _CK),
    _W.ATTN_TO_VALUE: (_H, _D, _CV),
    _W.ATTN_TO_RESIDUAL: (_H, _CV, _D),
    _W.LAYER_NORM_GAIN_FINAL: (_D,),
    _W.LAYER_NORM_BIAS_FINAL: (_D,),
    _W.LAYER_NORM_GAIN_PRE_ATTN: (_D,),
    _W.LAYER_NORM_GAIN_PRE_MLP: (_D,),
}
