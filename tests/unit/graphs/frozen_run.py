"""The local replacement model run forward, with one node changed: what the edges of a graph are compared with.

Patterns, scales of norms and the MLPs' writes are those of the unchanged run, but for what the change adds to a write
directly, and through skip connections. It shares nothing with the engine of graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.taps import Site, Taps, site_entering
from dst_grpc.engine.transcoders import Transcoders

CONSTANT = {
    L.ATTN_QK_PROBS,
    L.ATTN_INPUT_LAYER_NORM_SCALE,
    L.ATTN_OUTPUT_LAYER_NORM_SCALE,
    L.MLP_INPUT_LAYER_NORM_SCALE,
    L.RESID_FINAL_LAYER_NORM_SCALE,
}
Change = Callable[[Site, torch.Tensor], torch.Tensor]
"""What a tap [T, ...] is changed to."""


class Watched(Taps):
    """Records every tap of a pass of one prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Site, torch.Tensor] = {}

    def touches(self, location: L, layer: int | None) -> bool:
        return True

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        self.seen[location, layer] = x[0]
        return x


class Frozen(Watched):
    """A pass in which what is constant is as in *base*, and an embedding or the MLPs' writes are changed."""

    def __init__(self, run: FrozenRun, embedding: torch.Tensor, writes: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self._run, self._embedding, self._writes = run, embedding, writes

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        site = (location, layer)
        if location in CONSTANT:
            x = self._run.base[site][None]
        elif location is L.RESID_POST_EMBEDDING:
            x = x + self._embedding
        elif location is L.RESID_DELTA_MLP and layer is not None:
            x = self._run.base[site][None] + self._writes.get(layer, 0.0)
            skip = self._run.transcoders.skip(layer) if self._run.transcoders.has_layer(layer) else None
            if skip is not None:
                x = x + self._run.input_change(layer, self.seen) @ skip.t()
        return super().visit(location, layer, x)


class FrozenRun:
    """A prompt's unchanged run, and others that differ from it in one node."""

    def __init__(self, decoder: Decoder, transcoders: Transcoders, tokens: Any) -> None:
        self._decoder, self.transcoders = decoder, transcoders
        self._tokens = torch.tensor(tokens)
        watched = Watched()
        decoder.forward(self._tokens[None], watched)
        self.base = watched.seen

    def changed(
        self, embedding: torch.Tensor | float = 0.0, writes: dict[int, torch.Tensor] | None = None
    ) -> dict[Site, torch.Tensor]:
        """Every tap if *embedding* [T, d] is added to the embeddings, and *writes* [T, d] to those of MLPs."""
        taps = Frozen(self, torch.as_tensor(embedding), writes or {})
        self._decoder.forward(self._tokens[None], taps)
        return taps.seen

    def input_change(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor:
        """The change of what the transcoder of *layer* reads, [T, d]."""
        return self.input(layer, seen) - self.input(layer, self.base)

    def input(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor:
        """What the transcoder of *layer* reads, its scale as in the unchanged run."""
        site = site_entering(layer) if self._decoder.config.parallel else (L.RESID_POST_ATTN, layer)
        norm, x = self._decoder.layers[layer].mlp_norm, seen[site]
        scale = self.base[L.MLP_INPUT_LAYER_NORM_SCALE, layer]
        match self.transcoders.input_norm(layer):
            case ModelNorm.NONE:
                return x
            case ModelNorm.MLP_NORM:
                return norm.apply(x, scale)
            case ModelNorm.MLP_NORM_WITHOUT_GAIN:
                return (norm.unit(x) / norm.gain) / scale

    def pre_activation_change(self, feature: tuple[int, int, int], seen: dict[Site, torch.Tensor]) -> float:
        """The change of a feature's pre-activation: layer, token and feature."""
        layer, token, number = feature
        row = self.transcoders.encoder_rows(layer, torch.tensor([number]))[0]
        return float(self.input_change(layer, seen)[token] @ row)

    def projection_change(self, vector: torch.Tensor, seen: dict[Site, torch.Tensor]) -> float:
        """The change of the projection of the residual after the final norm on *vector* [d], at the last token."""
        last = (L.RESID_POST_MLP, self._decoder.config.n_layers - 1)
        scale = self.base[L.RESID_FINAL_LAYER_NORM_SCALE, None]
        normed = [self._decoder.final_norm.apply(one[last], scale)[-1] for one in (seen, self.base)]
        return float((normed[0] - normed[1]) @ vector)
