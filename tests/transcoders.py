"""Random transcoders whose weights are tensors, across layers too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.transcoders import ActiveFeatures, Transcoders


@dataclass(frozen=True, eq=False)
class TensorTranscoder:
    """The features of one layer, which write to some layers from this one on; ReLU, or JumpReLU with a threshold."""

    layer: int
    encoder: torch.Tensor
    """[F, d]."""
    latent_bias: torch.Tensor
    """[F]."""
    decoder: torch.Tensor
    """[F, written layers, d]."""
    decoder_bias: torch.Tensor
    """[d]."""
    threshold: torch.Tensor | None = None
    """[F]."""
    skip: torch.Tensor | None = None
    """[d, d]."""
    input_norm: ModelNorm = ModelNorm.NONE
    parameter_bytes = 0
    file_bytes = 0

    @property
    def n_features(self) -> int:
        return len(self.encoder)

    @property
    def written(self) -> range:
        return range(self.layer, self.layer + self.decoder.shape[1])

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """[T, F] of inputs [T, d]."""
        return x @ self.encoder.t() + self.latent_bias

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        pre = self.pre_activations(x)
        return torch.where(pre > (0.0 if self.threshold is None else self.threshold), pre, 0.0)

    def active(self, x: torch.Tensor) -> ActiveFeatures:
        return ActiveFeatures.of(self.activations(x))

    def encoder_rows(self, features: torch.Tensor) -> torch.Tensor:
        return self.encoder[features]

    def decoder_rows(self, features: torch.Tensor, written: int) -> torch.Tensor:
        return self.decoder[features, written - self.layer]


def random_transcoders(
    config: DecoderConfig,
    n_features: int = 11,
    *,
    is_cross_layer: bool = False,
    input_norm: ModelNorm = ModelNorm.NONE,
    has_skip: bool = False,
    has_threshold: bool = False,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> Transcoders:
    """Transcoders of all layers, but of those *without*."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int, scale: float = 0.5) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    width = config.d_model
    return Transcoders(
        config.n_layers,
        {
            layer: TensorTranscoder(
                layer=layer,
                encoder=normal(n_features, width),
                latent_bias=normal(n_features),
                decoder=normal(n_features, config.n_layers - layer if is_cross_layer else 1, width),
                decoder_bias=normal(width),
                threshold=normal(n_features).abs() if has_threshold else None,
                skip=normal(width, width, scale=0.2) if has_skip else None,
                input_norm=input_norm,
            )
            for layer in range(config.n_layers)
            if layer not in without
        },
    )
