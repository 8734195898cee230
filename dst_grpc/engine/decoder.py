"""The one transformer: a decoder driven by its config's fields, never by a model's name.

`Layer` holds the arithmetic of a layer; `Decoder.forward` runs the layers and offers every intermediate tensor to the
taps. Weights are frozen: gradients are taken at taps, never at weights.

Shapes use the legend of `dst_grpc.domain.components`, with b for the prompt within a batch. Prompts shorter than the
batch's longest are padded on the right; as attention is causal, no real token ever attends to a pad.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.blockwise import blockwise_product
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.late_rows import LateRow, joined
from dst_grpc.engine.layer import Layer, softcapped
from dst_grpc.engine.norm import Norm
from dst_grpc.engine.rotary import Rotation
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import DataLoss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.engine.past import Past

__all__ = ["Decoder", "DecoderConfig", "Layer"]

_L = ActivationLocationType
_CHANNELS_AT_ONCE = 16
_SMALL_PRODUCT = 1 << 26
"""Multiplications of a product that is over at once, and is not worth being cut into blocks."""


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
        self.embedding, self.position_embedding = frozen["embedding"], frozen.get("position_embedding")
        self.unembedding = frozen["unembedding"]
        self.final_norm = Norm(config, "final_norm", frozen)
        self.layers = _layers(config, frozen)
        self._layer_size = sum(w.numel() for name, w in frozen.items() if name.startswith("layers.0."))
        storages = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in frozen.values()}
        self.parameter_bytes = sum(storages.values())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return self.embedding.dtype

    @cached_property
    def embedding_lengths(self) -> torch.Tensor:
        """Norms [V] of the embeddings, at least in float32; 1 for those that are 0."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        lengths = torch.linalg.vector_norm(self.embedding, dim=1, dtype=dtype)
        return torch.where(lengths > 0, lengths, 1.0)

    @cached_property
    def mean_unembedding(self) -> torch.Tensor:
        """Mean [d] of the unembedding's columns, at least in float32."""
        # Some channels at a time, in one place: on a CPU, all of them would first be copied as float64.
        means = torch.empty(self.config.d_model, dtype=torch.float64, device=self.device)
        copy = torch.empty(_CHANNELS_AT_ONCE, self.config.vocab_size, dtype=torch.float64, device=self.device)
        parts = zip(means.split(_CHANNELS_AT_ONCE), self.unembedding.split(_CHANNELS_AT_ONCE), strict=True)
        for mean, some in parts:
            torch.mean(copy[: len(some)].copy_(some), dim=1, out=mean)
        return means.to(torch.promote_types(self.dtype, torch.float32))

    def forward(
        self,
        tokens: torch.Tensor,
        taps: Taps | None = None,
        *,
        entering: tuple[int, torch.Tensor] | None = None,
        late: Sequence[LateRow] = (),
        logits_at: torch.Tensor | None = None,
        stop_after_layer: int | None = None,
        past: Past | None = None,
    ) -> torch.Tensor | None:
        """Run the model, offering every tensor to *taps*.

        Args:
            tokens: ids [b, T], right-padded with anything.
            taps: what to record and change; None for nothing.
            entering: the first layer to run, and the residual [b, T, d] that enters it; the number of layers for none.
                None for all layers, from the embedding of *tokens*.
            late: further rows, which begin at later layers, in the order of these.
            logits_at: position [b] of the one token of each prompt to compute logits at, or rows and positions [2, n]
                of any tokens; None for all tokens. Ignored if the logits themselves are tapped.
            stop_after_layer: stop after this layer (-1: after the embedding) and compute no logits.
            past: tokens before those of the pass; all positions above are then counted from its first own token.

        Returns:
            Logits [b, T, V], or [b or n, 1, V] with *logits_at*, or None after stopping early. Attached to a graph that
            begins at the first layer where *taps* want gradients.
        """
        taps = taps or Taps()
        start = taps.graph_starts_at_layer
        last = self.config.n_layers - 1 if stop_after_layer is None else stop_after_layer
        with torch.set_grad_enabled(False):
            first, x = (0, self._embedded(tokens, past)) if entering is None else entering
            if start != -1 and entering is None:
                x = taps.visit(_L.RESID_POST_EMBEDDING, None, x)
            before_graph = last + 1 if start is None else min(max(start, first), last + 1)
            for layer in range(first, before_graph):
                x = self._block(layer, joined(x, layer, late), taps, past)
        with torch.set_grad_enabled(start is not None):
            if start is not None:
                x = x.requires_grad_()
            if start == -1 and entering is None:
                x = taps.visit(_L.RESID_POST_EMBEDDING, None, x)
            for layer in range(before_graph, last + 1):
                x = self._block(layer, joined(x, layer, late), taps, past)
            x = joined(x, self.config.n_layers, late)
            taps.last_residual = x.detach()
            return self._logits(x, taps, logits_at) if stop_after_layer is None else None

    def unembed(self, normed: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of a residual [..., d] after the final norm."""
        return softcapped(normed @ self.unembedding, self.config.final_softcap)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., d] of *tokens* [...], without their positions."""
        x = self.embedding[tokens]
        if self.config.embedding_scale == 1.0:
            return x
        return x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)

    def _embedded(self, tokens: torch.Tensor, past: Past | None) -> torch.Tensor:
        x = self.embed(tokens)
        first = 0 if past is None else past.n_tokens
        return x if self.position_embedding is None else x + self.position_embedding[first : first + tokens.shape[1]]

    def _block(self, index: int, x: torch.Tensor, taps: Taps, past: Past | None) -> torch.Tensor:
        attn = taps.visit(_L.RESID_DELTA_ATTN, index, self._attn_write(index, x, taps, past))
        if self.config.parallel:
            mlp = taps.visit(_L.RESID_DELTA_MLP, index, self._mlp_write(index, x, taps))
            return taps.visit(_L.RESID_POST_MLP, index, x + attn + mlp)
        x = taps.visit(_L.RESID_POST_ATTN, index, x + attn)
        mlp = taps.visit(_L.RESID_DELTA_MLP, index, self._mlp_write(index, x, taps))
        return taps.visit(_L.RESID_POST_MLP, index, x + mlp)

    def _attn_write(self, index: int, x: torch.Tensor, taps: Taps, past: Past | None) -> torch.Tensor:
        """Attention's write [b, T, d], from the residual *x* that enters the layer."""
        layer = self.layers[index]
        propagation = taps.propagation
        normed = _tapped_norm(layer.attn_norm, x, taps, _L.ATTN_INPUT_LAYER_NORM_SCALE, index)
        positions = None if past is None else past.positions(x.shape[1])
        q, k, v = taps.qkv(index, layer, x, layer.shared_qkv(normed, positions, propagation=propagation))
        makes_matrix = not propagation.fuses_attention or any(
            taps.touches(location, index) for location in (_L.ATTN_QK_LOGITS, _L.ATTN_QK_PROBS)
        )
        if makes_matrix or taps.touches(_L.ATTN_KEY, index) or taps.touches(_L.ATTN_VALUE, index):
            k, v = layer.for_each_head(k), layer.for_each_head(v)
        q = taps.visit(_L.ATTN_QUERY, index, q)
        k = taps.visit(_L.ATTN_KEY, index, k)
        v = taps.visit(_L.ATTN_VALUE, index, v)
        if past is not None:
            k, v = past.before(index, layer, k, v)
        q, k, v = propagation.heads(q, k, v)
        if makes_matrix:
            scores = taps.visit(_L.ATTN_QK_LOGITS, index, layer.attn_scores(q, k))
            mixed = layer.attn_mix(taps.visit(_L.ATTN_QK_PROBS, index, propagation.probs(layer, scores)), v)
        else:
            mixed = layer.attn_fused(q, k, v)
        write = layer.attn_project(taps.visit(_L.ATTN_WEIGHTED_SUM_OF_VALUES, index, mixed))
        return _tapped_norm(layer.attn_post_norm, write, taps, _L.ATTN_OUTPUT_LAYER_NORM_SCALE, index)

    def _mlp_write(self, index: int, x: torch.Tensor, taps: Taps) -> torch.Tensor:
        """The MLP's write [b, T, d], from the residual *x* before it."""
        layer = self.layers[index]
        x = taps.mlp_input(index, x)
        scale = _tapped_scale(layer.mlp_norm, x, taps, _L.MLP_INPUT_LAYER_NORM_SCALE, index)
        normed = taps.propagation.normed(layer.mlp_norm, x) if scale is None else layer.mlp_norm.apply(x, scale)
        taps.mlp_reads(index, layer.mlp_norm, x, scale=scale, normed=normed)
        pre = taps.visit(_L.MLP_PRE_ACT, index, layer.mlp_pre_act(normed))
        act = taps.propagation.act(layer, pre, layer.mlp_up(normed))
        write = layer.mlp_project(taps.visit(_L.MLP_POST_ACT, index, act))
        return _tapped_norm(layer.mlp_post_norm, write, taps, _L.MLP_OUTPUT_LAYER_NORM_SCALE, index)

    def _logits(self, x: torch.Tensor, taps: Taps, logits_at: torch.Tensor | None) -> torch.Tensor:
        x = taps.final_input(x)
        normed = _tapped_norm(self.final_norm, x, taps, _L.RESID_FINAL_LAYER_NORM_SCALE, None)
        if taps.touches(_L.LOGITS, None):
            return taps.visit(_L.LOGITS, None, self._unembed_in_blocks(normed, x, taps))
        if logits_at is not None:
            rows = torch.arange(len(normed), device=normed.device)
            at = (rows, logits_at) if logits_at.dim() == 1 else (logits_at[0], logits_at[1])
            normed = normed[at].unsqueeze(1)
        return self._unembed_in_blocks(normed, x, taps)

    def _unembed_in_blocks(self, normed: torch.Tensor, x: torch.Tensor, taps: Taps) -> torch.Tensor:
        """As `unembed`, in blocks of which none costs more than a layer of the pass, whose last residual is *x*."""
        of_a_layer = x.shape[:-1].numel() * self._layer_size
        n_rows = max(max(of_a_layer, _SMALL_PRODUCT) // self.unembedding.numel(), 1)
        if normed.shape[:-1].numel() <= n_rows:
            return self.unembed(normed)
        product = blockwise_product(normed, self.unembedding, n_rows, taps.check)
        return softcapped(product, self.config.final_softcap)

    def __repr__(self) -> str:
        """Sizes only."""
        c = self.config
        return f"Decoder({c.n_layers} layers, width {c.d_model}, vocabulary {c.vocab_size}, {self.device})"


def _layers(config: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> list[Layer]:
    embedding = weights["embedding"]
    rotary = config.rotary or (None,) * config.n_layers
    rotations = {one: Rotation(one, embedding.device, embedding.dtype) for one in rotary if one is not None}
    layers = []
    for index, how in enumerate(rotary):
        prefix = f"layers.{index}."
        layers.append(
            Layer(
                config,
                {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)},
                rotation=None if how is None else rotations[how],
                window=config.sliding_windows[index] if config.sliding_windows else None,
            )
        )
    return layers


def _tapped_norm(
    norm: Norm | None, x: torch.Tensor, taps: Taps, location: ActivationLocationType, layer: int | None
) -> torch.Tensor:
    """*x* normed, or as it is if *norm* is None; fused unless the scale is tapped."""
    if norm is None:
        return x
    scale = _tapped_scale(norm, x, taps, location, layer)
    return taps.propagation.normed(norm, x) if scale is None else norm.apply(x, scale)


def _tapped_scale(
    norm: Norm, x: torch.Tensor, taps: Taps, location: ActivationLocationType, layer: int | None
) -> torch.Tensor | None:
    """The scale of *norm* at *x*, as its tap leaves it; None if it is not tapped."""
    if not taps.touches(location, layer):
        return None
    return taps.visit(location, layer, taps.propagation.scale(norm, x))


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
