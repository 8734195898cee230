"""Random transcoders whose weights are tensors, across layers too; and such as stay in files, which are tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch

from dst_grpc.contexts import AutoencoderContext
from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.stored_matrix import StoredMatrix
from dst_grpc.engine.stored_transcoder import StoredTranscoder
from dst_grpc.engine.transcoders import ActiveFeatures, TranscoderLayer, Transcoders
from tests.plain import CrossLayer, Transcoder


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


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix that is read as one in a file is, and remembers which rows were."""

    weights: torch.Tensor
    """[R, C]."""
    read: set[int]
    """The rows that were read by their numbers."""

    @property
    def n_rows(self) -> int:
        return len(self.weights)

    @property
    def n_bytes(self) -> int:
        return self.weights.nbytes

    def rows(self, indices: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        self.read.update(indices.tolist())
        return self.weights[indices].to(device)

    def blocks(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, torch.Tensor]]:
        """Three rows at a time; of a large matrix, a part of it."""
        at_once = max(3, self.n_rows // 16)
        for begin in range(0, self.n_rows, at_once):
            yield begin, self.weights[begin : begin + at_once].to(device)

    def check(self, values: torch.Tensor) -> torch.Tensor:
        return values


def matrix(weights: torch.Tensor) -> StoredMatrix:
    return cast("StoredMatrix", Matrix(weights, set()))


def stored(by_layer: Mapping[int | None, Autoencoder], kind: Transcoder, n_layers: int) -> Transcoders:
    """The transcoders *by_layer* as if they stayed in files; across layers, with random decoders for later ones."""
    found: dict[int, TranscoderLayer] = {}
    for layer, one in by_layer.items():
        assert layer is not None
        assert one.decoder_bias is not None
        n_written = n_layers - layer if kind is Transcoder.CROSS_LAYER else 1
        generator = torch.Generator().manual_seed(layer)
        shape = one.n_latents, n_written - 1, one.n_inputs
        later = torch.randn(shape, generator=generator, dtype=torch.float64).to(one.decoder.dtype) * 0.4
        rows = torch.cat([one.decoder.t().unsqueeze(1), later], dim=1)
        found[layer] = StoredTranscoder(
            written=range(layer, layer + n_written),
            encoder=matrix(one.encoder),
            # What is subtracted before the encoder is folded into the bias, as in files.
            latent_bias=one.latent_bias - one.encoder @ one.pre_bias,
            decoder=matrix(rows.flatten(0, 1)),
            first_stored=layer,
            decoder_bias=one.decoder_bias,
            threshold=one.threshold,
            skip=one.skip,
            activation=one.activation,
            k=one.k,
            postact=one.postact,
            input_norm=one.input_norm,
        )
    return Transcoders(n_layers, found)


def in_memory(context: AutoencoderContext) -> dict[int | None, Autoencoder]:
    """The same as of `stored`, in memory, for the plain model."""
    found: dict[int | None, Autoencoder] = {}
    for layer, one in context.coders.items():
        assert isinstance(one, StoredTranscoder)
        rows = cast("Matrix", one.decoder).weights.reshape(one.n_latents, len(one.written), -1)
        same = {field.name for field in fields(Autoencoder)} & {field.name for field in fields(StoredTranscoder)}
        given: dict[str, Any] = {name: getattr(one, name) for name in same}
        given |= {
            "pre_bias": torch.zeros_like(one.decoder_bias),
            "encoder": cast("Matrix", one.encoder).weights,
            "decoder": rows[:, 0].t(),
        }
        later = {at: rows[:, at - one.written.start].t() for at in one.written[1:]}
        found[layer] = CrossLayer(**given, later=later)
    return found
