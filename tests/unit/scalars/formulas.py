"""The specification's formula of each derived scalar type, one row each, on the plain model.

A formula gives what `Explained` makes of a layer, under a config of the type's own. Rows also say where a type has a
meaning: with which autoencoders, and whether it needs a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.components import AttentionTraceType, NodeType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex, AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests import plain, traces
from tests.explained import (
    ATTENTION,
    MLP,
    MLP_KINDS,
    N_TOKENS,
    PLACE,
    SPLICEABLE,
    Direction,
    Explained,
    derivative,
    triangle,
)
from tests.plain import Kind, Transcoder

Tensor = torch.Tensor
Formula = Callable[[Explained, DstConfig, int], Tensor]
"""Of a layer; of what has none, the layer is 0 and not looked at."""
Configs = Callable[[Explained], list[DstConfig]]
"""The configs of its own that a type is asked for with."""

LAYER, LATENT_INDEX = 1, 3
"""The layer of the nodes in configs, and the latent whose read is asked for."""


@dataclass(frozen=True)
class Row:
    """How one type is computed, and what it needs."""

    forward: Formula
    backward: Formula | None = None
    """The BACKWARD pass, if there is one."""
    kinds: tuple[Kind, ...] | None = None
    """One of the autoencoders must read one of these; None if none is needed."""
    alone: bool = False
    """Whether it must be the only autoencoder, or the one of the residual stream."""
    relu: bool = False
    """Whether that must be one of ReLU."""
    tap: L | None = None
    """A tap that the architecture must have."""
    traced: bool = False
    """Whether the origin must be a trace."""
    configs: Configs = lambda _: [DstConfig()]

    def applies(self, x: Explained) -> bool:
        """Whether the type has a meaning there."""
        if self.traced and x.origin is None:
            return False
        if self.tap is not None and not x.has(self.tap):
            return False
        if self.relu and x.activation is not AutoencoderActivation.RELU:
            return False
        kinds = x.meant if self.alone else x.kinds
        return self.kinds is None or any(kind in self.kinds for kind in kinds)


def kind_of(x: Explained, kinds: tuple[Kind, ...]) -> Kind:
    """The one of *kinds* that an autoencoder of *x* reads; of several, the residual stream."""
    found = [kind for kind in x.kinds if kind in kinds]
    return next((kind for kind in found if kind in plain.STREAM), found[0])


# Taps and residual vectors


def tap(location: L) -> Formula:
    """The value of a tap."""
    return lambda x, _, layer: x.value[location, None if location.has_no_layers else layer]


def gradient(location: L) -> Formula:
    """Its gradient."""
    return lambda x, _, layer: x.gradient[location, None if location.has_no_layers else layer]


def raw(location: L) -> Row:
    return Row(tap(location), gradient(location), tap=location)


def length(location: L) -> Row:
    return Row(lambda x, c, layer: tap(location)(x, c, layer).norm(dim=-1, keepdim=True), tap=location)


def flattened(row: Row) -> Row:
    """The lower triangle of another type."""
    backward = row.backward
    return Row(
        lambda x, c, layer: triangle(row.forward(x, c, layer)),
        None if backward is None else lambda x, c, layer: triangle(backward(x, c, layer)),
    )


def times_gradient(location: L, kinds: tuple[Kind, ...] | None = None, *, alone: bool = False) -> Row:
    """A tap times its gradient."""
    return Row(lambda x, c, layer: tap(location)(x, c, layer) * gradient(location)(x, c, layer), None, kinds, alone)


# Writes, norms and projections


def pairs(x: Explained, _: DstConfig, layer: int) -> Tensor:
    return x.pair_writes(layer)


def heads(x: Explained, _: DstConfig, layer: int) -> Tensor:
    return x.head_writes(layer)


def neurons(x: Explained, _: DstConfig, layer: int) -> Tensor:
    return x.neuron_writes(layer)


def errors(x: Explained, _: DstConfig, layer: int) -> Tensor:
    return x.error_writes(layer)


def stream_error(x: Explained, _: DstConfig, layer: int) -> Tensor:
    return x.value[L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, layer]


def lengths_of(writes: Tensor) -> Tensor:
    """Of *writes* [T, ..., d]."""
    found: Tensor = torch.linalg.vector_norm(writes, dim=-1)
    return found


def norm(writes: Formula, sign: L | None = None, kinds: tuple[Kind, ...] | None = None) -> Row:
    """Length of a write, with the sign of its coefficient if that is one number (Q6)."""

    def formula(x: Explained, c: DstConfig, layer: int) -> Tensor:
        found = lengths_of(writes(x, c, layer))
        if sign is not None:
            found = found * torch.sign(x.value[sign, layer])
        return found

    return Row(formula, kinds=kinds)


def pair_norm_ratio(x: Explained, _: DstConfig, layer: int) -> Tensor:
    """The probability's gradient over the length of what the probability multiplies (Q3)."""
    ones = torch.ones_like(x.value[L.ATTN_QK_PROBS, layer])
    return x.gradient[L.ATTN_QK_PROBS, layer] / lengths_of(x.pair_writes(layer, ones))


PAIR_NORM = Row(norm(pairs).forward, pair_norm_ratio)


def along(writes: Tensor, direction: Tensor) -> Tensor:
    """Inner products of *writes* [T, ..., d] with *direction* [T, d]."""
    return torch.einsum("t...d,td->t...", writes, direction)


def before(direction: Direction, writes: Tensor, layer: int, place: int) -> Tensor:
    """The same, 0 where what writes does not come strictly before the direction (Q4)."""
    found = along(writes, direction.vector)
    return found if direction.is_after(layer, place) else torch.zeros_like(found)


def on_origin(writes: Formula, place: int, kinds: tuple[Kind, ...] | None = None) -> Row:
    """Projection on the gradient before the origin."""
    return Row(lambda x, c, layer: before(x.before_origin, writes(x, c, layer), layer, place), kinds=kinds)


def near_origin(writes: Formula, place: int) -> Row:
    """Projection on the gradient before the trace, recomputed locally."""
    return Row(lambda x, c, layer: before(x.near_origin, writes(x, c, layer), layer, place), traced=True)


def residual_on_origin(location: L) -> Row:
    """Projection of a residual vector, which is its own write."""

    def formula(x: Explained, c: DstConfig, layer: int) -> Tensor:
        return before(x.before_origin, tap(location)(x, c, layer), layer, PLACE[location]).unsqueeze(-1)

    return Row(formula, tap=location)


# Latents


def latents_before(direction: Direction, x: Explained, kind: Kind, layer: int) -> Tensor:
    """Projection of what latents write in the layers before the direction."""
    writes = x.latent_writes_by_layer(kind, layer)
    return sum((before(direction, write, at, x.latent_place(kind)) for at, write in writes.items()), torch.zeros(()))


@dataclass(frozen=True)
class Latents:
    """The formulas of autoencoders that read one of *kinds*."""

    kinds: tuple[Kind, ...]

    def kind(self, x: Explained) -> Kind:
        """What the one that is there reads."""
        return kind_of(x, self.kinds)

    def offline_config(self, x: Explained) -> list[DstConfig]:
        return [DstConfig(autoencoder_context=f"tiny/{self.kind(x)}")]

    def offline(self, x: Explained, _: DstConfig, layer: int) -> Tensor:
        return x.offline_latents(self.kind(x), x.layer_of_set(layer))

    def offline_lengths(self, x: Explained, c: DstConfig, layer: int) -> Tensor:
        at = x.layer_of_set(layer)
        rows = x.latent_rows(self.kind(x), at, x.offline_input(self.kind(x), at))
        return self.offline(x, c, layer) * lengths_of(rows)

    def activation(self, x: Explained, _: DstConfig, layer: int) -> Tensor:
        return x.latents(self.kind(x), layer)

    def write(self, x: Explained, _: DstConfig, layer: int) -> Tensor:
        return x.latent_writes(self.kind(x), layer)

    def lengths(self, x: Explained, c: DstConfig, layer: int) -> Tensor:
        return self.activation(x, c, layer).sign() * lengths_of(self.write(x, c, layer))

    def times_gradient(self, x: Explained, c: DstConfig, layer: int) -> Tensor:
        return self.activation(x, c, layer) * x.gradient[plain.LATENT[self.kind(x)], layer]

    def on_origin(self, x: Explained, c: DstConfig, layer: int) -> Tensor:
        return latents_before(x.before_origin, x, self.kind(x), layer)

    def near_origin(self, x: Explained, c: DstConfig, layer: int) -> Tensor:
        return latents_before(x.near_origin, x, self.kind(x), layer)

    def rows(self, prefix: str, *, alone: bool) -> dict[T, Row]:
        """Rows #52-75 with one *prefix*; *alone* if no other autoencoder may be there."""
        spliced = tuple(kind for kind in self.kinds if kind in SPLICEABLE)
        written = tuple(kind for kind in self.kinds if kind is not T.MLP_PRE_ACT)
        online = {
            "LATENT": self.activation,
            "WRITE": self.write,
            "WRITE_NORM": self.lengths,
            "ACT_TIMES_GRAD": self.times_gradient,
            "WRITE_TO_FINAL_RESIDUAL_GRAD": self.on_origin,
            "WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD": self.near_origin,
        }
        offline = {"LATENT": (self.offline, self.kinds), "WRITE_NORM": (self.offline_lengths, written)}
        return {
            T[f"{prefix}AUTOENCODER_{name}"]: Row(formula, None, kinds, alone, configs=self.offline_config)
            for name, (formula, kinds) in offline.items()
        } | {
            T[f"ONLINE_{prefix}AUTOENCODER_{name}"]: Row(formula, None, spliced, alone, traced="ACTIVATION" in name)
            for name, formula in online.items()
        }


# What latents read


def reads(x: Explained) -> list[DstConfig]:
    """All tokens of one latent, at every layer."""
    return [DstConfig(trace_config=traces.trace(traces.LATENT, LAYER, None, LATENT_INDEX))]


def reads_at_layer(x: Explained) -> list[DstConfig]:
    trace = traces.trace(traces.LATENT, LAYER, None, LATENT_INDEX)
    return [DstConfig(trace_config=trace, layer_indices=(LAYER,))]


def at_layer(x: Explained) -> list[DstConfig]:
    return [DstConfig(layer_indices=(LAYER,))]


def read_by(kinds: tuple[Kind, ...]) -> Row:
    """The latent's gradient at its autoencoder's input, by each layer's own autoencoder (Q24)."""
    return Row(
        lambda x, _, layer: x.latent_read(kind_of(x, kinds), layer, LATENT_INDEX), None, kinds, alone=True,
        configs=reads,
    )  # fmt: skip


def to_latent(form: Callable[[Tensor], Tensor], kinds: tuple[T, ...] = (T.RESID_DELTA_ATTN,)) -> Row:
    """What heads write along what one latent reads, [T, U, H], in some *form*."""

    def formula(x: Explained, _: DstConfig, layer: int) -> Tensor:
        return form(along(x.pair_writes(layer), x.latent_read(kind_of(x, kinds), layer, LATENT_INDEX)))

    return Row(formula, None, kinds, alone=True, configs=reads_at_layer)


def to_all_latents(form: Callable[[Tensor], Tensor]) -> Row:
    """What heads write along the encoder's row of each active latent, [T, U, H, Z], in some *form*."""

    def formula(x: Explained, _: DstConfig, layer: int) -> Tensor:
        one = x.autoencoder(T.RESID_DELTA_ATTN, layer)
        active = plain.encode(one, x.value[L.RESID_DELTA_ATTN, layer]) > 0
        return form(torch.einsum("tuhd,zd->tuhz", x.pair_writes(layer), one.encoder) * active[:, None, None])

    return Row(formula, None, (T.RESID_DELTA_ATTN,), relu=True, configs=at_layer)


# Edges

UPSTREAM = (
    traces.node(traces.HEAD, LAYER, 4, 3, 3),
    traces.node(traces.NEURON, LAYER, 4, 7),
    traces.node(traces.LATENT, LAYER, 4, 6),
)
THROUGH = {L.ATTN_QUERY: traces.Q, L.ATTN_KEY: traces.K, L.ATTN_VALUE: traces.V}
DOWNSTREAM = (*(traces.subnode(UPSTREAM[0], part) for part in THROUGH), *UPSTREAM[1:])
ENDS_OF_EDGES: tuple[Kind, ...] = (*MLP_KINDS, T.RESID_DELTA_ATTN, *plain.STREAM)
"""Autoencoders whose latents can be nodes of edges."""


def nodes(x: Explained, given: tuple[NodeIndex, ...]) -> list[DstConfig]:
    """A config for each of the nodes that there are, with the norm's scale detached and not; a few with two sets."""
    if len(x.kinds) > 1 and not x.meant:
        return [DstConfig(node_index_for_attribution=given[0])]
    return [
        DstConfig(node_index_for_attribution=node, detach_layer_norm_scale_for_attribution=detach)
        for node in (given if x.meant and x.meant[0] in ENDS_OF_EDGES else given[:-1])
        for detach in (False, True)
    ]


def upstream(x: Explained) -> list[DstConfig]:
    return nodes(x, UPSTREAM)


def downstream(x: Explained) -> list[DstConfig]:
    return nodes(x, DOWNSTREAM)


def node_write(x: Explained, c: DstConfig, _: int) -> Tensor:
    assert c.node_index_for_attribution is not None
    return x.node_write(c.node_index_for_attribution)


def node_on_origin(x: Explained, c: DstConfig, _: int) -> Tensor:
    assert c.node_index_for_attribution is not None
    return along(x.node_write(c.node_index_for_attribution, x.before_origin), x.before_origin.vector).unsqueeze(-1)


@lru_cache(maxsize=8)
def far_end(
    x: Explained, node_type: NodeType, through: AttentionTraceType | None, layer: int, detach: bool, attribution: bool
) -> tuple[Callable[[Tensor], Tensor], Direction]:
    """The derivative at an edge's far end, along any direction, and the residual that it is taken at."""
    end, rho = x.far_end(node_type, through, layer, detach=detach, attribution=attribution)
    return derivative(end, rho.vector), rho


def edge_in(node_type: NodeType, through: AttentionTraceType | None = None, *, attribution: bool) -> Row:
    """The derivative of the far end along the node's write; activations always detach the norm's scale."""

    def formula(x: Explained, c: DstConfig, layer: int) -> Tensor:
        node = c.node_index_for_attribution
        assert node is not None
        detach = c.detach_layer_norm_scale_for_attribution or not attribution
        effect, rho = far_end(x, node_type, through, layer, detach, attribution)
        return effect(x.node_write(node, rho))

    def configs(x: Explained) -> list[DstConfig]:
        return [c for c in upstream(x) if attribution or not c.detach_layer_norm_scale_for_attribution]

    kinds = ENDS_OF_EDGES if node_type is traces.LATENT else None
    return Row(formula, None, kinds, alone=True, configs=configs)


@cache
def subnode_gradient(x: Explained, c: DstConfig) -> Direction:
    """The gradient of the downstream node's attribution at the residual before it."""
    node = c.node_index_for_attribution
    assert node is not None
    through = THROUGH[node.q_k_or_v] if isinstance(node, AttnSubNodeIndex) else None
    detach = c.detach_layer_norm_scale_for_attribution
    end, rho = x.far_end(node.node_type, through, node.layer_index or 0, detach=detach, attribution=True)
    vector = plain.local_gradient(lambda residual: end(residual)[node.tensor_indices], rho.vector)
    return Direction(vector, rho.layer, rho.place)


def edge_out(writes: Formula, place: int) -> Row:
    """Projection on that gradient."""
    return Row(
        lambda x, c, layer: before(subnode_gradient(x, c), writes(x, c, layer), layer, place), configs=downstream
    )


def latent_edge_out(x: Explained, c: DstConfig, layer: int) -> Tensor:
    (kind,) = x.meant
    return latents_before(subnode_gradient(x, c), x, kind, layer)


# What the vocabulary writes


def vocabulary_nodes(x: Explained) -> list[DstConfig]:
    """A neuron, a latent of the MLPs by its own type, and one of them or of the residual stream by the generic one."""
    locations = [L.MLP_POST_ACT]
    locations += [L.ONLINE_MLP_AUTOENCODER_LATENT] * any(kind in MLP_KINDS for kind in x.kinds)
    locations += [L.ONLINE_AUTOENCODER_LATENT] * any(kind in (*MLP_KINDS, *plain.STREAM) for kind in x.meant)
    indices = [
        ActivationIndex(activation_location_type=location, layer_index=LAYER, tensor_indices=(None, 6))
        for location in locations
    ]
    return [DstConfig(activation_index_for_fake_grad=index) for index in indices]


def vocabulary(x: Explained, c: DstConfig, _: int) -> Tensor:
    """The node's pre-activation with each token's embedding, without position, as the residual that it reads."""
    embedded = x.plain.embedded(range(x.config.vocab_size))
    index = c.activation_index_for_fake_grad
    assert index is not None
    if index.activation_location_type is L.ONLINE_AUTOENCODER_LATENT and x.meant[0] in plain.STREAM:
        return plain.pre(x.autoencoder(x.meant[0], LAYER), embedded)[:, 6].expand(N_TOKENS, -1)
    normed = x.plain.norm(embedded, x.plain.scale(embedded), f"layers.{LAYER}.mlp_norm")
    found = x.plain.pre_act(LAYER, normed)
    if index.activation_location_type is not L.MLP_POST_ACT:
        kind, act = kind_of(x, MLP_KINDS), x.plain.act(LAYER, normed, found)
        if isinstance(kind, Transcoder):
            read = x.read(kind, LAYER, embedded)
        else:
            read = act if kind is T.MLP_POST_ACT else x.plain.delta_mlp(LAYER, act)
        found = plain.pre(x.autoencoder(kind, LAYER), read)
    return found[:, 6].expand(N_TOKENS, -1)


# The table

ATTENTION_KINDS = (T.RESID_DELTA_ATTN, T.ATTN_WRITE)
OTHER_KINDS = (
    T.RESID_POST_ATTN,
    T.RESID_POST_MLP,
    T.RESID_POST_EMBEDDING,
    T.MLP_PRE_ACT,
    T.ATTN_WEIGHTED_SUM_OF_VALUES,
)
OFFLINE_MLP_KINDS = (*MLP_KINDS, T.RESID_DELTA_MLP_FROM_MLP_POST_ACT)

FORMULAS: dict[T, Row] = {
    **{T[location.name]: raw(location) for location in (
        L.LOGITS, L.RESID_POST_EMBEDDING, L.MLP_PRE_ACT, L.MLP_POST_ACT, L.RESID_DELTA_MLP, L.RESID_POST_MLP,
        L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE, L.ATTN_QK_LOGITS, L.ATTN_QK_PROBS, L.ATTN_WEIGHTED_SUM_OF_VALUES,
        L.RESID_DELTA_ATTN, L.RESID_POST_ATTN, L.RESID_FINAL_LAYER_NORM_SCALE, L.ATTN_INPUT_LAYER_NORM_SCALE,
        L.MLP_INPUT_LAYER_NORM_SCALE,
    )},
    T.PREVIOUS_LAYER_RESID_POST_MLP: Row(
        lambda x, _, layer: x.value[x.entering(layer)], lambda x, _, layer: x.gradient[x.entering(layer)]),
    T.FLATTENED_ATTN_POST_SOFTMAX: flattened(raw(L.ATTN_QK_PROBS)),
    T.ALWAYS_ONE: Row(lambda *_: torch.ones(N_TOKENS, 1, dtype=torch.float64)),
    T.ATTN_WEIGHTED_VALUE: Row(
        lambda x, _, layer: x.value[L.ATTN_QK_PROBS, layer].unsqueeze(-1) * x.value[L.ATTN_VALUE, layer]),
    T.RESID_POST_EMBEDDING_NORM: length(L.RESID_POST_EMBEDDING),
    T.RESID_POST_MLP_NORM: length(L.RESID_POST_MLP),
    T.MLP_LAYER_WRITE_NORM: length(L.RESID_DELTA_MLP),
    T.RESID_POST_ATTN_NORM: length(L.RESID_POST_ATTN),
    T.ATTN_LAYER_WRITE_NORM: length(L.RESID_DELTA_ATTN),
    T.MLP_WRITE: Row(neurons),
    T.MLP_WRITE_NORM: norm(neurons, L.MLP_POST_ACT),
    T.RESID_DELTA_MLP_FROM_MLP_POST_ACT: Row(lambda x, c, layer: neurons(x, c, layer).sum(dim=1)),
    T.ATTN_WRITE: Row(pairs),
    T.ATTN_WRITE_SUM_HEADS: Row(lambda x, c, layer: pairs(x, c, layer).sum(dim=2)),
    T.UNFLATTENED_ATTN_WRITE_NORM: PAIR_NORM,
    T.ATTN_WRITE_NORM: flattened(PAIR_NORM),
    T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN: norm(heads),
    T.MLP_ACT_TIMES_GRAD: times_gradient(L.MLP_POST_ACT),
    T.UNFLATTENED_ATTN_ACT_TIMES_GRAD: times_gradient(L.ATTN_QK_PROBS),
    T.ATTN_ACT_TIMES_GRAD: flattened(times_gradient(L.ATTN_QK_PROBS)),
    T.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN: Row(
        lambda *at: times_gradient(L.ATTN_QK_PROBS).forward(*at).sum(dim=1)),
    T.TOKEN_ATTRIBUTION: Row(
        lambda *at: times_gradient(L.RESID_POST_EMBEDDING).forward(*at).sum(dim=1, keepdim=True)),
    T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: on_origin(neurons, MLP),
    T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: on_origin(pairs, ATTENTION),
    T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: on_origin(heads, ATTENTION),
    T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: flattened(on_origin(pairs, ATTENTION)),
    T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: Row(
        lambda x, *_: along(x.value[L.RESID_POST_EMBEDDING, None], x.before_origin.vector).unsqueeze(-1)),
    T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: residual_on_origin(L.RESID_POST_MLP),
    T.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: residual_on_origin(L.RESID_DELTA_MLP),
    T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: residual_on_origin(L.RESID_POST_ATTN),
    T.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: residual_on_origin(L.RESID_DELTA_ATTN),
    T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: near_origin(neurons, MLP),
    T.UNFLATTENED_ATTN_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: near_origin(pairs, ATTENTION),
    T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: Row(
        lambda x, *_: along(x.value[L.RESID_POST_EMBEDDING, None], x.near_origin.vector).unsqueeze(-1), traced=True),
    **Latents((*OFFLINE_MLP_KINDS, *ATTENTION_KINDS, *OTHER_KINDS)).rows("", alone=True),
    **Latents(OFFLINE_MLP_KINDS).rows("MLP_", alone=False),
    **Latents(ATTENTION_KINDS).rows("ATTENTION_", alone=False),
    T.ONLINE_MLP_AUTOENCODER_ERROR: Row(tap(L.ONLINE_MLP_AUTOENCODER_ERROR), None, (T.MLP_POST_ACT,)),
    T.ONLINE_MLP_AUTOENCODER_ERROR_ACT_TIMES_GRAD: times_gradient(L.ONLINE_MLP_AUTOENCODER_ERROR, (T.MLP_POST_ACT,)),
    T.ONLINE_MLP_AUTOENCODER_ERROR_WRITE_NORM: norm(errors, L.ONLINE_MLP_AUTOENCODER_ERROR, (T.MLP_POST_ACT,)),
    T.ONLINE_MLP_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD: on_origin(errors, MLP, (T.MLP_POST_ACT,)),
    T.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: Row(
        tap(L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR), None, (T.RESID_DELTA_MLP, *Transcoder)),
    T.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: Row(
        tap(L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR), None, (T.RESID_DELTA_ATTN,)),
    T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT: read_by(
        (T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN, T.RESID_POST_ATTN, T.RESID_POST_MLP, *Transcoder)),
    T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT: read_by((T.MLP_POST_ACT,)),
    T.ATTN_WRITE_TO_LATENT: to_latent(lambda x: x),
    T.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: to_latent(lambda x: x.sum(dim=2, keepdim=True)),
    T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: to_latent(lambda x: triangle(x.sum(dim=2, keepdim=True))),
    T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS_BATCHED: to_all_latents(lambda x: triangle(x.sum(dim=2))),
    T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN: to_latent(
        lambda x: x.sum(dim=1), (T.RESID_DELTA_ATTN, T.RESID_DELTA_MLP, *plain.STREAM)),
    T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED: to_all_latents(lambda x: x.sum(dim=1)),
    T.SINGLE_NODE_WRITE: Row(node_write, configs=upstream),
    T.SINGLE_NODE_WRITE_TO_FINAL_RESIDUAL_GRAD: Row(node_on_origin, configs=upstream),
    T.ATTN_QUERY_IN_EDGE_ATTRIBUTION: edge_in(traces.HEAD, traces.Q, attribution=True),
    T.ATTN_KEY_IN_EDGE_ATTRIBUTION: edge_in(traces.HEAD, traces.K, attribution=True),
    T.ATTN_VALUE_IN_EDGE_ATTRIBUTION: edge_in(traces.HEAD, traces.V, attribution=True),
    T.MLP_IN_EDGE_ATTRIBUTION: edge_in(traces.NEURON, attribution=True),
    T.ONLINE_AUTOENCODER_IN_EDGE_ATTRIBUTION: edge_in(traces.LATENT, attribution=True),
    T.ATTN_QUERY_IN_EDGE_ACTIVATION: edge_in(traces.HEAD, traces.Q, attribution=False),
    T.ATTN_KEY_IN_EDGE_ACTIVATION: edge_in(traces.HEAD, traces.K, attribution=False),
    T.MLP_IN_EDGE_ACTIVATION: edge_in(traces.NEURON, attribution=False),
    T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION: edge_in(traces.LATENT, attribution=False),
    T.GRAD_OF_SINGLE_SUBNODE_ATTRIBUTION: Row(lambda x, c, _: subnode_gradient(x, c).vector, configs=downstream),
    T.ATTN_OUT_EDGE_ATTRIBUTION: edge_out(pairs, ATTENTION),
    T.MLP_OUT_EDGE_ATTRIBUTION: edge_out(neurons, MLP),
    T.ONLINE_AUTOENCODER_OUT_EDGE_ATTRIBUTION: Row(
        latent_edge_out, None, ENDS_OF_EDGES, alone=True, configs=downstream),
    T.TOKEN_OUT_EDGE_ATTRIBUTION: Row(
        lambda x, c, _: along(x.value[L.RESID_POST_EMBEDDING, None], subnode_gradient(x, c).vector).unsqueeze(-1),
        configs=downstream),
    T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION: Row(vocabulary, configs=vocabulary_nodes),
    T.ONLINE_RESIDUAL_AUTOENCODER_ERROR: Row(tap(L.ONLINE_RESIDUAL_AUTOENCODER_ERROR), None, plain.STREAM),
    T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_ACT_TIMES_GRAD: Row(
        lambda *at: times_gradient(L.ONLINE_RESIDUAL_AUTOENCODER_ERROR).forward(*at).sum(dim=1, keepdim=True),
        None, plain.STREAM),
    T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_NORM: Row(
        lambda x, c, layer: lengths_of(stream_error(x, c, layer)).unsqueeze(-1), None, plain.STREAM),
    T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD: Row(
        lambda x, c, layer: before(
            x.before_origin, stream_error(x, c, layer), layer, x.latent_place(kind_of(x, plain.STREAM))).unsqueeze(-1),
        None, plain.STREAM),
}  # fmt: skip


def specs_for(x: Explained, rows: dict[T, Row]) -> tuple[DerivedScalarSpec, ...]:
    """What of *rows* has a meaning there, with each of its configs and every pass."""
    return tuple(
        DerivedScalarSpec(dst=dst, config=replace(config, derive_gradients=row.backward is not None))
        for dst, row in rows.items()
        if row.applies(x)
        for config in row.configs(x)
    )
