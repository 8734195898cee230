"""A tiny model together with everything that a derived scalar of it is made of, worked out on the plain model.

What the tests of formulas, laws and top k compare with: values and gradients at the taps, what each component writes,
the directions that writes are projected on, and what comes before what. Nothing here is taken from `dst_grpc.scalars`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.domain.components import AttentionTraceType, NodeType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.run import RunResult
from tests import models, plain, traces
from tests.plain import Kind, Taps, Transcoder

Tensor = torch.Tensor

N_TOKENS, N_LAYERS = len(models.TOKENS), models.CONFIG.n_layers
PAIRS = [(t, u) for t in range(N_TOKENS) for u in range(t + 1)]
"""Pairs of tokens in the order of a triangle's rows."""
MLP_KINDS: tuple[Kind, ...] = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, *Transcoder)
"""What autoencoders of the MLPs' latents read."""
SPLICEABLE: tuple[Kind, ...] = (*MLP_KINDS, T.RESID_DELTA_ATTN, T.RESID_POST_ATTN, T.RESID_POST_MLP)

END_OF_PREVIOUS, ATTENTION, LATENTS_BETWEEN, AFTER_ATTENTION, MLP, LATENTS_BEHIND, AFTER_MLP = range(1, 8)
PLACE = {
    L.RESID_DELTA_ATTN: ATTENTION,
    L.RESID_POST_ATTN: AFTER_ATTENTION,
    L.RESID_DELTA_MLP: MLP,
    L.RESID_POST_MLP: AFTER_MLP,
}
"""The order within a layer (specification, 9.4)."""


def triangle(x: Tensor) -> Tensor:
    """The lower triangle of *x* [T, U, ...], row by row."""
    return torch.stack([x[t, u] for t, u in PAIRS])


@dataclass(frozen=True)
class Direction:
    """A vector per token, and where in the residual stream it lives."""

    vector: Tensor
    """[T, d]."""
    layer: int
    place: int

    def is_after(self, layer: int, place: int) -> bool:
        """Whether what is at *place* of *layer* comes before it."""
        return (layer, place) < (self.layer, self.place)


@dataclass(frozen=True)
class Explained:
    """A model, the autoencoders at hand, and an origin."""

    architecture: str = "gpt2"
    kinds: tuple[Kind, ...] = ()
    """What autoencoders read."""
    origin: TraceConfig | None = None
    """None for `models.LOSS`."""
    activation: AutoencoderActivation = AutoencoderActivation.RELU
    normalization: InputNormalization = InputNormalization.NONE
    seed: int = 3

    def __str__(self) -> str:
        """For test ids."""
        parts = [self.architecture, *self.kinds, traces.name(self.origin)]
        parts += [self.activation] if self.activation is not AutoencoderActivation.RELU else []
        return "-".join(
            [*map(str, parts), *([] if self.normalization is InputNormalization.NONE else [self.normalization])]
        )

    @cached_property
    def config(self) -> Any:
        """The architecture's."""
        return models.ARCHITECTURES[self.architecture]

    @cached_property
    def world(self) -> models.World:
        """The model under test."""
        layers = (None,) if self.kinds == (T.RESID_POST_EMBEDDING,) else range(N_LAYERS)
        how: dict[str, Any] = {"activation": self.activation, "normalization": self.normalization, "layers": layers}
        return models.world(*self.kinds, seed=self.seed, config=self.config, **how)

    @cached_property
    def plain(self) -> plain.Plain:
        """The same model, written plainly."""
        is_spliced = all(kind in SPLICEABLE for kind in self.kinds)
        return plain.Plain(
            self.config, models.weights(self.seed, self.config), self.world.by_kind, is_spliced=is_spliced
        )

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Of a request: the origin, and the autoencoders that can be in the graph."""
        spliced = tuple(one for kind, one in zip(self.kinds, self.world.sets, strict=True) if kind in SPLICEABLE)
        return {"autoencoders": spliced, **traces.fields_of(self.origin, models.LOSS)}

    def run(self, *specs: DerivedScalarSpec, **fields: Any) -> RunResult:
        """Of the code under test, for *specs* all together; *fields* of the request."""
        (result,) = self.world.results(models.request(derived_scalars=specs, **{**self.fields, **fields}))
        return result

    def one(self, dst: T, config: DstConfig | None = None, **fields: Any) -> dict[int | None, Tensor]:
        """The FORWARD tensors of one type, by layer."""
        return self.world.one(dst, config, **{**self.fields, **fields})

    @property
    def meant(self) -> tuple[Kind, ...]:
        """What the autoencoder reads that is meant where no type is named: the only one, or that of the residual."""
        return tuple(kind for kind in self.kinds if kind in plain.STREAM or not self.kinds[1:])

    # Taps

    @cached_property
    def value(self) -> dict[Site, Tensor]:
        """Every tap."""
        return {site: x.detach() for site, x in self.plain.run(models.TOKENS).items()}

    def scalar(self, taps: Taps) -> Tensor:
        """The origin as a function of the taps."""
        if self.origin is None:
            return traces.loss(taps[L.LOGITS, None][-1])
        return self.plain.value(self.origin, self.plain.rho(taps, self.origin), taps, traces.loss)

    @cached_property
    def gradient(self) -> dict[Site, Tensor]:
        """The origin's gradient at every tap."""
        return plain.gradients(self.plain, models.TOKENS, self.scalar)

    def has(self, location: L) -> bool:
        """Whether the architecture has a tap."""
        return self.config.architecture.why_without(location) is None

    # Writes

    def neuron_writes(self, layer: int) -> Tensor:
        """[T, F, d]."""
        return self.through_mlp(layer, self.value[L.MLP_POST_ACT, layer])

    def through_mlp(self, layer: int, coefficients: Tensor) -> Tensor:
        """*coefficients* [T, F] times the rows of Wout, [T, F, d]."""
        return self.plain.written(layer, "mlp", coefficients.unsqueeze(-1) * self.plain.wout(layer), self.value)

    def pair_writes(self, layer: int, probs: Tensor | None = None) -> Tensor:
        """[T, U, H, d]; with other *probs* [T, U, H], at those."""
        a, v = self.value[L.ATTN_QK_PROBS, layer] if probs is None else probs, self.value[L.ATTN_VALUE, layer]
        raw = torch.einsum("tuh,uhc,hcd->tuhd", a, v, self.plain.wo(layer))
        return self.plain.written(layer, "attn", raw, self.value)

    def head_writes(self, layer: int) -> Tensor:
        """[T, H, d]."""
        raw = torch.einsum("thc,hcd->thd", self.value[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer], self.plain.wo(layer))
        return self.plain.written(layer, "attn", raw, self.value)

    def error_writes(self, layer: int) -> Tensor:
        """Of reconstruction errors of neurons, [T, F, d]."""
        return self.through_mlp(layer, self.value[L.ONLINE_MLP_AUTOENCODER_ERROR, layer])

    # Latents

    def autoencoder(self, kind: Kind, layer: int | None) -> Autoencoder:
        """Of *layer*."""
        return self.plain.sets[kind][layer]

    def layer_of_set(self, layer: int) -> int | None:
        """None of an autoencoder of the embedding."""
        return None if self.kinds == (T.RESID_POST_EMBEDDING,) else layer

    def tap_of(self, kind: Kind, layer: int | None) -> Tensor:
        """The tap that an autoencoder reads in the run."""
        if isinstance(kind, Transcoder):
            at = layer or 0
            is_between = self.has(L.RESID_POST_ATTN)
            return self.value[self.plain.as_read(L.RESID_POST_ATTN, at) if is_between else self.entering(at)]
        return self.value[L[kind.name], layer]

    def read(self, kind: Kind, layer: int | None, tap: Tensor) -> Tensor:
        """What an autoencoder makes of the tap that it reads."""
        if isinstance(kind, Transcoder):
            return self.plain.transcoded(kind, layer or 0, tap, self.plain.scale(tap))
        return tap

    def offline_input(self, kind: Kind, layer: int | None) -> Tensor:
        """What an autoencoder reads after the run; the MLP's write without its bias (Q5)."""
        if layer is not None and kind in {T.RESID_DELTA_MLP, T.RESID_DELTA_MLP_FROM_MLP_POST_ACT}:
            raw = self.value[L.MLP_POST_ACT, layer] @ self.plain.wout(layer)
            return self.plain.written(layer, "mlp", raw, self.value)
        if layer is not None and kind is T.ATTN_WRITE:
            return triangle(self.pair_writes(layer)).flatten(0, 1)
        return self.read(kind, layer, self.tap_of(kind, layer).flatten(1))

    def offline_latents(self, kind: Kind, layer: int | None) -> Tensor:
        """[T, Z]; of heads' writes [P H, Z]."""
        return plain.encode(self.autoencoder(kind, layer), self.offline_input(kind, layer))

    def latents(self, kind: Kind, layer: int) -> Tensor:
        """In the run, [T, Z]."""
        return self.value[plain.LATENT[kind], layer]

    def latent_rows(self, kind: Kind, layer: int | None, read: Tensor) -> Tensor:
        """D [T, Z, d]: what each latent writes at activation 1, its input being *read* [T, n]."""
        one = self.autoencoder(kind, layer)
        _, scale = plain.mean_and_scale(one, read)
        rows = scale.unsqueeze(-1) * torch.stack(list(plain.decoders(one, layer).values())).sum(dim=0).T
        if layer is None or kind not in {T.MLP_POST_ACT, T.ATTN_WEIGHTED_SUM_OF_VALUES}:
            return rows
        if kind is T.MLP_POST_ACT:
            return self.plain.written(layer, "mlp", rows @ self.plain.wout(layer), self.value)
        return self.plain.written(layer, "attn", rows @ self.plain.wo(layer).flatten(0, 1), self.value)

    def latent_writes(self, kind: Kind, layer: int) -> Tensor:
        """[T, Z, d]."""
        rows = self.latent_rows(kind, layer, self.read(kind, layer, self.tap_of(kind, layer).flatten(1)))
        return self.latents(kind, layer).unsqueeze(-1) * rows

    def latent_writes_by_layer(self, kind: Kind, layer: int) -> dict[int, Tensor]:
        """The same [T, Z, d], by the layer that they are added in: of cross-layer transcoders several."""
        if kind is not Transcoder.CROSS_LAYER:
            return {layer: self.latent_writes(kind, layer)}
        latents = self.latents(kind, layer).unsqueeze(-1)
        return {at: latents * rows.T for at, rows in plain.decoders(self.autoencoder(kind, layer), layer).items()}

    def latent_place(self, kind: Kind) -> int:
        """Where the latents lie: with attention, with the MLP, or between what is added to a residual and what reads
        it."""
        if kind in plain.STREAM:
            return LATENTS_BETWEEN if kind is T.RESID_POST_ATTN else LATENTS_BEHIND
        return ATTENTION if kind is T.RESID_DELTA_ATTN else MLP

    def latent_read(self, kind: Kind, layer: int, latent: int) -> Tensor:
        """The gradient of one latent, over all tokens, at its autoencoder's input, [T, n]."""
        one = self.autoencoder(kind, layer)
        return plain.local_gradient(
            lambda x: plain.encode(one, self.read(kind, layer, x))[:, latent].sum(), self.tap_of(kind, layer)
        )

    # Directions

    @cached_property
    def before_origin(self) -> Direction:
        """The origin's gradient at the residual before it, from the backward pass."""
        if self.origin is None:
            last = self.plain.as_read(L.RESID_POST_MLP, N_LAYERS - 1)
            return Direction(self.gradient[last], N_LAYERS - 1, AFTER_MLP)
        return self._at_rho(self.gradient[self.plain.rho_site(self.origin)])

    @cached_property
    def near_origin(self) -> Direction:
        """The same, recomputed locally."""
        origin = self.origin
        assert origin is not None
        rho = self.plain.rho(self.value, origin)
        value = self.value
        return self._at_rho(plain.local_gradient(lambda x: self.plain.value(origin, x, value, traces.loss), rho))

    def _at_rho(self, vector: Tensor) -> Direction:
        assert self.origin is not None
        node = self.origin.node_index
        return Direction(vector, node.layer_index or 0, self.place_before(node.node_type, node.layer_index or 0))

    def place_before(self, node_type: NodeType, layer: int) -> int:
        """The place of the residual that nodes of *layer* are computed from."""
        kind = self.plain.kind_of(node_type)
        if kind in plain.STREAM:
            return self.latent_place(kind)
        _, at = self.plain.rho_site(traces.trace(node_type, layer))
        return AFTER_ATTENTION if at == layer else END_OF_PREVIOUS

    # Nodes and edges

    def before(self, node: NodeIndex) -> Site:
        """The residual that a node is computed from."""
        return self.plain.rho_site(traces.trace(node.node_type, node.layer_index or 0, *node.tensor_indices))

    def entering(self, layer: int) -> Site:
        """The residual that enters a layer."""
        return self.plain.as_read(L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)

    def sees(self, node: NodeIndex) -> bool:
        """Whether a head sees the key of its pair; other nodes hide nothing."""
        if node.node_type is not NodeType.ATTENTION_HEAD:
            return True
        t, u, _ = node.tensor_indices
        return self.plain.sees(node.layer_index or 0, t or 0, u or 0)

    def node_place(self, node: NodeIndex) -> tuple[int, int]:
        """Layer and place of a node."""
        places = {NodeType.ATTENTION_HEAD: ATTENTION, NodeType.MLP_NEURON: MLP}
        place = places.get(node.node_type)
        return node.layer_index or 0, self.latent_place(self.kind_of(node)) if place is None else place

    def kind_of(self, node: NodeIndex) -> Kind:
        """What the autoencoder of a latent reads."""
        kind = self.plain.kind_of(node.node_type)
        assert kind is not None
        return kind

    def node_write(self, node: NodeIndex, until: Direction | None = None) -> Tensor:
        """What one node writes before a direction, [T, d]; without one, all that it writes."""
        layer, (t, *rest) = node.layer_index or 0, node.tensor_indices
        if node.node_type is NodeType.ATTENTION_HEAD:
            writes = {layer: self.pair_writes(layer)}
        elif node.node_type is NodeType.MLP_NEURON:
            writes = {layer: self.neuron_writes(layer)}
        else:
            writes = self.latent_writes_by_layer(self.kind_of(node), layer)
        _, place = self.node_place(node)
        found = torch.zeros(N_TOKENS, self.config.d_model, dtype=torch.float64)
        for at, write in writes.items():
            if until is None or until.is_after(at, place):
                found[t] += write[t, *rest]
        return found

    def far_end(
        self, node_type: NodeType, through: AttentionTraceType | None, layer: int, *, detach: bool, attribution: bool
    ) -> tuple[Callable[[Tensor], Tensor], Direction]:
        """The activations at an edge's far end as a function of the residual before them, and that residual.

        With *attribution* times their gradient; through V, the values times the gradient of what heads mix.
        """
        zeros = [0] * (3 if node_type is NodeType.ATTENTION_HEAD else 2)
        site = self.plain.rho_site(traces.trace(node_type, layer, *zeros, through=through))
        rho = Direction(self.value[site], layer, self.place_before(node_type, layer))
        if through is AttentionTraceType.V:
            probs, gradient = self.value[L.ATTN_QK_PROBS, layer], self.gradient[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer]

            def values(x: Tensor) -> Tensor:
                _, _, v = self.plain.qkv(layer, self.plain.normed(x, f"layers.{layer}.attn_norm", detach=detach))
                return torch.einsum("tuh,uhc,thc->tuh", probs, v, gradient)

            return values, rho
        taps = {NodeType.ATTENTION_HEAD: L.ATTN_QK_PROBS, NodeType.MLP_NEURON: L.MLP_POST_ACT}
        kind = self.plain.kind_of(node_type)
        tap = taps[node_type] if kind is None else plain.LATENT[kind]
        weight = self.gradient[tap, layer] if attribution else 1.0

        def activations(x: Tensor) -> Tensor:
            found = self.plain.activations(node_type, layer, x, post=True, detach=detach, through=through)
            return found * weight

        return activations, rho


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Of *function* at *x*, along any direction; what it detaches is constant."""
    leaf = x.detach().clone().requires_grad_()
    value = function(leaf)
    # The gradient is linear in what it is weighted with, and the derivative by those weights is that along a direction.
    weights = torch.zeros_like(value, requires_grad=True)
    gradient = torch.autograd.grad(value, leaf, weights, create_graph=True)[0] if value.requires_grad else None

    def along(direction: Tensor) -> Tensor:
        if gradient is None or not gradient.requires_grad:
            return torch.zeros_like(value)
        return torch.autograd.grad(gradient, weights, direction, retain_graph=True)[0]

    return along
