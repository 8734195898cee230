"""The decoder's config: sizes, and in which ways a model departs from GPT-2.

Fields say what is computed, never which family a model belongs to; `families` fill them from checkpoints. The names and
shapes of the weights follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dst_grpc.domain.architecture import ActivationFunction, Architecture, ModelDimensions, NormKind, PositionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """How the queries and keys of a layer are rotated: channel j of the first half with channel j of the second."""

    frequencies: tuple[float, ...]
    """Radians per position of each pair of channels; twice as many channels are rotated, from the first on."""
    scale: float = 1.0
    """Factor of the rotated channels."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """An architecture with its sizes. Defaults are those of GPT-2."""

    n_layers: int
    """Layers."""
    d_model: int
    """Channels of the residual stream (d)."""
    n_heads: int
    """Attention heads of a layer (H)."""
    n_key_value_heads: int
    """Key and value heads of a layer (KV); head h uses number h KV // H."""
    d_head: int
    """Channels of a head (c)."""
    d_mlp: int
    """Neurons of a layer (F)."""
    vocab_size: int
    """Tokens (V)."""
    context_window: int
    """Longest prompt, in tokens."""
    norm: NormKind = NormKind.LAYER_NORM
    """The kind of every norm; only layer norms have a bias."""
    norm_epsilon: float = 1e-5
    """Added to the variance, or the mean square, under the root of a norm's scale."""
    norm_gain_offset: float = 0.0
    """Added to every norm's gain; if it is not 0, the gain applies before results are rounded to the weights' type."""
    rotary: tuple[Rotary | None, ...] | None = None
    """By layer, the rotation of queries and keys, None for a layer without; None as a whole for learned positions."""
    query_scale: float | None = None
    """Factor of attention scores; None for d_head**-0.5."""
    attn_softcap: float | None = None
    """Soft cap of attention scores: a score becomes softcap tanh(score / softcap), before the mask; None = no cap."""
    final_softcap: float | None = None
    """The same of logits."""
    sliding_windows: tuple[int | None, ...] = ()
    """By layer, how many tokens back a query attends, its own included; None for all. Empty if every layer attends to
    all."""
    has_qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    has_attn_out_bias: bool = True
    """Whether attention's output has a bias."""
    has_mlp_bias: bool = True
    """Whether the MLP has biases."""
    qk_norm: bool = False
    """Whether each head's query and key are normed before they are rotated."""
    post_norms: bool = False
    """Whether the outputs of attention and MLP are normed before they are added to the residual."""
    activation: ActivationFunction = ActivationFunction.GELU_TANH
    """Nonlinearity of the MLP."""
    gated: bool = False
    """Whether the MLPs are gated: a neuron is act(gate) times up, of two linear maps."""
    parallel: bool = False
    """Whether attention and MLP are parallel: both read the residual that enters the layer."""
    embedding_scale: float = 1.0
    """Factor of the token embedding, rounded to the weights' type."""

    @property
    def score_scale(self) -> float:
        """Factor of attention scores; queries and keys are each multiplied by its square root."""
        return self.d_head**-0.5 if self.query_scale is None else self.query_scale

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        """Columns of queries, keys and values in the weight that holds all three."""
        shared = self.n_key_value_heads * self.d_head
        return self.n_heads * self.d_head, shared, shared

    @cached_property
    def dimensions(self) -> ModelDimensions:
        """Its sizes, as the domain's value."""
        return ModelDimensions(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_key_value_heads=self.n_key_value_heads,
            d_head=self.d_head,
            d_mlp=self.d_mlp,
            vocab_size=self.vocab_size,
            context_window=self.context_window,
        )

    @cached_property
    def architecture(self) -> Architecture:
        """Its architecture, as the domain's value."""
        rotary = self.rotary or ()
        return Architecture(
            norm=self.norm,
            positions=PositionKind.LEARNED if self.rotary is None else PositionKind.ROTARY,
            layers_without_positions=tuple(layer for layer, one in enumerate(rotary) if one is None),
            activation=self.activation,
            gated=self.gated,
            parallel=self.parallel,
            post_norms=self.post_norms,
            qk_norm=self.qk_norm,
            attn_softcap=self.attn_softcap,
            final_softcap=self.final_softcap,
            sliding_windows=self.sliding_windows,
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in loading order."""
        d = self.d_model
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocab_size, d)}
        if self.rotary is None:
            shapes["position_embedding"] = (self.context_window, d)
        block = self._block_shapes()
        for layer in range(self.n_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        return shapes | self._norm_shapes("final_norm") | {"unembedding": (d, self.vocab_size)}

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._norm_shapes("attn_norm")
        shapes |= _linear_shapes("attn.qkv", self.d_model, sum(self.qkv_widths), has_bias=self.has_qkv_bias)
        if self.qk_norm:
            shapes |= self._norm_shapes("attn.query_norm", self.d_head)
            shapes |= self._norm_shapes("attn.key_norm", self.d_head)
        n_mixed = self.n_heads * self.d_head
        shapes |= _linear_shapes("attn.out", n_mixed, self.d_model, has_bias=self.has_attn_out_bias)
        if self.post_norms:
            shapes |= self._norm_shapes("attn_post_norm")
        shapes |= self._norm_shapes("mlp_norm")
        shapes |= _linear_shapes("mlp.in", self.d_model, self.d_mlp, has_bias=self.has_mlp_bias)
        if self.gated:
            shapes |= _linear_shapes("mlp.up", self.d_model, self.d_mlp, has_bias=self.has_mlp_bias)
        shapes |= _linear_shapes("mlp.out", self.d_mlp, self.d_model, has_bias=self.has_mlp_bias)
        if self.post_norms:
            shapes |= self._norm_shapes("mlp_post_norm")
        return shapes

    def _norm_shapes(self, name: str, size: int | None = None) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{name}.gain": (size or self.d_model,)}
        if self.norm is NormKind.LAYER_NORM:
            shapes[f"{name}.bias"] = (size or self.d_model,)
        return shapes


def _linear_shapes(name: str, n_in: int, n_out: int, *, has_bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n_in, n_out)}
    if has_bias:
        shapes[f"{name}.bias"] = (n_out,)
    return shapes
