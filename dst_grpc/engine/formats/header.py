"""What an autoencoder file says without its weights, in words that all formats share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder import Autoencoder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a model an autoencoder reads, and what it reconstructs."""

    dst: DerivedScalarType
    """The recorded tap that it reads."""
    layer_index: int | None
    """Layer of the tap; None for what exists once per model."""
    input_norms: tuple[ModelNorm, ...] = (ModelNorm.NONE,)
    """What the model does to the tap first: the candidates, if the name of the place leaves that open."""
    output: DerivedScalarType | None = None
    """For a transcoder, the tap that it predicts; None for what reconstructs its input."""
    is_before_post_norm: bool = False
    """Whether it is what attention or MLP puts out before a norm on it, in models that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to understand a file. Where a file leaves something open there are several, and measuring decides."""

    name: str = ""
    """What tells it from the others, for humans; empty if it is the only one."""
    normalization: InputNormalization = InputNormalization.NONE
    """What is done to each input vector."""
    input_norm: ModelNorm = ModelNorm.NONE
    """What the model does to the tap before it is read."""
    threshold_scale: float = 1.0
    """What the file's thresholds are multiplied by."""

    def of(self, autoencoder: Autoencoder) -> Autoencoder:
        """*autoencoder*, read that way; shares its large weights."""
        threshold = autoencoder.threshold
        if threshold is not None and self.threshold_scale != 1.0:
            threshold = threshold * self.threshold_scale
        return replace(autoencoder, normalization=self.normalization, input_norm=self.input_norm, threshold=threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderHeader:
    """What an autoencoder file says without its weights."""

    format: str
    """Name of the format that it is in."""
    n_inputs: int
    """Width of what it reads."""
    n_latents: int
    """Latents that loading it gives."""
    n_outputs: int
    """Width of what it reconstructs."""
    activation: AutoencoderActivation
    """Its nonlinearity."""
    k: int | None = None
    """With TopK: latents kept at a token."""
    postact: AutoencoderActivation = AutoencoderActivation.RELU
    """With TopK: applied to what is kept."""
    dst: str | None = None
    """Value of the derived scalar type that it reads; None if the file does not say."""
    layer_index: int | None = None
    """Layer that it belongs to; None if the file does not say, or it belongs to none."""
    output: DerivedScalarType | None = None
    """For a transcoder, what it predicts."""
    is_before_post_norm: bool = False
    """Whether it reads, or predicts, what attention or MLP puts out before a norm on it, in models that have one."""
    readings: tuple[Reading, ...] = (Reading(),)
    """How it can be understood, the likeliest first."""
    has_own_decoder_bias: bool = False
    """Whether what is added at the end differs from what is taken off at the start."""
    has_skip: bool = False
    """Whether its output depends on its input directly."""
    declared_l0: float | None = None
    """Latents that are said to be active at a token; None if the file does not say."""
    folded: tuple[str, ...] = ()
    """What loading folds into the weights, exactly, so that the numbers stay."""
    n_dropped: int = 0
    """Latents of the file that loading it leaves out."""

    @property
    def reads_rows_of_encoder(self) -> bool:
        """Whether what an active latent reads is its row of the encoder: with ReLU, and inputs as they are."""
        raw = all(reading.normalization is InputNormalization.NONE for reading in self.readings)
        return raw and self.activation is AutoencoderActivation.RELU

    def without(self, n_dropped: int) -> AutoencoderHeader:
        """This header if loading leaves out *n_dropped* more latents."""
        return replace(self, n_latents=self.n_latents - n_dropped, n_dropped=self.n_dropped + n_dropped)

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes of the weights as *dtype*."""
        elements = self.n_inputs + self.n_latents + (self.n_inputs + self.n_outputs) * self.n_latents
        if self.has_own_decoder_bias:
            elements += self.n_outputs
        if self.activation is AutoencoderActivation.JUMP_RELU:
            elements += self.n_latents
        if self.has_skip:
            elements += self.n_inputs * self.n_outputs
        return dtype.itemsize * elements
