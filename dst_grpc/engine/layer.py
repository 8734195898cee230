"""One layer's weights and arithmetic, as small functions: the forward pass, traces and edges all use the same ones.

Nothing here knows about taps. Shapes use the legend of `dst_grpc.domain.components`; any leading axes may come before
them. Equations: specification, section 2.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dst_grpc.domain.architecture import ActivationFunction
from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.engine.norm import Norm, wide, wide_type
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dst_grpc.engine.decoder_config import DecoderConfig
    from dst_grpc.engine.rotary import Rotation


_HEAD_INPUTS = (AttentionTraceType.Q, AttentionTraceType.K, AttentionTraceType.V)
"""The inputs of a head, in the order of their columns in the weight that holds all three."""


class Layer:
    """A layer: attention and MLP, with their norms."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        rotation: Rotation | None = None,
        window: int | None = None,
    ) -> None:
        """Take the weights of the layer.

        Args:
            config: the architecture.
            weights: by their names within the layer.
            rotation: rotates queries and keys by position; None for no rotation.
            window: how many tokens back a query attends, its own included; None for all.
        """
        self._config, self._rotation, self.window = config, rotation, window
        self._qkv_weight, self._qkv_bias = weights["attn.qkv.weight"], weights.get("attn.qkv.bias")
        self._out_weight, self.attn_bias = weights["attn.out.weight"], weights.get("attn.out.bias")
        self._in_weight, self._in_bias = weights["mlp.in.weight"], weights.get("mlp.in.bias")
        self._up_weight, self._up_bias = weights.get("mlp.up.weight"), weights.get("mlp.up.bias")
        self.mlp_out, self.mlp_bias = weights["mlp.out.weight"], weights.get("mlp.out.bias")
        self.attn_norm, self.mlp_norm = Norm(config, "attn_norm", weights), Norm(config, "mlp_norm", weights)
        self._query_norm = Norm(config, "attn.query_norm", weights) if config.qk_norm else None
        self._key_norm = Norm(config, "attn.key_norm", weights) if config.qk_norm else None
        self.attn_post_norm = Norm(config, "attn_post_norm", weights) if config.post_norms else None
        """The norm on attention's output; None if there is none."""
        self.mlp_post_norm = Norm(config, "mlp_post_norm", weights) if config.post_norms else None
        """The norm on the MLP's output; None if there is none."""

    @property
    def activation(self) -> ActivationFunction:
        """The nonlinearity of the MLP."""
        return self._config.activation

    @property
    def attn_out(self) -> torch.Tensor:
        """WO [H, c, d], head by head."""
        return self._out_weight.view(self._config.n_heads, self._config.d_head, self._config.d_model)

    @property
    def value_weight(self) -> torch.Tensor:
        """WV [d, KV, c], once for each group of heads that share values."""
        return self._columns(self._qkv_weight, AttentionTraceType.V)

    @cached_property
    def attn_out_triangle(self) -> torch.Tensor:
        """R [H, c, c] with WO[h] = (Q R)^T, Q orthonormal: |v WO[h]| = |R v|, without going through d channels.

        With a post-norm, WO means the write through it at scale 1.
        """
        with torch.no_grad():
            writes = unit_write(wide(self.attn_out), self.attn_post_norm)
            return torch.linalg.qr(writes.transpose(1, 2), mode="r").R.to(self._out_weight.dtype)

    @cached_property
    def mlp_out_norms(self) -> torch.Tensor:
        """Norm of each neuron's write at activation 1, [F]; with a post-norm, through it at scale 1."""
        with torch.no_grad():
            return torch.linalg.vector_norm(unit_write(self.mlp_out, self.mlp_post_norm), dim=1)

    def qkv(
        self, normed: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [..., T, H, c] of a normed residual [..., T, d].

        The tokens are those at *positions* [T] of the prompt; None means the first ones.

        Queries and keys are as they enter the scores: normed, rotated, and each times the square root of the scores'
        factor. Keys and values that heads share are repeated for each of them.
        """
        q, k, v = self.shared_qkv(normed, positions)
        return q, self.for_each_head(k), self.for_each_head(v)

    def shared_qkv(
        self, normed: torch.Tensor, positions: torch.Tensor | None = None, *, propagation: Propagation = PLAIN
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `qkv`, but with keys and values [..., T, KV, c] once per group of heads.

        Gradients pass the norms of queries and keys by the rule of *propagation*.
        """
        c = self._config
        flat = torch.split(_linear(normed, self._qkv_weight, self._qkv_bias), list(c.qkv_widths), dim=-1)
        q, k, v = (x.unflatten(-1, (-1, c.d_head)) for x in flat)
        q = self._scores_factor(q, self._query_norm, positions, propagation)
        return q, self._scores_factor(k, self._key_norm, positions, propagation), v

    def _scores_factor(
        self, x: torch.Tensor, norm: Norm | None, positions: torch.Tensor | None, propagation: Propagation
    ) -> torch.Tensor:
        """Queries or keys [..., T, H or KV, c] as they enter the scores, from those that *x* was projected to."""
        if norm is not None:
            x = propagation.normed(norm, x)
        if self._rotation is not None:
            x = self._rotation(x, positions)
        return x * math.sqrt(self._config.score_scale)

    def head_input(self, part: AttentionTraceType, head: int, normed: torch.Tensor) -> torch.Tensor:
        """The query, key or value of one query head [..., T, c], from a normed residual of its own [..., T, d]."""
        place = head // self._heads_of_each(part)
        return self._inputs(part, slice(place, place + 1), normed, None).squeeze(-2)

    def frozen_head_input(
        self, part: AttentionTraceType, head: int, normed: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The query or key of one query head at *position*, as a linear function of the normed residual there, the
        scale of its norm being constant.

        Args:
            part: which of the two.
            head: the query head.
            normed: the normed residual [d].
            position: its place in the prompt.

        Returns:
            The matrix [d, c] that the normed residual is multiplied with, but for a constant; and the query or key that
            *normed* has, [c]. float32 or wider.
        """
        place = head // self._heads_of_each(part)
        matrix = wide(self._columns(self._qkv_weight, part)[:, place])
        norm, at = self._input_norm(part), torch.tensor([position], device=normed.device)
        whole = self._inputs(part, slice(place, place + 1), normed[None], at)[0, 0]
        if norm is not None:
            projected = self._projected(part, normed[None], slice(place, place + 1))[0, 0]
            matrix = norm.unit(matrix) / norm.scale(projected)
        return self._scores_factor(matrix[:, None, None], None, at, PLAIN)[:, 0, 0], wide(whole)

    def inputs_of_heads(
        self,
        part: AttentionTraceType,
        heads: torch.Tensor,
        normed: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The queries, keys or values of some query *heads* [m], [..., T, m, c], of a normed residual [..., T, d]."""
        return self._inputs(part, heads // self._heads_of_each(part), normed, positions)

    def _inputs(
        self,
        part: AttentionTraceType,
        places: slice | torch.Tensor,
        normed: torch.Tensor,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        x = self._projected(part, normed, places)
        if part is AttentionTraceType.V:
            return x
        return self._scores_factor(x, self._input_norm(part), positions, PLAIN)

    def _heads_of_each(self, part: AttentionTraceType) -> int:
        """How many query heads share one query, key or value."""
        c = self._config
        return 1 if part is AttentionTraceType.Q else c.n_heads // c.n_key_value_heads

    def _input_norm(self, part: AttentionTraceType) -> Norm | None:
        """The norm of queries or keys; None if the model has none."""
        return self._query_norm if part is AttentionTraceType.Q else self._key_norm

    def head_input_gradient(
        self, part: AttentionTraceType, gradient: torch.Tensor, normed: torch.Tensor, propagation: Propagation = PLAIN
    ) -> torch.Tensor:
        """The gradient at the projection to one input of each query head, from that at the input itself.

        Args:
            part: which input.
            gradient: at the queries, or at keys or values as repeated for each head [..., T, H, c].
            normed: the residual [..., T, d] that is projected; read if queries and keys are normed.
            propagation: the rule by which gradients pass those norms.

        Returns:
            [..., T, H, c].
        """
        if part is AttentionTraceType.V:
            return gradient
        norm = self._input_norm(part)
        with torch.enable_grad():
            if norm is None:  # all else is linear
                projected = torch.zeros_like(gradient)
            else:
                projected = self.for_each_head(self._projected(part, normed)).detach()
            factor = self._scores_factor(projected.requires_grad_(), norm, None, propagation)
        (found,) = torch.autograd.grad(factor, projected, gradient.to(factor.dtype))
        return found

    def head_input_read(self, part: AttentionTraceType, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient at a normed residual of each query head's own [H, ..., d], from that at its projection to the
        input *part* of the head [..., H, c]."""
        weight = self._columns(self._qkv_weight, part).to(gradient.dtype)
        grouped = gradient.unflatten(-2, (weight.shape[1], -1))
        return torch.einsum("...kgc,dkc->kg...d", grouped, weight).flatten(0, 1)

    def _projected(
        self, part: AttentionTraceType, normed: torch.Tensor, places: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """The projection to queries [..., T, H, c], or to keys or values [..., T, KV, c]; of those axes, *places*."""

        def chosen(weight: torch.Tensor) -> torch.Tensor:
            return self._columns(weight, part)[..., places, :].flatten(-2)

        bias = None if self._qkv_bias is None else chosen(self._qkv_bias)
        return _linear(normed, chosen(self._qkv_weight), bias).unflatten(-1, (-1, self._config.d_head))

    def _columns(self, weight: torch.Tensor, part: AttentionTraceType) -> torch.Tensor:
        """The columns [..., H or KV, c] of an input of heads in the weight, or bias, that holds all three."""
        c = self._config
        return torch.split(weight, list(c.qkv_widths), dim=-1)[_HEAD_INPUTS.index(part)].unflatten(-1, (-1, c.d_head))

    def for_each_head(self, shared: torch.Tensor) -> torch.Tensor:
        """*shared* [..., T, KV, c] as [..., T, H, c]: head h has that of group h KV // H."""
        group = self._config.n_heads // shared.shape[-2]
        return shared if group == 1 else shared.repeat_interleave(group, dim=-2)

    def hidden(self, n_tokens: int, device: torch.device, n_keys: int | None = None) -> torch.Tensor:
        """Which keys are masked for a query [T, U]: later ones, and those before the sliding window.

        Queries are the last *n_tokens* of *n_keys* tokens; None means that there are no others.
        """
        first = 0 if n_keys is None else n_keys - n_tokens
        everything = torch.ones(n_tokens, first + n_tokens, dtype=torch.bool, device=device)
        later = everything.triu(first + 1)
        return later if self.window is None else later | everything.tril(first - self.window)

    def attn_scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Attention scores [..., T, U, H] of *q* [..., T, H, c] and *k* [..., U, H, c], -inf where u is masked.

        The queries are of the last T of the U tokens.
        """
        scores = softcapped(torch.einsum("...thc,...uhc->...htu", q, k), self._config.attn_softcap)
        return scores.masked_fill(self.hidden(q.shape[-3], q.device, k.shape[-3]), -math.inf).movedim(-3, -1)

    def attn_probs(self, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H], in float32 at least and cast back."""
        return scores.softmax(dim=-2, dtype=wide_type(scores)).to(scores.dtype)

    def attn_mix(self, probs: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Values [..., U, H, c] weighted by *probs* [..., T, U, H] and summed over u: [..., T, H, c]."""
        return torch.einsum("...tuh,...uhc->...thc", probs, v)

    def attn_fused(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Scores, probabilities and weighted values of *q* [b, T, H, c], *k* and *v* [b, U, KV or H, c], in one kernel.

        No attention matrix is stored, unless scores are capped, which the kernel does not support.
        """
        if self._config.attn_softcap is not None:
            k, v = self.for_each_head(k), self.for_each_head(v)
            return self.attn_mix(self.attn_probs(self.attn_scores(q, k)), v)
        n_tokens, n_keys, is_shared = q.shape[1], k.shape[1], k.shape[2] != q.shape[2]
        seen = None
        if n_tokens < n_keys or (self.window is not None and self.window < n_tokens):
            seen = self.hidden(n_tokens, q.device, n_keys).logical_not()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, scale=1.0, enable_gqa=is_shared
        ).transpose(1, 2)

    def attn_project(self, mixed: torch.Tensor) -> torch.Tensor:
        """Attention's output with its bias, [..., T, d], from *mixed* [..., T, H, c]."""
        return _linear(mixed.flatten(-2), self._out_weight, self.attn_bias)

    def attn_write(self, mixed: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """Attention's write, [..., T, d]: its output, normed if the model has post-norms."""
        return _post_normed(self.attn_project(mixed), self.attn_post_norm, detach_scale=detach_scale)

    def mlp_pre_act(self, normed: torch.Tensor) -> torch.Tensor:
        """Neurons before the nonlinearity, [..., F], of a normed residual; in a gated MLP, the gate's."""
        return _linear(normed, self._in_weight, self._in_bias)

    def neuron_pre_act(self, normed: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        """One neuron of each row before the nonlinearity, [n], of normed residuals [n, d] and *neurons* [n]."""
        return _of_neurons(normed, neurons, self._in_weight, self._in_bias)

    def mlp_up(self, normed: torch.Tensor) -> torch.Tensor | None:
        """The factor "up" of a gated MLP, [..., F]; None of one without gates."""
        return None if self._up_weight is None else _linear(normed, self._up_weight, self._up_bias)

    def mlp_act(self, pre: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """Neurons after the nonlinearity, [..., F]: act(pre), times *up* if the MLP is gated."""
        act = _ACTIVATIONS[self._config.activation](pre)
        return act if up is None else act * up

    def mlp_acts(self, normed: torch.Tensor) -> torch.Tensor:
        """Neurons after the nonlinearity, [..., F], of a normed residual."""
        return self.mlp_act(self.mlp_pre_act(normed), self.mlp_up(normed))

    def neuron_ratios(self, pre: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What neurons are of what is before the nonlinearity, *pre* [..., F], and in a gated MLP of the factor *up*:
        with these as constants, neurons are linear in both, and what they are.

        Without gates, act(pre) = r pre with r = act(pre) / pre. With gates, act(pre) up = (r up / 2) pre +
        (act(pre) / 2) up, half for each factor: the rules of Achtibat et al. 2024, "AttnLRP", and Jafari et al. 2025,
        "RelP".

        Returns:
            The factors of *pre*, and those of *up*, or None. float32 or wider.
        """
        pre = wide(pre)
        act = self.mlp_act(pre)
        at_zero = 0.0 if self.activation is ActivationFunction.RELU else 0.5  # the slope there
        ratio = torch.where(pre == 0, at_zero, act / pre)
        return (ratio, None) if up is None else (ratio * wide(up) / 2, act / 2)

    def frozen_neuron_rows(self, neurons: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] of *neurons* [n] at normed residuals of their own [n, d], `neuron_ratios` being
        constant; float32 or wider."""
        up_weight = self._up_weight
        up = None if up_weight is None else _of_neurons(normed, neurons, up_weight, self._up_bias)
        of_pre, of_up = self.neuron_ratios(self.neuron_pre_act(normed, neurons), up)
        rows = of_pre[:, None] * self._in_weight[:, neurons].t()
        return rows if of_up is None else rows + of_up[:, None] * require(up_weight)[:, neurons].t()

    def frozen_mlp_rows(self, gradients: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] at normed residuals of their own [n, d], from those at neurons, *gradients* [n, F],
        `neuron_ratios` being constant; float32 or wider."""
        of_pre, of_up = self.neuron_ratios(self.mlp_pre_act(normed), self.mlp_up(normed))
        rows = (gradients * of_pre) @ wide(self._in_weight).t()
        return rows if of_up is None else rows + (gradients * of_up) @ wide(require(self._up_weight)).t()

    def mlp_read_rows(self, neurons: torch.Tensor) -> torch.Tensor:
        """What the pre-activations of *neurons* [n] project a normed residual on, [n, d]; float32 or wider."""
        return wide(self._in_weight[:, neurons].t())

    def mlp_project(self, act: torch.Tensor) -> torch.Tensor:
        """The MLP's output with its bias, [..., d], from *act* [..., F]."""
        return _linear(act, self.mlp_out, self.mlp_bias)

    def mlp_write(self, act: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """The MLP's write, [..., d]: its output, normed if the model has post-norms."""
        return _post_normed(self.mlp_project(act), self.mlp_post_norm, detach_scale=detach_scale)


def unit_write(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """The contribution of a term *x* [..., d] of the output to the write, through the post-norm at scale 1."""
    return x if norm is None else norm.unit(x)


def unit_read(direction: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """The transpose of `unit_write`, applied to *direction* [..., d]: unit_write(x) . direction = x . result."""
    return direction if norm is None else norm.unit_transposed(direction)


def softcapped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return cap tanh(x / cap), so that no entry exceeds *cap*; *x* itself without one."""
    return x if cap is None else (x / cap).tanh() * cap


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: Mapping[ActivationFunction, Callable[[torch.Tensor], torch.Tensor]] = {
    ActivationFunction.GELU_TANH: _gelu_tanh,
    ActivationFunction.GELU: functional.gelu,
    ActivationFunction.SILU: functional.silu,
    ActivationFunction.RELU: functional.relu,
}


def _post_normed(x: torch.Tensor, norm: Norm | None, *, detach_scale: bool) -> torch.Tensor:
    return x if norm is None else norm(x, detach_scale=detach_scale)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """*x* [..., n_in] times *weight* [n_in, n_out] plus *bias* [n_out]."""
    return functional.linear(x, weight.t(), bias)


def _of_neurons(
    normed: torch.Tensor, neurons: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """One column of `_linear` for each row, [n]: of *normed* [n, d], and the column *neurons* [n]."""
    found = (normed * weight[:, neurons].t()).sum(dim=-1)
    return found if bias is None else found + bias[neurons]
