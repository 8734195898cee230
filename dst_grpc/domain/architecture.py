"""What a model is, in plain values: its sizes, how its parts hang together, and what that rules out.

An `Architecture` says in which ways a model departs from the plainest decoder, GPT-2's, which is its default. Whatever
plans, derives or describes asks these fields and never a family's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.components import Dimension
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS


class NormKind(StrEnum):
    """What the layer norms of a model divide by."""

    LAYER_NORM = "layer_norm"
    """The standard deviation, after subtracting the mean."""
    RMS_NORM = "rms_norm"
    """The root of the mean square; nothing is subtracted."""


class PositionKind(StrEnum):
    """How a model knows where in the prompt a token stands."""

    LEARNED = "learned"
    """A vector per position is added to the embedding."""
    ROTARY = "rotary"
    """Queries and keys are rotated by angles that grow with the position."""


class ActivationFunction(StrEnum):
    """The nonlinearity of the MLPs."""

    GELU_TANH = "gelu_tanh"
    """gelu in its tanh form."""
    GELU = "gelu"
    """gelu by the error function."""
    SILU = "silu"
    RELU = "relu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDimensions:
    """Sizes of a model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    """Tokens the tokenizer and the embedding know."""
    context_window: int
    """Longest prompt, in tokens."""

    def size_of(self, dimension: Dimension, *, n_tokens: int, n_latents: int = 0) -> int:
        """Length of an axis, for a prompt of *n_tokens* and, where the axis is one of them, *n_latents*."""
        return n_latents if dimension is Dimension.AUTOENCODER_LATENTS else self.sizes(n_tokens)[dimension]

    def sizes(self, n_tokens: int) -> dict[Dimension, int]:
        """Length of every axis but that of latents, for a prompt of *n_tokens*."""
        return {
            Dimension.SEQUENCE_TOKENS: n_tokens,
            Dimension.ATTENDED_TO_SEQUENCE_TOKENS: n_tokens,
            Dimension.MAX_CONTEXT_LENGTH: self.context_window,
            Dimension.RESIDUAL_STREAM_CHANNELS: self.d_model,
            Dimension.VOCAB_SIZE: self.vocab_size,
            Dimension.ATTN_HEADS: self.n_heads,
            Dimension.QUERY_AND_KEY_CHANNELS: self.d_head,
            Dimension.VALUE_CHANNELS: self.d_head,
            Dimension.MLP_ACTS: self.d_mlp,
            Dimension.LAYERS: self.n_layers,
            Dimension.SINGLETON: 1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the parts of a model hang together. The defaults are GPT-2's."""

    norm: NormKind = NormKind.LAYER_NORM
    """Which norm stands before attention, MLP and logits."""
    positions: PositionKind = PositionKind.LEARNED
    """How positions enter."""
    layers_without_positions: tuple[int, ...] = ()
    """Layers that rotate nothing in a model whose others do."""
    activation: ActivationFunction = ActivationFunction.GELU_TANH
    """Nonlinearity of the MLPs."""
    gated: bool = False
    """Whether a neuron is act(gate) times up, rather than act alone."""
    parallel: bool = False
    """Whether the MLP reads the residual that enters the layer, beside attention rather than after it."""
    post_norms: bool = False
    """Whether what attention and MLP write is normed before it is added to the residual."""
    qk_norm: bool = False
    """Whether queries and keys are normed, head by head, before they are rotated."""
    attn_softcap: float | None = None
    """s becomes softcap tanh(s / softcap) before masks and softmax; None if it stays s."""
    final_softcap: float | None = None
    """The same of the logits."""
    sliding_windows: tuple[int | None, ...] = ()
    """By layer, how many tokens back a query sees, itself included; None for all. Empty if every layer sees all."""

    def window(self, layer: int) -> int | None:
        """How many tokens back the queries of *layer* see, themselves included; None for all."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    def why_without(self, location: ActivationLocationType) -> str | None:
        """Why the model has no such tap; None if it has, or if it depends on more than the model."""
        if self.parallel and location.facts.needs_sequential_layers:
            return "attention and MLP of its layers read the same residual, and there is none between them"
        if not self.post_norms and location.facts.needs_post_norms:
            return "its layers add what they write without norming it"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedType:
    """A derived scalar type that has no meaning in a model."""

    dst: DerivedScalarType
    reason: str
    """Why, as the end of a sentence about the model."""


def unsupported_types(architecture: Architecture) -> tuple[UnsupportedType, ...]:
    """The types that *architecture* rules out: those of a tap that it lacks."""
    found = []
    for dst, facts in FACTS.items():
        reason = None if facts.tap is None else architecture.why_without(facts.tap)
        if reason is not None:
            found.append(UnsupportedType(dst=dst, reason=reason))
    return tuple(found)
