"""The model and its traces once more, written straight from the specification's formulas: what the tests compare with.

Slow and plain on purpose: no batch, no fused kernels, nothing shared with the engine but the weights and the words of
the domain. Every tap passes through `edit`, so that a test can put a leaf of autograd anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dst_grpc.domain.components import AttentionTraceType, NodeType, PreOrPostAct
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.autoencoder import Activation, Autoencoder, Normalization
from dst_grpc.engine.decoder import DecoderConfig
from dst_grpc.engine.taps import Site

Tensor = torch.Tensor
Taps = Mapping[Site, Tensor]
Loss = Callable[[Tensor], Tensor]
LATENT = {
    T.MLP_POST_ACT: L.ONLINE_MLP_AUTOENCODER_LATENT,
    T.RESID_DELTA_MLP: L.ONLINE_MLP_AUTOENCODER_LATENT,
    T.RESID_DELTA_ATTN: L.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    T.RESID_POST_ATTN: L.ONLINE_AUTOENCODER_LATENT,
    T.RESID_POST_MLP: L.ONLINE_AUTOENCODER_LATENT,
}
ERROR = {
    T.MLP_POST_ACT: L.ONLINE_MLP_AUTOENCODER_ERROR,
    T.RESID_DELTA_MLP: L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,
    T.RESID_DELTA_ATTN: L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR,
}


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def phi(autoencoder: Autoencoder, pre: Tensor) -> Tensor:
    if autoencoder.activation is Activation.IDENTITY:
        return pre
    if autoencoder.activation is Activation.RELU:
        return torch.where(pre > 0, pre, 0.0)
    if autoencoder.threshold is not None:
        return torch.where((pre > 0) & (pre > autoencoder.threshold), pre, 0.0)
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for row, mask in zip(pre, kept, strict=True):
        mask[sorted(range(len(row)), key=lambda j: -float(row[j].detach()))[: autoencoder.k or 0]] = True
    return torch.where(kept & ((pre > 0) | (autoencoder.postact is Activation.IDENTITY)), pre, 0.0)


def mean_and_scale(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """What an input is centred by and what its reconstruction is multiplied by, [..., 1]."""
    mean, one = x.mean(-1, keepdim=True), torch.ones_like(x[..., :1])
    if autoencoder.normalization is Normalization.LAYER_NORM:
        return mean, (((x - mean) ** 2).sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
    if autoencoder.normalization is Normalization.CONSTANT_NORM:
        return 0 * one, (x**2).mean(-1, keepdim=True).sqrt()
    return mean * (autoencoder.normalization is Normalization.CENTRED), one


def decode(autoencoder: Autoencoder, h: Tensor, x: Tensor) -> Tensor:
    mean, scale = mean_and_scale(autoencoder, x)
    return scale * (h @ autoencoder.decoder.T + autoencoder.pre_bias) + mean


def pre(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    mean, scale = mean_and_scale(autoencoder, x)
    x = (x - mean) / (scale + 1e-5 * (autoencoder.normalization is Normalization.LAYER_NORM))
    return (x - autoencoder.pre_bias) @ autoencoder.encoder.T + autoencoder.latent_bias


def encode(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    return phi(autoencoder, pre(autoencoder, x))


@dataclass(frozen=True)
class Plain:
    """A model and the autoencoders at hand."""

    config: DecoderConfig
    weights: Mapping[str, Tensor]
    sets: Mapping[T, Mapping[int | None, Autoencoder]] = field(default_factory=dict)
    """By what they read, and layer."""
    is_spliced: bool = False

    def of(self, layer: int, name: str) -> Tensor:
        return self.weights[f"layers.{layer}.{name}"]

    def scale(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return ((centred**2).mean(-1, keepdim=True) + self.config.norm_epsilon).sqrt()

    def norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / scale * self.weights[f"{name}.gain"] + self.weights[f"{name}.bias"]

    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.config.n_heads, self.config.d_head
        flat = normed @ self.of(layer, "attn.qkv.weight") + self.of(layer, "attn.qkv.bias")
        q, k, v = (part.reshape(-1, h, c) for part in torch.split(flat, h * c, dim=-1))
        return q * c**-0.25, k * c**-0.25, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        s = torch.einsum("thc,uhc->tuh", q, k)
        t, u = torch.meshgrid(torch.arange(len(q)), torch.arange(len(k)), indexing="ij")
        return torch.where((u > t).unsqueeze(-1), -math.inf, s)

    def wo(self, layer: int) -> Tensor:
        return self.of(layer, "attn.out.weight").reshape(self.config.n_heads, self.config.d_head, -1)

    def wout(self, layer: int) -> Tensor:
        return self.of(layer, "mlp.out.weight")

    def delta_attn(self, layer: int, mixed: Tensor) -> Tensor:
        return torch.einsum("thc,hcd->td", mixed, self.wo(layer)) + self.of(layer, "attn.out.bias")

    def pre_act(self, layer: int, normed: Tensor) -> Tensor:
        return normed @ self.of(layer, "mlp.in.weight") + self.of(layer, "mlp.in.bias")

    def delta_mlp(self, layer: int, act: Tensor) -> Tensor:
        return act @ self.wout(layer) + self.of(layer, "mlp.out.bias")

    def logits(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.norm(x, scale, "final_norm") @ self.weights["unembedding"]

    def run(self, tokens: Sequence[int], edit: Callable[[Site, Tensor], Tensor] = lambda _, x: x) -> dict[Site, Tensor]:
        """Every tap, attached."""
        found: dict[Site, Tensor] = {}

        def tap(location: L, layer: int | None, x: Tensor) -> Tensor:
            found[location, layer] = x = edit((location, layer), x)
            kind = T.__members__.get(location.name)
            by_layer = self.sets.get(kind, {}) if self.is_spliced and kind is not None else {}
            if kind is None or layer not in by_layer:
                return x
            one = by_layer[layer]
            h = encode(one, x)
            tapped = tap(LATENT[kind], layer, h)
            error = x - decode(one, h, x)
            if kind in ERROR:
                error = tap(ERROR[kind], layer, error)
            return decode(one, tapped, x) + error

        x = self.weights["embedding"][list(tokens)] + self.weights["position_embedding"][: len(tokens)]
        x = tap(L.RESID_POST_EMBEDDING, None, x)
        for i in range(self.config.n_layers):
            normed = self.norm(x, tap(L.ATTN_INPUT_LAYER_NORM_SCALE, i, self.scale(x)), f"layers.{i}.attn_norm")
            q, k, v = self.qkv(i, normed)
            q, k, v = tap(L.ATTN_QUERY, i, q), tap(L.ATTN_KEY, i, k), tap(L.ATTN_VALUE, i, v)
            a = tap(L.ATTN_QK_PROBS, i, tap(L.ATTN_QK_LOGITS, i, self.scores(q, k)).softmax(dim=1))
            o = tap(L.ATTN_WEIGHTED_SUM_OF_VALUES, i, torch.einsum("tuh,uhc->thc", a, v))
            x = tap(L.RESID_POST_ATTN, i, x + tap(L.RESID_DELTA_ATTN, i, self.delta_attn(i, o)))
            normed = self.norm(x, tap(L.MLP_INPUT_LAYER_NORM_SCALE, i, self.scale(x)), f"layers.{i}.mlp_norm")
            act = tap(L.MLP_POST_ACT, i, gelu(tap(L.MLP_PRE_ACT, i, self.pre_act(i, normed))))
            x = tap(L.RESID_POST_MLP, i, x + tap(L.RESID_DELTA_MLP, i, self.delta_mlp(i, act)))
        tap(L.LOGITS, None, self.logits(x, tap(L.RESID_FINAL_LAYER_NORM_SCALE, None, self.scale(x))))
        return found

    def rho(self, taps: Taps, trace: TraceConfig) -> Tensor:
        """The residual that a traced node is computed from."""
        return taps[self.rho_site(trace)]

    def rho_site(self, trace: TraceConfig) -> Site:
        node, layer = trace.node_index, trace.node_index.layer_index
        assert layer is not None
        if node.node_type is NodeType.MLP_NEURON or self._kind(node.node_type) in {T.MLP_POST_ACT, T.RESID_DELTA_MLP}:
            return L.RESID_POST_ATTN, layer
        return (L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)

    def _kind(self, node_type: NodeType) -> T | None:
        """What the autoencoder of a latent's type reads."""
        attention = node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
        generic = node_type is NodeType.AUTOENCODER_LATENT
        found = [kind for kind in self.sets if generic or (kind is T.RESID_DELTA_ATTN) is attention]
        return found[0] if "latent" in node_type.value else None

    def normed(self, x: Tensor, name: str, *, detach: bool) -> Tensor:
        scale = self.scale(x)
        return self.norm(x, scale.detach() if detach else scale, name)

    def activations(
        self, node_type: NodeType, i: int, rho: Tensor, *, post: bool, detach: bool, through: AttentionTraceType | None
    ) -> Tensor:
        """All activations of a node type at layer *i* as a function of the residual before it."""
        kind = self._kind(node_type)
        if node_type is NodeType.ATTENTION_HEAD or kind is T.RESID_DELTA_ATTN:
            q, k, v = self.qkv(i, self.normed(rho, f"layers.{i}.attn_norm", detach=detach))
            q = q.detach() if through is AttentionTraceType.K else q
            k = k.detach() if through is AttentionTraceType.Q else k
            s = self.scores(q, k)
            if kind is None:
                return s.softmax(dim=1) if post else s
            x = self.delta_attn(i, torch.einsum("tuh,uhc->thc", s.softmax(dim=1), v))
        else:
            z = self.pre_act(i, self.normed(rho, f"layers.{i}.mlp_norm", detach=detach))
            if kind is None:
                return gelu(z) if post else z
            x = gelu(z) if kind is T.MLP_POST_ACT else self.delta_mlp(i, gelu(z))
        one = self.sets[kind][i]
        return encode(one, x) if post else pre(one, x)

    def value(self, trace: TraceConfig, rho: Tensor, taps: Taps, loss: Loss | None) -> Tensor:
        """The traced scalar as a function of the residual before the node."""
        node, i = trace.node_index, trace.node_index.layer_index
        assert i is not None
        if trace.attention_trace_type is AttentionTraceType.V:
            t, u, h = node.tensor_indices
            q, k, v = self.qkv(i, self.normed(rho, f"layers.{i}.attn_norm", detach=True))
            a = self.scores(q, k).softmax(dim=1)[t, u, h].detach()
            return a * (v[u, h] @ self.wo(i)[h] * self.downstream(trace, taps, loss)[t]).sum()
        return self.activations(
            node.node_type,
            i,
            rho,
            post=trace.pre_or_post_act is PreOrPostAct.POST,
            detach=trace.detach_layer_norm_scale,
            through=trace.attention_trace_type,
        )[node.tensor_indices]

    def downstream(self, trace: TraceConfig, taps: Taps, loss: Loss | None) -> Tensor:
        """What a V trace reads its head's write with."""
        down = trace.downstream_trace_config
        if down is not None:
            return local_gradient(lambda rho: self.value(down, rho, taps, loss), self.rho(taps, down))
        assert loss is not None
        given = loss
        final = taps[L.RESID_POST_MLP, self.config.n_layers - 1]
        return local_gradient(lambda x: given(self.logits(x, self.scale(x).detach())[-1]), final)


def local_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    value = function(leaf)
    return torch.autograd.grad(value, leaf)[0] if value.requires_grad else torch.zeros_like(leaf)


def gradients(plain: Plain, tokens: Sequence[int], origin: Callable[[Taps], Tensor]) -> dict[Site, Tensor]:
    """Gradient of *origin* at every tap, 0 where it does not depend on it."""
    leaves: dict[Site, Tensor] = {}

    def probed(site: Site, x: Tensor) -> Tensor:
        leaves[site] = torch.zeros_like(x, requires_grad=True)
        return x + leaves[site]

    value = origin(plain.run(tokens, probed))
    found: tuple[Tensor | None, ...] = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        site: torch.zeros_like(leaf) if one is None else one
        for (site, leaf), one in zip(leaves.items(), found, strict=True)
    }
