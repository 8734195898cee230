"""The one transformer: a decoder driven by its config's fields, never by a model's name.

`Layer` holds the arithmetic of a block as small functions, so that the forward pass, traces and edges all compute the
same thing the same way; `Decoder.forward` strings them together and offers every intermediate tensor to the taps.
Weights are frozen: gradients are taken at taps, never at weights. Equations: specification, section 2.

Shapes use the legend of `dst_grpc.domain.components`, with b for the prompt within a batch. Prompts shorter than the
batch's longest are padded on the right; as attention is causal, no real token ever sees a pad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import DataLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """An architecture."""

    n_layers: int
    """Blocks."""
    d_model: int
    """Channels of the residual stream (d)."""
    n_heads: int
    """Attention heads of a block (H)."""
    n_key_value_heads: int
    """Key and value heads of a block; equals n_heads unless heads share them."""
    d_head: int
    """Channels of a head (c)."""
    d_mlp: int
    """Neurons of a block (F)."""
    vocab_size: int
    """Tokens (V)."""
    context_window: int
    """Longest prompt, in tokens."""
    norm_epsilon: float = 1e-5
    """Added to the variance under the root of a layer norm's scale."""

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in loading order."""
        d, qkv = self.d_model, (self.n_heads + 2 * self.n_key_value_heads) * self.d_head
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab_size, d),
            "position_embedding": (self.context_window, d),
        }
        block = {
            "attn_norm.gain": (d,),
            "attn_norm.bias": (d,),
            "attn.qkv.weight": (d, qkv),
            "attn.qkv.bias": (qkv,),
            "attn.out.weight": (self.n_heads * self.d_head, d),
            "attn.out.bias": (d,),
            "mlp_norm.gain": (d,),
            "mlp_norm.bias": (d,),
            "mlp.in.weight": (d, self.d_mlp),
            "mlp.in.bias": (self.d_mlp,),
            "mlp.out.weight": (self.d_mlp, d),
            "mlp.out.bias": (d,),
        }
        for layer in range(self.n_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        return shapes | {"final_norm.gain": (d,), "final_norm.bias": (d,), "unembedding": (d, self.vocab_size)}


class Norm:
    """A layer norm, with its scale (the divisor) as a tensor of its own where somebody wants it."""

    def __init__(self, gain: torch.Tensor, bias: torch.Tensor, epsilon: float) -> None:
        """Gain and bias are [d]."""
        self.gain, self.bias, self.epsilon = gain, bias, epsilon

    def __call__(self, x: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """Normalise *x* [..., d]; with *detach_scale* no gradient flows through the divisor."""
        if not detach_scale:
            return functional.layer_norm(x, self.gain.shape, self.gain, self.bias, self.epsilon)
        return self.apply(x, self.scale(x).detach())

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The divisor [..., 1]: root of variance plus epsilon, in float32 at least."""
        return (_wide(x).var(dim=-1, keepdim=True, correction=0) + self.epsilon).sqrt()

    def apply(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Normalise *x* [..., d] by a given *scale* [..., 1]."""
        centred = _wide(x) - _wide(x).mean(dim=-1, keepdim=True)
        return ((centred / scale) * self.gain + self.bias).to(x.dtype)


class Layer:
    """One block's weights and arithmetic. Nothing here knows about taps."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> None:
        """*weights* by their names within the block."""
        self._config = config
        self._qkv_weight, self._qkv_bias = weights["attn.qkv.weight"], weights["attn.qkv.bias"]
        self._out_weight, self.attn_bias = weights["attn.out.weight"], weights["attn.out.bias"]
        self._in_weight, self._in_bias = weights["mlp.in.weight"], weights["mlp.in.bias"]
        self.mlp_out, self.mlp_bias = weights["mlp.out.weight"], weights["mlp.out.bias"]
        self.attn_norm = Norm(weights["attn_norm.gain"], weights["attn_norm.bias"], config.norm_epsilon)
        self.mlp_norm = Norm(weights["mlp_norm.gain"], weights["mlp_norm.bias"], config.norm_epsilon)

    @property
    def attn_out(self) -> torch.Tensor:
        """WO [H, c, d], head by head."""
        return self._out_weight.view(self._config.n_heads, self._config.d_head, self._config.d_model)

    @cached_property
    def attn_out_triangle(self) -> torch.Tensor:
        """R [H, c, c] with WO[h] = (Q R)^T, Q orthonormal: |v WO[h]| = |R v|, without going through d channels."""
        with torch.no_grad():
            return torch.linalg.qr(_wide(self.attn_out).transpose(1, 2), mode="r").R.to(self._out_weight.dtype)

    @cached_property
    def mlp_out_norms(self) -> torch.Tensor:
        """Length of what each neuron writes at activation 1, [F]."""
        with torch.no_grad():
            return torch.linalg.vector_norm(self.mlp_out, dim=1)

    def qkv(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [..., T, H, c] of a normed residual; the first two scaled by c^(-1/4) each."""
        c = self._config
        width = c.n_heads * c.d_head
        q, k, v = torch.split(_linear(normed, self._qkv_weight, self._qkv_bias), width, dim=-1)
        heads = (*normed.shape[:-1], c.n_heads, c.d_head)
        scale = c.d_head**-0.25
        return q.reshape(heads) * scale, k.reshape(heads) * scale, v.reshape(heads)

    def attn_scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Attention scores [..., T, U, H] of *q* [..., T, H, c] and *k* [..., U, H, c], -inf where u > t."""
        scores = torch.einsum("...thc,...uhc->...htu", q, k)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(future, -math.inf).movedim(-3, -1)

    def attn_probs(self, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H], in float32 at least and cast back."""
        return scores.softmax(dim=-2, dtype=_wide_type(scores)).to(scores.dtype)

    def attn_mix(self, probs: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Values [..., U, H, c] weighted by *probs* [..., T, U, H] and summed over u: [..., T, H, c]."""
        return torch.einsum("...tuh,...uhc->...thc", probs, v)

    def attn_write(self, mixed: torch.Tensor) -> torch.Tensor:
        """What attention adds to the residual, [..., T, d], of *mixed* [..., T, H, c]."""
        return _linear(mixed.flatten(-2), self._out_weight, self.attn_bias)

    def mlp_pre_act(self, normed: torch.Tensor) -> torch.Tensor:
        """Neurons before the nonlinearity, [..., F]."""
        return _linear(normed, self._in_weight, self._in_bias)

    def neuron_pre_act(self, normed: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        """One neuron of each row before the nonlinearity, [n], of normed residuals [n, d] and *neurons* [n]."""
        return (normed * self._in_weight[:, neurons].t()).sum(dim=-1) + self._in_bias[neurons]

    def mlp_act(self, pre: torch.Tensor) -> torch.Tensor:
        """Neurons after it: gelu in its tanh form."""
        return functional.gelu(pre, approximate="tanh")

    def mlp_write(self, act: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to the residual, [..., d], of *act* [..., F]."""
        return _linear(act, self.mlp_out, self.mlp_bias)


class Decoder:
    """A model: config, frozen weights, and the forward pass."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> None:
        """Take *weights* as `DecoderConfig.weight_shapes` names them.

        Raises:
            DataLoss: if a weight is unknown, missing or misshapen; names the key.
        """
        _check_weights(config, weights)
        self.config = config
        frozen = {name: weight.detach() for name, weight in weights.items()}
        self.embedding, self.position_embedding = frozen["embedding"], frozen["position_embedding"]
        self.unembedding = frozen["unembedding"]
        self.final_norm = Norm(frozen["final_norm.gain"], frozen["final_norm.bias"], config.norm_epsilon)
        self.layers = [
            Layer(config, {name.removeprefix(prefix): w for name, w in frozen.items() if name.startswith(prefix)})
            for prefix in (f"layers.{layer}." for layer in range(config.n_layers))
        ]
        storages = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in frozen.values()}
        self.parameter_bytes = sum(storages.values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return self.embedding.dtype

    def forward(
        self,
        tokens: torch.Tensor,
        taps: Taps | None = None,
        *,
        logits_at: torch.Tensor | None = None,
        stop_after_layer: int | None = None,
    ) -> torch.Tensor | None:
        """Run the model, offering every tensor to *taps*.

        Args:
            tokens: ids [b, T], right-padded with anything.
            taps: what to record and change; None for nothing.
            logits_at: position [b] of the one token of each prompt whose logits are wanted; None for all tokens.
                Ignored if the logits themselves are tapped.
            stop_after_layer: leave after this layer (-1: after the embedding) and compute no logits.

        Returns:
            Logits [b, T, V], or [b, 1, V] with *logits_at*, or None after stopping early. Attached to a graph that
            begins at the first layer where *taps* want gradients.
        """
        taps = taps or Taps()
        start = taps.graph_starts_at_layer
        last = self.config.n_layers - 1 if stop_after_layer is None else stop_after_layer
        with torch.set_grad_enabled(False):
            x = self.embedding[tokens] + self.position_embedding[: tokens.shape[1]]
            if start != -1:
                x = taps.visit(_L.RESID_POST_EMBEDDING, None, x)
            before_graph = last + 1 if start is None else min(max(start, 0), last + 1)
            for layer in range(before_graph):
                x = self._block(layer, x, taps)
        with torch.set_grad_enabled(start is not None):
            if start is not None:
                x = x.requires_grad_()
            if start == -1:
                x = taps.visit(_L.RESID_POST_EMBEDDING, None, x)
            for layer in range(before_graph, last + 1):
                x = self._block(layer, x, taps)
            return self._logits(x, taps, logits_at) if stop_after_layer is None else None

    def _block(self, index: int, x: torch.Tensor, taps: Taps) -> torch.Tensor:
        layer = self.layers[index]
        x = x + taps.visit(_L.RESID_DELTA_ATTN, index, layer.attn_write(self._mixed(index, x, taps)))
        x = taps.visit(_L.RESID_POST_ATTN, index, x)
        normed = _tapped_norm(layer.mlp_norm, x, taps, _L.MLP_INPUT_LAYER_NORM_SCALE, index)
        act = layer.mlp_act(taps.visit(_L.MLP_PRE_ACT, index, layer.mlp_pre_act(normed)))
        act = taps.visit(_L.MLP_POST_ACT, index, act)
        x = x + taps.visit(_L.RESID_DELTA_MLP, index, layer.mlp_write(act))
        return taps.visit(_L.RESID_POST_MLP, index, x)

    def _mixed(self, index: int, x: torch.Tensor, taps: Taps) -> torch.Tensor:
        """The heads' weighted sums of values, [b, T, H, c]."""
        layer = self.layers[index]
        q, k, v = layer.qkv(_tapped_norm(layer.attn_norm, x, taps, _L.ATTN_INPUT_LAYER_NORM_SCALE, index))
        q = taps.visit(_L.ATTN_QUERY, index, q)
        k = taps.visit(_L.ATTN_KEY, index, k)
        v = taps.visit(_L.ATTN_VALUE, index, v)
        if taps.touches(_L.ATTN_QK_LOGITS, index) or taps.touches(_L.ATTN_QK_PROBS, index):
            scores = taps.visit(_L.ATTN_QK_LOGITS, index, layer.attn_scores(q, k))
            mixed = layer.attn_mix(taps.visit(_L.ATTN_QK_PROBS, index, layer.attn_probs(scores)), v)
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2)
        return taps.visit(_L.ATTN_WEIGHTED_SUM_OF_VALUES, index, mixed)

    def _logits(self, x: torch.Tensor, taps: Taps, logits_at: torch.Tensor | None) -> torch.Tensor:
        normed = _tapped_norm(self.final_norm, x, taps, _L.RESID_FINAL_LAYER_NORM_SCALE, None)
        if taps.touches(_L.LOGITS, None):
            return taps.visit(_L.LOGITS, None, normed @ self.unembedding)
        if logits_at is not None:
            normed = normed[torch.arange(len(normed), device=normed.device), logits_at].unsqueeze(1)
        return normed @ self.unembedding

    def __repr__(self) -> str:
        """Sizes only."""
        c = self.config
        return f"Decoder({c.n_layers} layers, width {c.d_model}, vocabulary {c.vocab_size}, {self.device})"


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(_wide_type(x))


def _wide_type(x: torch.Tensor) -> torch.dtype:
    """float32, or the type of *x* if that is wider: derivatives are checked numerically on float64 models."""
    return torch.promote_types(x.dtype, torch.float32)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """*x* [..., n_in] times *weight* [n_in, n_out] plus *bias* [n_out]."""
    return functional.linear(x, weight.t(), bias)


def _tapped_norm(
    norm: Norm, x: torch.Tensor, taps: Taps, location: ActivationLocationType, layer: int | None
) -> torch.Tensor:
    """*x* normed: fused, unless somebody touches the scale."""
    if not taps.touches(location, layer):
        return norm(x)
    return norm.apply(x, taps.visit(location, layer, norm.scale(x)))


def _check_weights(config: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> None:
    wanted = config.weight_shapes()
    for name in sorted(weights.keys() - wanted.keys()):
        raise DataLoss(f"unknown weight {name!r}", metadata={"weight": name})
    for name, shape in wanted.items():
        if name not in weights:
            raise DataLoss(f"missing weight {name!r}", metadata={"weight": name})
        if tuple(weights[name].shape) != shape:
            raise DataLoss(
                f"weight {name!r} has shape {tuple(weights[name].shape)}, not {shape}", metadata={"weight": name}
            )
