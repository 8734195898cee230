"""Enums that all of the package uses: node types, dimensions, components and others.

Taps are in `locations`, derived scalars in `scalars`. Members and values are those of the reference implementation,
OpenAI's transformer-debugger (https://github.com/openai/transformer-debugger); `protos/dst/v1/component.proto` mirrors
the enums that messages carry, member for member. Nothing here computes.

One legend of axis letters, used in shapes throughout the package:

    T  query token         U  key (attended-to) token    P  token pair of the lower triangle
    d  residual channel    F  MLP neuron                 H  attention head
    c  channel of a head   Z  autoencoder latent         V  vocabulary token
    S  source of the graph                               D  reader of the graph
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Self


class NodeType(StrEnum):
    """The kind of a node; its row of facts is in `nodes`."""

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
    AUTOENCODER_ERROR = "autoencoder_error"


class Dimension(StrEnum):
    """What an axis of a tensor runs over: its name, its letter in the legend, and the nodes along it if it is last."""

    SEQUENCE_TOKENS = "sequence_tokens", "T"
    ATTENDED_TO_SEQUENCE_TOKENS = "attended_to_sequence_tokens", "U"
    MAX_CONTEXT_LENGTH = "max_context_length"
    RESIDUAL_STREAM_CHANNELS = "residual_stream_channels", "d", NodeType.RESIDUAL_STREAM_CHANNEL
    VOCAB_SIZE = "vocab_size", "V", NodeType.VOCAB_TOKEN
    ATTN_HEADS = "attn_heads", "H", NodeType.ATTENTION_HEAD
    QUERY_AND_KEY_CHANNELS = "query_and_key_channels", "c", NodeType.QK_CHANNEL
    VALUE_CHANNELS = "value_channels", "c", NodeType.V_CHANNEL
    MLP_ACTS = "mlp_acts", "F", NodeType.MLP_NEURON
    LAYERS = "layers"
    SINGLETON = "singleton", "1", NodeType.LAYER
    AUTOENCODER_LATENTS = "autoencoder_latents", "Z", NodeType.AUTOENCODER_LATENT
    AUTOENCODER_LATENTS_BY_TOKEN_PAIR = (
        "autoencoder_latents_by_token_pair",
        "",
        NodeType.AUTOENCODER_LATENT_BY_TOKEN_PAIR,
    )
    GRAPH_SOURCES = "graph_sources", "S"
    GRAPH_READERS = "graph_readers", "D"

    _value_: str
    letter: str
    """The axis in the legend; empty for one that no tensor has."""
    node_type: NodeType | None
    """Type of a tensor's nodes if this is its last axis; None if it never is."""

    def __new__(cls, name: str, letter: str = "", node_type: NodeType | None = None) -> Self:
        """A member equal to its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.letter = letter
        member.node_type = node_type
        return member

    @property
    def is_sequence_token_dimension(self) -> bool:
        """Whether the axis is as long as the prompt."""
        return self in {Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS}

    @property
    def is_parameterized_dimension(self) -> bool:
        """Whether the axis's size is an autoencoder's."""
        return self is Dimension.AUTOENCODER_LATENTS

    @property
    def is_of_channels(self) -> bool:
        """Whether its entries are channels of one vector, which an autoencoder can read together."""
        of_model = self.node_type is not None and not self.is_parameterized_dimension
        return of_model and self not in {Dimension.SINGLETON, Dimension.AUTOENCODER_LATENTS_BY_TOKEN_PAIR}


class PassType(StrEnum):
    """Value of a tap in the forward pass, or gradient at it."""

    FORWARD = "forward"
    BACKWARD = "backward"


class LocationWithinLayer(float, Enum):
    """Order of computation inside a layer; a component affects only what comes strictly later.

    Whole numbers are the reference implementation's. Latents of the residual stream, which it lacks, come after
    all that is added to what they read, and before all that reads it.
    """

    END_OF_PREV_LAYER = 1
    ATTN = 2
    LATENTS_OF_RESID_POST_ATTN = 2.5
    RESID_POST_ATTN = 3
    MLP = 4
    LATENTS_OF_RESID_POST_MLP = 4.5
    RESID_POST_MLP = 5


class Component(Enum):
    """The component of the model that a derived scalar is about."""

    TAP = auto()
    """A tapped tensor as it is."""
    RESIDUAL = auto()
    """A residual vector per token: the embedding, a residual sum, a layer's write."""
    PREVIOUS_RESIDUAL = auto()
    """The residual that enters a layer."""
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
    """Reconstruction error of a spliced autoencoder of a residual write, or of the residual stream."""
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

    @property
    def is_spliced(self) -> bool:
        """Whether it exists only in a run that an autoencoder is spliced into."""
        return self in {Component.LATENT, Component.NEURON_ERROR, Component.RESIDUAL_ERROR}

    @property
    def is_of_autoencoder(self) -> bool:
        """Whether it is a latent or an error of an autoencoder."""
        return self.is_spliced or self is Component.OFFLINE_LATENT


class AttentionTraceType(StrEnum):
    """The inputs of an attention head that the gradient of a trace flows through."""

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
    """The scalar of a run that a backward pass starts from, unless that is a traced activation."""

    LOGIT_DIFF = "logit_diff"
    LOGIT_MINUS_MEAN = "logit_minus_mean"
    PROBS = "probs"
    ZERO = "zero"
    LOG_PROB = "log_prob"
    SEQUENCE_LOG_PROB = "sequence_log_prob"
    ENTROPY = "entropy"
    KL_DIVERGENCE = "kl_divergence"
    CROSS_ENTROPY = "cross_entropy"
    TAP = "tap"

    @property
    def needs_targets(self) -> bool:
        """Whether it is about target tokens."""
        return self not in {
            LossFnName.ZERO,
            LossFnName.ENTROPY,
            LossFnName.KL_DIVERGENCE,
            LossFnName.CROSS_ENTROPY,
            LossFnName.TAP,
        }

    @property
    def may_have_distractors(self) -> bool:
        """Whether it may be about distractor tokens too."""
        return self in {LossFnName.LOGIT_DIFF, LossFnName.PROBS, LossFnName.LOG_PROB, LossFnName.ZERO}

    @property
    def has_position(self) -> bool:
        """Whether it reads the logits at one position, or from one position on."""
        return self not in {LossFnName.ZERO, LossFnName.CROSS_ENTROPY, LossFnName.TAP}

    @property
    def is_distance(self) -> bool:
        """Whether it is small where a model does as it should: a divergence, or a cross entropy."""
        return self in {LossFnName.KL_DIVERGENCE, LossFnName.CROSS_ENTROPY}


class ComponentTypeForMlp(StrEnum):
    """Which nodes represent the MLPs in an Explain request."""

    NEURON = "neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"


class ComponentTypeForAttention(StrEnum):
    """Which nodes represent attention in an Explain request."""

    ATTENTION_HEAD = "attention_head"
    AUTOENCODER_LATENT = "autoencoder_latent"


class ComponentTypeForResidual(StrEnum):
    """Which nodes describe the residual stream in an Explain request, beside those that write to it."""

    NONE = "none"
    AUTOENCODER_LATENT = "autoencoder_latent"


class TensorElementType(StrEnum):
    """How one element of a tensor is stored, little-endian throughout: its name, its bytes, whether it is a float."""

    FLOAT32 = "float32", 4, True
    FLOAT16 = "float16", 2, True
    BFLOAT16 = "bfloat16", 2, True
    INT32 = "int32", 4
    UINT32 = "uint32", 4
    INT64 = "int64", 8
    BOOL = "bool", 1

    _value_: str
    byte_width: int
    """Bytes of one element."""
    is_float: bool
    """Whether it is a float type: one of answers, of weights and of tensors in requests."""

    def __new__(cls, name: str, byte_width: int = 0, is_float: bool = False) -> Self:
        """A member equal to its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.byte_width, member.is_float = byte_width, is_float
        return member


class TensorEncoding(StrEnum):
    """Whether a tensor is sent whole, or as its nonzero entries."""

    DENSE = "dense"
    SPARSE_LATENTS = "sparse_latents"
