"""Sizes and architecture of a model as plain values, and which taps and derived scalar types it rules out.

An `Architecture` says in which ways a model departs from GPT-2, its default. Planning, derivation and descriptions read
these fields, never the name of a family.
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
    """How a model encodes positions."""

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
    """Tokens of the vocabulary."""
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
    """In which ways a model departs from GPT-2, whose values are the defaults."""

    norm: NormKind = NormKind.LAYER_NORM
    """The norm before attention, MLP and logits."""
    positions: PositionKind = PositionKind.LEARNED
    """How positions are encoded."""
    layers_without_positions: tuple[int, ...] = ()
    """Layers without rotary positions in a model whose other layers have them."""
    activation: ActivationFunction = ActivationFunction.GELU_TANH
    """Nonlinearity of the MLPs."""
    gated: bool = False
    """Whether the MLPs are gated: a neuron is act(gate) times up."""
    parallel: bool = False
    """Whether attention and MLP are parallel: both read the residual that enters the layer."""
    post_norms: bool = False
    """Whether the outputs of attention and MLP are normed before they are added to the residual (post-norms)."""
    qk_norm: bool = False
    """Whether queries and keys are normed, head by head, before they are rotated."""
    attn_softcap: float | None = None
    """Soft cap of attention scores: s becomes softcap tanh(s / softcap) before masks and softmax; None = no cap."""
    final_softcap: float | None = None
    """The same of the logits."""
    sliding_windows: tuple[int | None, ...] = ()
    """By layer, how many tokens back a query attends, its own included; None for all. Empty if every layer attends to
    all."""

    def window(self, layer: int) -> int | None:
        """How many tokens back the queries of *layer* attend, their own included; None for all."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    def why_without(self, location: ActivationLocationType) -> str | None:
        """Why the model has no such tap; None if it has one, or if that depends on more than the model."""
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
    """Why, as the predicate of a sentence about the model."""


def unsupported_types(architecture: Architecture) -> tuple[UnsupportedType, ...]:
    """The types that *architecture* rules out: those of a tap that it lacks."""
    found = []
    for dst, facts in FACTS.items():
        reason = None if facts.tap is None else architecture.why_without(facts.tap)
        if reason is not None:
            found.append(UnsupportedType(dst=dst, reason=reason))
    return tuple(found)
