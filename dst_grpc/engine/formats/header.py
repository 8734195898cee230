"""The header of an autoencoder file: all that it says besides its weights, in the same form for all formats."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder import Autoencoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The input of an autoencoder in a model, and what it reconstructs."""

    dst: DerivedScalarType
    """The recorded tap that it reads."""
    layer_index: int | None
    """Layer of the tap; None for a tap that exists once per model."""
    input_norms: tuple[ModelNorm, ...] = (ModelNorm.NONE,)
    """Norms of the model applied to the tap first: several candidates, if the name of the place leaves that open."""
    output: DerivedScalarType | None = None
    """For a transcoder, the tap that it predicts; None if the input is reconstructed."""
    is_before_post_norm: bool = False
    """Whether it is the output of attention or MLP before the post-norm, in models that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """One interpretation of a file. Where a format leaves something open there are several, and the self-check
    decides."""

    name: str = ""
    """What distinguishes it from the others, for humans; empty if it is the only one."""
    normalization: InputNormalization = InputNormalization.NONE
    """Normalization of each input vector."""
    input_norm: ModelNorm = ModelNorm.NONE
    """Norm of the model applied to the tap before it is read."""
    threshold_scale: float = 1.0
    """Factor of the file's thresholds."""

    def of(self, autoencoder: Autoencoder) -> Autoencoder:
        """*autoencoder* in this interpretation; shares its large weights."""
        threshold = autoencoder.threshold
        if threshold is not None and self.threshold_scale != 1.0:
            threshold = threshold * self.threshold_scale
        return replace(autoencoder, normalization=self.normalization, input_norm=self.input_norm, threshold=threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderHeader:
    """All that an autoencoder file says besides its weights."""

    format: str
    """Name of the format that it is in."""
    n_inputs: int
    """Width of its input."""
    n_latents: int
    """Latents once it is loaded."""
    n_outputs: int
    """Width of its output."""
    activation: AutoencoderActivation
    """Its nonlinearity."""
    k: int | None = None
    """With TopK: latents kept at a token."""
    postact: AutoencoderActivation = AutoencoderActivation.RELU
    """With TopK and JumpReLU: applied to the kept values."""
    dst: str | None = None
    """Value of the derived scalar type that it reads; None if the file does not say."""
    layer_index: int | None = None
    """Layer that it belongs to; None if the file does not say, or it belongs to none."""
    output: DerivedScalarType | None = None
    """For a transcoder, what it predicts."""
    is_before_post_norm: bool = False
    """Whether it reads, or predicts, the output of attention or MLP before the post-norm, in models that have one."""
    interpretations: tuple[Interpretation, ...] = (Interpretation(),)
    """Its possible interpretations, the likeliest first."""
    has_own_decoder_bias: bool = False
    """Whether the bias added at the end differs from that subtracted at the start."""
    has_skip: bool = False
    """Whether its output depends on its input directly."""
    declared_l0: float | None = None
    """Declared mean number of latents active at a token; None if the file does not say."""
    folded: tuple[str, ...] = ()
    """Transformations that loading folds into the weights, without changing results."""
    n_dropped: int = 0
    """Latents of the file that are not loaded."""
    written: range | None = None
    """For a layer of a cross-layer transcoder, the layers that its latents write to, up to the model's last."""
    file_bytes: int = 0
    """Bytes of encoder and decoder if these are not loaded, but read from the file as they are needed."""

    @property
    def reads_rows_of_encoder(self) -> bool:
        """Whether the read direction of an active latent is its row of the encoder: with ReLU, and inputs as they
        are."""
        raw = all(one.normalization is InputNormalization.NONE for one in self.interpretations)
        return raw and self.activation is AutoencoderActivation.RELU

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts the MLP's write, and inputs are encoded as they are."""
        raw = all(one.normalization is InputNormalization.NONE for one in self.interpretations)
        return raw and self.output is DerivedScalarType.RESID_DELTA_MLP

    def without(self, n_dropped: int) -> AutoencoderHeader:
        """This header if *n_dropped* more latents are not loaded."""
        return replace(self, n_latents=self.n_latents - n_dropped, n_dropped=self.n_dropped + n_dropped)

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes of the loaded weights as *dtype*; if encoder and decoder stay in the file, the others are float32."""
        if self.file_bytes:
            dtype, elements = torch.float32, self.n_latents + self.n_outputs
        else:
            elements = self.n_inputs + self.n_latents + (self.n_inputs + self.n_outputs) * self.n_latents
            elements += self.n_outputs if self.has_own_decoder_bias else 0
        if self.activation is AutoencoderActivation.JUMP_RELU:
            elements += self.n_latents
        if self.has_skip:
            elements += self.n_inputs * self.n_outputs
        return dtype.itemsize * elements
