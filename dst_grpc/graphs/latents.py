"""Latents of autoencoders as units of a graph.

With the mean m and the scale s of the input x of an autoencoder constant, where it normalizes, a latent's
pre-activation is linear in x, and its write is its activation times s times its row of the decoder. What is
reconstructed is the write of attention or of the MLP, the residual itself, or the neurons. To what a latent of the MLP
reads, the MLP carries gradients back with `Layer.neuron_ratios` constant.

Shapes: n some of the units, T token, d residual channel, F neuron, x input of the autoencoder (d or F), Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.domain.components import LocationWithinLayer
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.norm import wide
from dst_grpc.graphs.units import Stage, TappedUnits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.graphs.frozen_layer import FrozenMlp

_L = ActivationLocationType
_STAGES = {
    LocationWithinLayer.ATTN: Stage.ATTENTION,
    LocationWithinLayer.LATENTS_OF_RESID_POST_ATTN: Stage.POST_ATTENTION,
    LocationWithinLayer.MLP: Stage.MLP,
    LocationWithinLayer.LATENTS_OF_RESID_POST_MLP: Stage.END,
}
_CENTRING = {InputNormalization.CENTRED, InputNormalization.LAYER_NORM}


def stage_of(source: AutoencoderInput) -> Stage:
    """Where autoencoders of an input that can be spliced are."""
    return _STAGES[source.location]


def kinds_of(source: AutoencoderInput) -> tuple[GraphNodeKind, GraphNodeKind]:
    """The kinds of latents, and of errors, of autoencoders of an input."""
    if source.is_of_mlp:
        return GraphNodeKind.MLP_LATENT, GraphNodeKind.ERROR
    if source.is_of_attention_write:
        return GraphNodeKind.ATTENTION_LATENT, GraphNodeKind.ATTENTION_ERROR
    return GraphNodeKind.RESIDUAL_LATENT, GraphNodeKind.RESIDUAL_ERROR


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentUnits(TappedUnits):
    """The active latents of an autoencoder."""

    autoencoder: Autoencoder
    """Its weights."""
    x: torch.Tensor
    """What it reads, [T, x]."""
    mlp: FrozenMlp
    """The MLP of the layer."""

    def gradients(self, own: torch.Tensor) -> torch.Tensor:
        """Encoder rows, by the input's scale; those of the MLP's latents carried back through the MLP."""
        tokens = self.active.tokens[own]
        rows = self._encoder_rows(own)
        if self.stage is not Stage.MLP:
            return rows
        if self.tap is _L.RESID_DELTA_MLP:
            rows = self.mlp.through_output(rows, tokens)
        return self.mlp.through_neurons(rows, tokens)

    def read_direction(self, own: torch.Tensor) -> torch.Tensor:
        """Encoder rows, of a residual's."""
        if self.kind is not GraphNodeKind.RESIDUAL_LATENT:
            return super().read_direction(own)
        return wide(self.autoencoder.encoder[self.active.features[own]])

    def writes(self, own: torch.Tensor, written: int) -> torch.Tensor:  # noqa: ARG002  their own layer
        """Decoder rows, by the input's scale; those of neurons through the output weights."""
        tokens = self.active.tokens[own]
        return self._written(self._decoder_rows(own, self.x), tokens)

    @property
    def error(self) -> torch.Tensor:
        """What the latents and the bias miss of what is reconstructed, as it is in the residual stream, [T, d]."""
        autoencoder, x = self.autoencoder, wide(self.x)
        decoded = wide(autoencoder.encode(self.x)) @ wide(autoencoder.decoder).t() + wide(autoencoder.output_bias)
        scale = autoencoder.write_scale(x)
        missed = x - (decoded if scale is None else decoded * scale)
        return self._written(missed, torch.arange(self.n_tokens, device=x.device))

    def values(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Pre-activations."""
        return wide(self.autoencoder.pre_activation(x))[self.active.tokens[own], self.active.features[own]]

    def with_set(self, x: torch.Tensor, activations: Mapping[int, float]) -> torch.Tensor:
        """What latents write is added that they do not write anyway."""
        own = torch.tensor([*activations], device=x.device)
        tokens, numbers = self.active.tokens[own], self.active.features[own]
        now = wide(self.autoencoder.encode(x))[tokens, numbers]
        more = torch.tensor([*activations.values()], device=x.device, dtype=now.dtype) - now
        return wide(x).index_add(0, tokens, more[:, None] * self._decoder_rows(own, x)).to(x.dtype)

    def _decoder_rows(self, own: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What units *own* [n] add to the reconstruction of *x* [T, x] at an activation of 1, [n, x]."""
        rows = wide(self.autoencoder.decoder[:, self.active.features[own]].t())
        scale = self.autoencoder.write_scale(wide(x))
        return rows if scale is None else rows * scale[self.active.tokens[own]]

    def _encoder_rows(self, own: torch.Tensor) -> torch.Tensor:
        """The gradients of pre-activations of units *own* [n] at what is reconstructed, [n, x]."""
        autoencoder = self.autoencoder
        rows = wide(autoencoder.encoder[self.active.features[own]])
        divisor = autoencoder.input_divisor(wide(self.x))
        if divisor is not None:
            rows = rows / divisor[self.active.tokens[own]]
        return rows - rows.mean(dim=1, keepdim=True) if autoencoder.normalization in _CENTRING else rows

    def _written(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """*rows* [n, x] of what is reconstructed at *tokens* [n], as they are in the residual stream, [n, d]."""
        if self.tap is not _L.MLP_POST_ACT:
            return rows
        return self.mlp.written(rows @ wide(self.mlp.input.layer.mlp_out), tokens)
