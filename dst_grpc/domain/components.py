"""The vocabulary: dimensions, node types and the other enums.

Every other module speaks in these words; the places of a model are in `locations`, the derived scalars in `scalars`.
Members and values are the research code's, so that users who know its
names find them; `protos/dst/v1/component.proto` mirrors the enums that travel, member for member. Nothing here
computes.

One legend of axis letters, used in shapes throughout the package:

    T  query token         U  key (attended-to) token    P  token pair of the lower triangle
    d  residual channel    F  MLP neuron                 H  attention head
    c  channel of a head   Z  autoencoder latent         V  vocabulary token
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Dimension(StrEnum):
    """What an axis of a tensor runs over."""

    SEQUENCE_TOKENS = "sequence_tokens"
    ATTENDED_TO_SEQUENCE_TOKENS = "attended_to_sequence_tokens"
    MAX_CONTEXT_LENGTH = "max_context_length"
    RESIDUAL_STREAM_CHANNELS = "residual_stream_channels"
    VOCAB_SIZE = "vocab_size"
    ATTN_HEADS = "attn_heads"
    QUERY_AND_KEY_CHANNELS = "query_and_key_channels"
    VALUE_CHANNELS = "value_channels"
    MLP_ACTS = "mlp_acts"
    LAYERS = "layers"
    SINGLETON = "singleton"
    AUTOENCODER_LATENTS = "autoencoder_latents"
    AUTOENCODER_LATENTS_BY_TOKEN_PAIR = "autoencoder_latents_by_token_pair"

    @property
    def is_sequence_token_dimension(self) -> bool:
        """Whether the axis is as long as the prompt."""
        return self in {Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS}

    @property
    def is_parameterized_dimension(self) -> bool:
        """Whether the axis's size is an autoencoder's."""
        return self is Dimension.AUTOENCODER_LATENTS

    @property
    def is_model_intrinsic(self) -> bool:
        """Whether the axis's size follows from the model alone."""
        return not (self.is_sequence_token_dimension or self.is_parameterized_dimension)


class PassType(StrEnum):
    """Value of a tap in the forward pass, or gradient at it."""

    FORWARD = "forward"
    BACKWARD = "backward"


class LocationWithinLayer(IntEnum):
    """Order of things inside a layer; a component affects only what comes strictly later."""

    END_OF_PREV_LAYER = 1
    ATTN = 2
    RESID_POST_ATTN = 3
    MLP = 4
    RESID_POST_MLP = 5


class NodeType(StrEnum):
    """What kind of thing a node is."""

    ATTENTION_HEAD = "attention_head"
    QK_CHANNEL = "qk_channel"
    V_CHANNEL = "v_channel"
    MLP_NEURON = "mlp_neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"
    MLP_AUTOENCODER_LATENT = "mlp_autoencoder_latent"
    ATTENTION_AUTOENCODER_LATENT = "attention_autoencoder_latent"
    AUTOENCODER_LATENT_BY_TOKEN_PAIR = "autoencoder_latent_by_token_pair"
    LAYER = "layer"
    RESIDUAL_STREAM_CHANNEL = "residual_stream_channel"
    VOCAB_TOKEN = "vocab_token"

    @property
    def is_autoencoder_latent(self) -> bool:
        """Whether a node of this type is a latent of an autoencoder."""
        return "latent" in self.value


class AttentionTraceType(StrEnum):
    """Through which inputs of an attention head a trace goes back."""

    Q = "Q"
    K = "K"
    QK = "QK"
    V = "V"


class PreOrPostAct(StrEnum):
    """Whether a trace starts before or after the node's nonlinearity."""

    PRE = "pre"
    POST = "post"


class InferenceEngineType(StrEnum):
    """Which engine runs the model."""

    STANDARD = "standard"


class LossFnName(StrEnum):
    """The scalar of the last token's logits that a backward pass starts from."""

    LOGIT_DIFF = "logit_diff"
    LOGIT_MINUS_MEAN = "logit_minus_mean"
    PROBS = "probs"
    ZERO = "zero"


class GroupId(StrEnum):
    """A named group of derived scalar types in a debugging request."""

    ACT_TIMES_GRAD = "act_times_grad"
    ACTIVATION = "activation"
    DIRECT_WRITE_TO_GRAD = "direct_write_to_grad"
    DIRECTION_WRITE = "direction_write"
    LOGITS = "logits"
    MLP_LAYER_WRITE = "mlp_layer_write"
    SINGLETON = "singleton"
    TOKEN_WRITE = "token_write"
    TOKEN_READ = "token_read"
    WRITE_NORM = "write_norm"
    TOKEN_PAIR_ATTRIBUTION = "token_pair_attribution"

    @property
    def exclude_bottom_k(self) -> bool:
        """Whether the smallest values of the group say nothing of interest."""
        return self in {GroupId.WRITE_NORM, GroupId.ACTIVATION, GroupId.LOGITS}


class TokenScoringType(StrEnum):
    """How vocabulary tokens are scored for a node."""

    UPVOTED_OUTPUT_TOKENS = "upvoted_output_tokens"
    INPUT_TOKENS_THAT_UPVOTE_MLP = "input_tokens_that_upvote_mlp"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_Q = "input_tokens_that_upvote_attn_q"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_K = "input_tokens_that_upvote_attn_k"


class ComponentTypeForMlp(StrEnum):
    """What stands for the MLPs in a debugging request."""

    NEURON = "neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"


class ComponentTypeForAttention(StrEnum):
    """What stands for attention in a debugging request."""

    ATTENTION_HEAD = "attention_head"
    AUTOENCODER_LATENT = "autoencoder_latent"


class SpecType(StrEnum):
    """Kind of a request in the reference's JSON API."""

    ACTIVATIONS_REQUEST_SPEC = "activations_request_spec"
    DERIVED_SCALARS_REQUEST_SPEC = "derived_scalars_request_spec"
    DERIVED_ATTENTION_SCALARS_REQUEST_SPEC = "derived_attention_scalars_request_spec"
    MULTIPLE_TOP_K_DERIVED_SCALARS_REQUEST_SPEC = "multiple_top_k_derived_scalars_request_spec"
    SCORED_TOKENS_REQUEST_SPEC = "scored_tokens_request_spec"
    TDB_REQUEST_SPEC = "tdb_request_spec"
    TOKEN_PAIR_ATTRIBUTION_REQUEST_SPEC = "token_pair_attribution_request_spec"


class ProcessingResponseDataType(StrEnum):
    """Kind of a response part in the reference's JSON API."""

    DERIVED_SCALARS_RESPONSE_DATA = "derived_scalars_response_data"
    DERIVED_ATTENTION_SCALARS_RESPONSE_DATA = "derived_attention_scalars_response_data"
    MULTIPLE_TOP_K_DERIVED_SCALARS_RESPONSE_DATA = "multiple_top_k_derived_scalars_response_data"
    SCORED_TOKENS_RESPONSE_DATA = "scored_tokens_response_data"
    TOKEN_PAIR_ATTRIBUTION_RESPONSE_DATA = "token_pair_attribution_response_data"


class TensorType(StrEnum):
    """Rank of a tensor in the reference's JSON API."""

    TENSOR_0D = "tensor_0d"
    TENSOR_1D = "tensor_1d"
    TENSOR_2D = "tensor_2d"
    TENSOR_3D = "tensor_3d"


class PromptId(StrEnum):
    """Which of two runs."""

    MAIN = "main"
    BASELINE = "baseline"


class PromptCombo(StrEnum):
    """Which combination of two runs a value comes from."""

    MAIN = "main"
    BASELINE = "baseline"
    SUBTRACT_BASELINE = "subtract_baseline"


class TensorElementType(StrEnum):
    """How one element of a tensor is stored; little-endian throughout."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def byte_width(self) -> int:
        """Bytes of one element."""
        return _BYTE_WIDTHS[self]


_BYTE_WIDTHS = {
    TensorElementType.FLOAT32: 4,
    TensorElementType.FLOAT16: 2,
    TensorElementType.BFLOAT16: 2,
    TensorElementType.INT32: 4,
    TensorElementType.UINT32: 4,
    TensorElementType.INT64: 8,
    TensorElementType.BOOL: 1,
}


class TensorEncoding(StrEnum):
    """Whether a tensor travels whole, or as its nonzero entries."""

    DENSE = "dense"
    SPARSE_LATENTS = "sparse_latents"
