"""What the units of a graph are: features of transcoders, neurons, heads, latents of autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import ActivationFunction
from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.errors import require
from dst_grpc.graphs.latents import stage_of
from dst_grpc.graphs.units import Stage

if TYPE_CHECKING:
    import torch

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.decoder_config import DecoderConfig
    from dst_grpc.engine.transcoders import Transcoders

_POINTS = {ActivationFunction.RELU}
"""Nonlinearities that are exactly 0 for many inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """What the units are. At most one of transcoders, neurons and an autoencoder of the MLP stands for what an MLP
    writes, and one of heads and an autoencoder for what attention writes."""

    transcoders: Transcoders | None = None
    """The transcoders whose features are units; None for none."""
    has_neurons: bool = False
    """Whether the neurons of all MLPs are."""
    has_heads: bool = False
    """Whether the heads of all layers are."""
    autoencoders: Mapping[DerivedScalarType, Mapping[int, Autoencoder]] = field(default_factory=dict)
    """The autoencoders whose latents are, by what they reconstruct and by layer."""

    def autoencoder(self, layer: int, stage: Stage) -> tuple[AutoencoderInput, Autoencoder] | None:
        """The autoencoder at a place, and what it reads; None if there is none."""
        for dst, by_layer in self.autoencoders.items():
            source = AUTOENCODER_INPUTS[dst]
            if stage_of(source) is stage and layer in by_layer:
                return source, by_layer[layer]
        return None

    def has_transcoder(self, layer: int) -> bool:
        """Whether features explain what the MLP of *layer* writes."""
        return self.transcoders is not None and self.transcoders.has_layer(layer)

    def skip(self, layer: int) -> torch.Tensor | None:
        """The skip connection Wskip [d, d] of the transcoder of *layer*; None if there is none."""
        return require(self.transcoders).skip(layer) if self.has_transcoder(layer) else None

    def is_attention_replaced(self, layer: int) -> bool:
        """Whether units stand for what attention writes in *layer*, so that no path leads through it."""
        return self.has_heads or self.autoencoder(layer, Stage.ATTENTION) is not None

    def known_units(self, config: DecoderConfig, n_tokens: int) -> int:
        """How many units of a prompt are surely active, whatever it is."""
        neurons = self.has_neurons and config.activation not in _POINTS
        return config.n_layers * n_tokens * (neurons * config.d_mlp + self.has_heads * config.n_heads)
