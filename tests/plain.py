"""The model and its traces once more, written straight from the specification's formulas: what the tests compare with.

Slow and plain on purpose: no batch, no fused kernels, nothing shared with the engine but the weights and the words of
the domain. Every tap passes through `edit`, so that a test can put a leaf of autograd anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from dst_grpc.domain.architecture import ActivationFunction, NormKind
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.components import AttentionTraceType, NodeType, PreOrPostAct
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder_config import DecoderConfig, Rotary
from dst_grpc.engine.taps import Site

Tensor = torch.Tensor
Taps = Mapping[Site, Tensor]
Loss = Callable[[Tensor], Tensor]


class Transcoder(StrEnum):
    """Transcoders of the MLPs, by the norm through which they read."""

    RAW = "transcoder_of_the_residual"
    NORMED = "transcoder_of_the_normed"
    """With a skip connection."""
    CENTRED = "transcoder_before_the_gain"
    STORED = "transcoder_in_files"
    """Of the residual; its weights stay in its files."""
    CROSS_LAYER = "cross_layer_transcoder"
    """Across layers, through the norm, with skip connections."""

    @property
    def input_norm(self) -> ModelNorm:
        """The norm."""
        normed = dict.fromkeys((Transcoder.NORMED, Transcoder.CROSS_LAYER), ModelNorm.MLP_NORM)
        return {**normed, Transcoder.CENTRED: ModelNorm.MLP_NORM_WITHOUT_GAIN}.get(self, ModelNorm.NONE)

    @property
    def is_stored(self) -> bool:
        """Whether its weights stay in its files."""
        return self in {Transcoder.STORED, Transcoder.CROSS_LAYER}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CrossLayer(Autoencoder):
    """The layer of a cross-layer transcoder, with what it writes to later layers."""

    later: Mapping[int, Tensor]
    """Decoders [d, Z] by layer."""


def decoders(autoencoder: Autoencoder, layer: int | None) -> Mapping[int, Tensor]:
    """The decoder [n_out, Z] for each layer that an autoencoder of *layer* writes to."""
    later = autoencoder.later if isinstance(autoencoder, CrossLayer) else {}
    return {layer or 0: autoencoder.decoder, **later}


Kind = T | Transcoder
"""What an autoencoder reads, or which transcoder it is."""
LATENT: Mapping[Kind, L] = {
    **dict.fromkeys(Transcoder, L.ONLINE_MLP_AUTOENCODER_LATENT),
    T.MLP_POST_ACT: L.ONLINE_MLP_AUTOENCODER_LATENT,
    T.RESID_DELTA_MLP: L.ONLINE_MLP_AUTOENCODER_LATENT,
    T.RESID_DELTA_ATTN: L.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    T.RESID_POST_ATTN: L.ONLINE_AUTOENCODER_LATENT,
    T.RESID_POST_MLP: L.ONLINE_AUTOENCODER_LATENT,
}
ERROR: Mapping[Kind, L] = {
    **dict.fromkeys(Transcoder, L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR),
    T.MLP_POST_ACT: L.ONLINE_MLP_AUTOENCODER_ERROR,
    T.RESID_DELTA_MLP: L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,
    T.RESID_DELTA_ATTN: L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR,
    T.RESID_POST_ATTN: L.ONLINE_RESIDUAL_AUTOENCODER_ERROR,
    T.RESID_POST_MLP: L.ONLINE_RESIDUAL_AUTOENCODER_ERROR,
}
STREAM = (T.RESID_POST_ATTN, T.RESID_POST_MLP)
"""Of autoencoders of the residual stream."""


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


NONLINEARITIES: dict[ActivationFunction, Callable[[Tensor], Tensor]] = {
    ActivationFunction.GELU_TANH: gelu,
    ActivationFunction.GELU: lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    ActivationFunction.SILU: lambda x: x / (1 + torch.exp(-x)),
    ActivationFunction.RELU: lambda x: torch.where(x > 0, x, 0.0),
}


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def rotated(x: Tensor, rotary: Rotary | None) -> Tensor:
    """*x* [T, H, c], as complex numbers turned by t times their frequency."""
    if rotary is None:
        return x
    n = len(rotary.frequencies)
    angles = torch.outer(torch.arange(len(x), dtype=x.dtype), torch.tensor(rotary.frequencies, dtype=x.dtype))
    turned = torch.complex(x[..., :n], x[..., n : 2 * n]) * torch.exp(1j * angles).unsqueeze(1) * rotary.scale
    return torch.cat([turned.real, turned.imag, x[..., 2 * n :]], dim=-1)


def phi(autoencoder: Autoencoder, pre: Tensor) -> Tensor:
    if autoencoder.activation is AutoencoderActivation.IDENTITY:
        return pre
    if autoencoder.activation is AutoencoderActivation.RELU:
        return torch.where(pre > 0, pre, 0.0)
    if autoencoder.threshold is not None:
        return torch.where((pre > 0) & (pre > autoencoder.threshold), pre, 0.0)
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for row, mask in zip(pre, kept, strict=True):
        mask[sorted(range(len(row)), key=lambda j: -float(row[j].detach()))[: autoencoder.k or 0]] = True
    return torch.where(kept & ((pre > 0) | (autoencoder.postact is AutoencoderActivation.IDENTITY)), pre, 0.0)


def mean_and_scale(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """What an input is centred by and what its reconstruction is multiplied by, [..., 1]."""
    mean, one = x.mean(-1, keepdim=True), torch.ones_like(x[..., :1])
    if autoencoder.normalization is InputNormalization.LAYER_NORM:
        return mean, (((x - mean) ** 2).sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
    if autoencoder.normalization is InputNormalization.CONSTANT_NORM:
        return 0 * one, (x**2).mean(-1, keepdim=True).sqrt()
    return mean * (autoencoder.normalization is InputNormalization.CENTRED), one


def decode(autoencoder: Autoencoder, h: Tensor, x: Tensor) -> Tensor:
    mean, scale = mean_and_scale(autoencoder, x)
    bias = autoencoder.pre_bias if autoencoder.decoder_bias is None else autoencoder.decoder_bias
    skipped = 0.0 if autoencoder.skip is None else x @ autoencoder.skip.T
    return scale * (h @ autoencoder.decoder.T + bias) + mean + skipped


def pre(autoencoder: Autoencoder, x: Tensor, *, detach: bool = False) -> Tensor:
    mean, scale = mean_and_scale(autoencoder, x)
    scale = scale.detach() if detach else scale
    x = (x - mean) / (scale + 1e-5 * (autoencoder.normalization is InputNormalization.LAYER_NORM))
    return (x - autoencoder.pre_bias) @ autoencoder.encoder.T + autoencoder.latent_bias


def encode(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    return phi(autoencoder, pre(autoencoder, x))


@dataclass(frozen=True)
class Plain:
    """A model and the autoencoders at hand."""

    config: DecoderConfig
    weights: Mapping[str, Tensor]
    sets: Mapping[Kind, Mapping[int | None, Autoencoder]] = field(default_factory=dict)
    """By what they read, and layer."""
    is_spliced: bool = False

    def of(self, layer: int, name: str) -> Tensor:
        return self.weights[f"layers.{layer}.{name}"]

    def bias(self, layer: int, name: str) -> Tensor:
        """A bias [d] of what a layer writes, zeros if the model has none."""
        return self.weights.get(f"layers.{layer}.{name}", torch.zeros(self.config.d_model, dtype=torch.float64))

    def scale(self, x: Tensor) -> Tensor:
        if self.config.norm is NormKind.LAYER_NORM:
            x = x - x.mean(-1, keepdim=True)
        return ((x**2).mean(-1, keepdim=True) + self.config.norm_epsilon).sqrt()

    def norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        return self.linear_norm(x, scale, name) + self.weights.get(f"{name}.bias", 0.0)

    def linear_norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        """All of a norm but its bias."""
        if self.config.norm is NormKind.LAYER_NORM:
            x = x - x.mean(-1, keepdim=True)
        return x / scale * (self.weights[f"{name}.gain"] + self.config.norm_gain_offset)

    def linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        product = x @ self.of(layer, f"{name}.weight")
        return product + self.weights.get(f"layers.{layer}.{name}.bias", 0.0)

    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.config
        shared = one.n_key_value_heads * one.d_head
        parts = torch.split(self.linear(layer, "attn.qkv", normed), [one.n_heads * one.d_head, shared, shared], dim=-1)
        q, k, v = (part.reshape(len(normed), -1, one.d_head) for part in parts)
        if one.qk_norm:
            q = self.norm(q, self.scale(q), f"layers.{layer}.attn.query_norm")
            k = self.norm(k, self.scale(k), f"layers.{layer}.attn.key_norm")
        q, k = (rotated(x, one.rotary[layer] if one.rotary else None) for x in (q, k))
        owner = [h * one.n_key_value_heads // one.n_heads for h in range(one.n_heads)]
        root = (one.d_head**-0.5 if one.query_scale is None else one.query_scale) ** 0.5
        return q * root, k[:, owner] * root, v[:, owner]

    def sees(self, layer: int, t: int, u: int) -> bool:
        window = self.config.sliding_windows[layer] if self.config.sliding_windows else None
        return u <= t and (window is None or u > t - window)

    def scores(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        s = capped(torch.einsum("thc,uhc->tuh", q, k), self.config.attn_softcap)
        seen = torch.tensor([[self.sees(layer, t, u) for u in range(len(k))] for t in range(len(q))])
        return torch.where(seen.unsqueeze(-1), s, -math.inf)

    def wo(self, layer: int) -> Tensor:
        return self.of(layer, "attn.out.weight").reshape(self.config.n_heads, self.config.d_head, -1)

    def wout(self, layer: int) -> Tensor:
        return self.of(layer, "mlp.out.weight")

    def written(self, layer: int, part: str, raw: Tensor, taps: Taps) -> Tensor:
        """What a *part*'s raw vectors [T, ..., d] add to the residual, with its post-norm's scale as in *taps*."""
        if not self.config.post_norms:
            return raw
        tap = {"attn": L.ATTN_OUTPUT_LAYER_NORM_SCALE, "mlp": L.MLP_OUTPUT_LAYER_NORM_SCALE}[part]
        scale = taps[tap, layer].detach().reshape(-1, *(1,) * (raw.dim() - 1))
        return self.linear_norm(raw, scale, f"layers.{layer}.{part}_post_norm")

    def raw_attn(self, layer: int, mixed: Tensor) -> Tensor:
        return torch.einsum("thc,hcd->td", mixed, self.wo(layer)) + self.bias(layer, "attn.out.bias")

    def biases(self, layer: int, part: str, taps: Taps) -> Tensor:
        """What of a *part*'s addition to the residual no component writes, [T, d]."""
        n_tokens = len(taps[L.RESID_POST_EMBEDDING, None])
        raw = self.bias(layer, f"{part}.out.bias").expand(n_tokens, -1)
        return self.written(layer, part, raw, taps) + self.bias(layer, f"{part}_post_norm.bias")

    def post_norm(self, layer: int, part: str, raw: Tensor, *, detach: bool) -> Tensor:
        name = f"layers.{layer}.{part}_post_norm"
        return self.normed(raw, name, detach=detach) if self.config.post_norms else raw

    def delta_attn(self, layer: int, mixed: Tensor, *, detach: bool = False) -> Tensor:
        return self.post_norm(layer, "attn", self.raw_attn(layer, mixed), detach=detach)

    def pre_act(self, layer: int, normed: Tensor) -> Tensor:
        return self.linear(layer, "mlp.in", normed)

    def act(self, layer: int, normed: Tensor, pre_act: Tensor) -> Tensor:
        act = NONLINEARITIES[self.config.activation](pre_act)
        return act * self.linear(layer, "mlp.up", normed) if self.config.gated else act

    def raw_mlp(self, layer: int, act: Tensor) -> Tensor:
        return act @ self.wout(layer) + self.bias(layer, "mlp.out.bias")

    def delta_mlp(self, layer: int, act: Tensor, *, detach: bool = False) -> Tensor:
        return self.post_norm(layer, "mlp", self.raw_mlp(layer, act), detach=detach)

    def logits(self, x: Tensor, scale: Tensor) -> Tensor:
        return capped(self.norm(x, scale, "final_norm") @ self.weights["unembedding"], self.config.final_softcap)

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Without positions."""
        return self.weights["embedding"][list(tokens)] * self.config.embedding_scale

    def positions(self, n_tokens: int) -> Tensor | float:
        """What is added to the embeddings."""
        return self.weights["position_embedding"][:n_tokens] if self.config.rotary is None else 0.0

    def spliced_at(self, location: L, layer: int | None) -> tuple[Kind | None, Autoencoder | None]:
        """What is spliced in at a tap, and what that reads."""
        kind: Kind | None = T.__members__.get(location.name)
        if location is L.RESID_DELTA_MLP:
            kind = next((one for one in self.sets if isinstance(one, Transcoder)), kind)
        by_layer = self.sets.get(kind, {}) if self.is_spliced and kind is not None else {}
        return kind, by_layer.get(layer)

    def transcoded(self, kind: Kind, layer: int, rho: Tensor, scale: Tensor) -> Tensor:
        """What a transcoder reads where the residual before the MLP is *rho*, and the norm's scale *scale*."""
        if kind in {Transcoder.RAW, Transcoder.STORED}:
            return rho
        if kind in {Transcoder.NORMED, Transcoder.CROSS_LAYER}:
            return self.norm(rho, scale, f"layers.{layer}.mlp_norm")
        centred = rho - rho.mean(-1, keepdim=True) if self.config.norm is NormKind.LAYER_NORM else rho
        return centred / scale

    def run(self, tokens: Sequence[int], edit: Callable[[Site, Tensor], Tensor] = lambda _, x: x) -> dict[Site, Tensor]:
        """Every tap, attached."""
        found: dict[Site, Tensor] = {}
        spliced = Spliced(self)

        def tap(location: L, layer: int | None, x: Tensor) -> Tensor:
            found[location, layer] = x = edit((location, layer), x)
            kind, one = self.spliced_at(location, layer)
            if kind is None or one is None:
                return x
            return spliced.replaced(kind, one, layer, x, tap)

        def post_normed(layer: int, part: str, tapped: L, raw: Tensor) -> Tensor:
            if not self.config.post_norms:
                return raw
            return self.norm(raw, tap(tapped, layer, self.scale(raw)), f"layers.{layer}.{part}_post_norm")

        def attn(i: int, x: Tensor) -> Tensor:
            normed = self.norm(x, tap(L.ATTN_INPUT_LAYER_NORM_SCALE, i, self.scale(x)), f"layers.{i}.attn_norm")
            q, k, v = self.qkv(i, normed)
            q, k, v = tap(L.ATTN_QUERY, i, q), tap(L.ATTN_KEY, i, k), tap(L.ATTN_VALUE, i, v)
            a = tap(L.ATTN_QK_PROBS, i, tap(L.ATTN_QK_LOGITS, i, self.scores(i, q, k)).softmax(dim=1))
            o = tap(L.ATTN_WEIGHTED_SUM_OF_VALUES, i, torch.einsum("tuh,uhc->thc", a, v))
            written = post_normed(i, "attn", L.ATTN_OUTPUT_LAYER_NORM_SCALE, self.raw_attn(i, o))
            return tap(L.RESID_DELTA_ATTN, i, written)

        def mlp(i: int, x: Tensor) -> Tensor:
            spliced.before_mlp[i] = x, tap(L.MLP_INPUT_LAYER_NORM_SCALE, i, self.scale(x))
            normed = self.norm(*spliced.before_mlp[i], f"layers.{i}.mlp_norm")
            act = tap(L.MLP_POST_ACT, i, self.act(i, normed, tap(L.MLP_PRE_ACT, i, self.pre_act(i, normed))))
            written = post_normed(i, "mlp", L.MLP_OUTPUT_LAYER_NORM_SCALE, self.raw_mlp(i, act))
            return tap(L.RESID_DELTA_MLP, i, written)

        x = tap(L.RESID_POST_EMBEDDING, None, self.embedded(tokens) + self.positions(len(tokens)))
        for i in range(self.config.n_layers):
            before = x
            x = x + attn(i, x)
            if not self.config.parallel:
                before = x = tap(L.RESID_POST_ATTN, i, x)
            x = tap(L.RESID_POST_MLP, i, x + mlp(i, before))
        tap(L.LOGITS, None, self.logits(x, tap(L.RESID_FINAL_LAYER_NORM_SCALE, None, self.scale(x))))
        return found

    def rho(self, taps: Taps, trace: TraceConfig) -> Tensor:
        """The residual that a traced node is computed from."""
        return taps[self.rho_site(trace)]

    def rho_site(self, trace: TraceConfig) -> Site:
        node, layer = trace.node_index, trace.node_index.layer_index
        assert layer is not None
        kind = self.kind_of(node.node_type)
        if kind in STREAM:
            return L[kind.name], layer
        of_mlp = node.node_type is NodeType.MLP_NEURON
        of_mlp = of_mlp or kind in {T.MLP_POST_ACT, T.RESID_DELTA_MLP, *Transcoder}
        if of_mlp and not self.config.parallel:
            return self.as_read(L.RESID_POST_ATTN, layer)
        return self.as_read(L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)

    def as_read(self, residual: L, layer: int) -> Site:
        """A residual as all that comes later reads it."""
        is_spliced = self.is_spliced and layer in self.sets.get(T[residual.name], {})
        return L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT if is_spliced else residual, layer

    def kind_of(self, node_type: NodeType) -> Kind | None:
        """What the autoencoder of a latent's type reads."""
        attention = node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
        generic = node_type is NodeType.AUTOENCODER_LATENT
        found = [kind for kind in self.sets if generic or (kind is T.RESID_DELTA_ATTN) is attention]
        if generic:
            found = [kind for kind in self.sets if kind in STREAM] or found
        return found[0] if "latent" in node_type.value else None

    def normed(self, x: Tensor, name: str, *, detach: bool) -> Tensor:
        scale = self.scale(x)
        return self.norm(x, scale.detach() if detach else scale, name)

    def activations(
        self, node_type: NodeType, i: int, rho: Tensor, *, post: bool, detach: bool, through: AttentionTraceType | None
    ) -> Tensor:
        """All activations of a node type at layer *i* as a function of the residual before it."""
        kind = self.kind_of(node_type)
        if kind in STREAM:
            h = pre(self.sets[kind][i], rho, detach=detach)
            return phi(self.sets[kind][i], h) if post else h
        if node_type is NodeType.ATTENTION_HEAD or kind is T.RESID_DELTA_ATTN:
            q, k, v = self.qkv(i, self.normed(rho, f"layers.{i}.attn_norm", detach=detach))
            q = q.detach() if through is AttentionTraceType.K else q
            k = k.detach() if through is AttentionTraceType.Q else k
            s = self.scores(i, q, k)
            if kind is None:
                return s.softmax(dim=1) if post else s
            x = self.delta_attn(i, torch.einsum("tuh,uhc->thc", s.softmax(dim=1), v), detach=detach)
        else:
            normed = self.normed(rho, f"layers.{i}.mlp_norm", detach=detach)
            z = self.pre_act(i, normed)
            if kind is None:
                return self.act(i, normed, z) if post else z
            x = self.act(i, normed, z)
            if isinstance(kind, Transcoder):
                scale = self.scale(rho)
                x = self.transcoded(kind, i, rho, scale.detach() if detach else scale)
            elif kind is not T.MLP_POST_ACT:
                x = self.delta_mlp(i, x, detach=detach)
        one = self.sets[kind][i]
        return encode(one, x) if post else pre(one, x)

    def value(self, trace: TraceConfig, rho: Tensor, taps: Taps, loss: Loss | None) -> Tensor:
        """The traced scalar as a function of the residual before the node."""
        node, i = trace.node_index, trace.node_index.layer_index
        assert i is not None
        if trace.attention_trace_type is AttentionTraceType.V:
            t, u, h = node.tensor_indices
            q, k, v = self.qkv(i, self.normed(rho, f"layers.{i}.attn_norm", detach=True))
            a = self.scores(i, q, k).softmax(dim=1).detach()
            raw = v[u, h] @ self.wo(i)[h]
            if self.config.post_norms:
                mixed = torch.einsum("tuh,uhc->thc", a, v.detach())
                scale = self.scale(self.raw_attn(i, mixed))[t]
                raw = self.linear_norm(raw, scale, f"layers.{i}.attn_post_norm")
            return a[t, u, h] * (raw * self.downstream(trace, taps, loss)[t]).sum()
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
        final = taps[self.as_read(L.RESID_POST_MLP, self.config.n_layers - 1)]
        return local_gradient(lambda x: given(self.logits(x, self.scale(x).detach())[-1]), final)


@dataclass
class Spliced:
    """The autoencoders in one run."""

    model: Plain
    before_mlp: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By layer, the residual before the MLP, and the scale of its norm."""
    earlier: dict[int, tuple[Autoencoder, Tensor, Tensor]] = field(default_factory=dict)
    """By layer, the autoencoder of the MLP, and its latents as they are made and as they are tapped."""

    def replaced(
        self, kind: Kind, one: Autoencoder, layer: int | None, x: Tensor, tap: Callable[[L, int | None, Tensor], Tensor]
    ) -> Tensor:
        """What takes the place of *x* where *one* is spliced in."""
        i = layer or 0
        read = self.model.transcoded(kind, i, *self.before_mlp[i]) if kind in {*Transcoder} else x
        made = encode(one, read)
        tapped = tap(LATENT[kind], layer, made)
        before, after = decode(one, made, read), decode(one, tapped, read)
        if kind is Transcoder.CROSS_LAYER:
            for at, (other, h, h_tapped) in self.earlier.items():
                decoder = decoders(other, at)[i].T
                before, after = before + h @ decoder, after + h_tapped @ decoder
            self.earlier[i] = one, made, tapped
        output = after + tap(ERROR[kind], layer, x - before)
        return tap(L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT, layer, output) if kind in STREAM else output


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
