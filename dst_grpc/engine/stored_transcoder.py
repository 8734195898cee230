"""Transcoders whose encoder and decoder stay in their files: encoders are read in blocks, decoders by rows.

Cross-layer transcoders are the largest of published weights (millions of features, each with a row for every layer that
it writes to), and always stay there; transcoders of single layers do where the registry says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, ModelNorm
from dst_grpc.engine.autoencoder import activated
from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.norm import wide
from dst_grpc.engine.stored_products import encoded, projected
from dst_grpc.engine.transcoders import ActiveFeatures, active_in_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.stored_matrix import StoredMatrix

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class StoredTranscoder:
    """The features of one layer."""

    written: range
    """The layers that it writes to, its own first: to the last if it is of a cross-layer transcoder."""
    encoder: StoredMatrix
    """Wenc [F, d]."""
    latent_bias: torch.Tensor
    """b [F]."""
    decoder: StoredMatrix
    """What feature j writes to layer m is row j n + m - `first_stored` of n = `n_stored` for each feature: [F n, d]."""
    first_stored: int
    """The layer of the first stored row of a feature: its own, or 0 where rows of earlier layers are stored too."""
    decoder_bias: torch.Tensor
    """b_dec [d] of its own layer, of which there is one for all features that write there."""
    threshold: torch.Tensor | None = None
    """With JumpReLU: theta [F]."""
    skip: torch.Tensor | None = None
    """Wskip [d, d] of its own layer, if there is one."""
    activation: AutoencoderActivation = AutoencoderActivation.RELU
    """phi."""
    k: int | None = None
    """With TopK: how many features are kept at a token."""
    postact: AutoencoderActivation = AutoencoderActivation.RELU
    """With TopK and JumpReLU: applied to the kept values."""
    input_norm: ModelNorm = ModelNorm.NONE
    """The norm of the layer that is applied to the residual before it is read."""

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.latent_bias)

    @property
    def n_latents(self) -> int:
        """The same."""
        return self.n_features

    @property
    def has_write_scale(self) -> bool:
        """False: inputs are encoded as they are."""
        return False

    @property
    def n_stored(self) -> int:
        """Rows of the decoder for each feature."""
        return self.decoder.n_rows // self.n_features

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights in memory."""
        parts = (self.latent_bias, self.decoder_bias, self.threshold, self.skip)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def file_bytes(self) -> int:
        """Bytes of encoder and decoder, which stay in their files."""
        return self.encoder.n_bytes + self.decoder.n_bytes

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [T, F] of inputs *x* [T, d]; raises DataLoss as `StoredMatrix.blocks` does."""
        return self._activated(self.pre_activations(x), 0)

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """Before the nonlinearity, [T, F]; raises likewise."""
        x = wide(x)
        found = x.new_empty(len(x), self.n_features)
        for begin, block in self._pre_activations(x):
            found[:, begin : begin + block.shape[1]] = block
        return found

    def active(self, x: torch.Tensor) -> ActiveFeatures:
        """The active ones of them; raises likewise.

        Activations are in memory of all tokens and one block of the encoder at once; with TopK, which compares all
        features of a token, of some tokens.
        """
        if self.activation is AutoencoderActivation.TOP_K:
            return active_in_parts(self, x)
        parts = []
        for begin, pre in self._pre_activations(x):
            found = ActiveFeatures.of(self._activated(pre, begin))
            parts.append((found.tokens, found.features + begin, found.values))
        tokens, features, values = (torch.cat(each) for each in zip(*parts, strict=True))
        order = tokens.argsort(stable=True)
        return ActiveFeatures(tokens[order], features[order], values[order])

    def encoder_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Wenc of *features* [n]: [n, d]; raises DataLoss as `StoredMatrix.rows` does."""
        return self.encoder.rows(features, self.latent_bias.device)

    def decoder_rows(self, features: torch.Tensor, written: int) -> torch.Tensor:
        """What *features* [n] write to layer *written* at an activation of 1: [n, d]; raises likewise."""
        rows = features * self.n_stored + (written - self.first_stored)
        return self.decoder.rows(rows, self.latent_bias.device)

    def rows_of_encoder(self, features: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some of *features* [n] at a time, and their `encoder_rows`."""
        for some in features.split(_ROWS_AT_ONCE):
            yield some, self.encoder_rows(some)

    def rows_of_decoder(self, features: torch.Tensor, written: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some of *features* [n] at a time, and their `decoder_rows`."""
        for some in features.split(_ROWS_AT_ONCE):
            yield some, self.decoder_rows(some, written)

    # As of an `Autoencoder`.

    def write_scale(self, x: torch.Tensor) -> None:
        """None."""
        del x

    def pre_activation(self, x: torch.Tensor) -> torch.Tensor:
        """Features [..., F] of inputs *x* [..., d] before the nonlinearity."""
        return projected(self, x)

    def pre_activations_of(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """That of one feature *which* [n] of each input *x* [n, d]: [n]. Reads their rows alone."""
        return (x * self.encoder_rows(which).to(x.dtype)).sum(dim=-1) + self.latent_bias[which].to(x.dtype)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features [..., F] of inputs *x* [..., d]."""
        return encoded(self, x)

    def encoder_row(self, latent: int) -> torch.Tensor:
        """What a feature reads, [d]."""
        return self.encoder_rows(torch.tensor([latent]))[0]

    def decoder_row(self, latent: int) -> torch.Tensor:
        """What a feature writes to its own layer at an activation of 1, [d]."""
        return self.decoder_rows(torch.tensor([latent]), self.written.start)[0]

    def without_features(self, x: torch.Tensor) -> torch.Tensor:
        """What it reconstructs of its own layer at inputs *x* [..., d] without any feature: [..., d]."""
        bias = self.decoder_bias.to(x.dtype)
        if self.skip is None:
            return bias.expand(*x.shape[:-1], -1)
        return torch.nn.functional.linear(x, self.skip.to(x.dtype), bias)

    def _pre_activations(self, x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """The first feature of each block of the encoder, and its pre-activations [T, n]."""
        x = wide(x)
        for begin, rows in self.encoder.blocks(self.latent_bias.device):
            bias = self.latent_bias[begin : begin + len(rows)].to(x.dtype)
            pre = torch.nn.functional.linear(x, rows.to(x.dtype), bias)
            if not is_finite(pre):
                self.encoder.check(rows)
            yield begin, pre

    def _activated(self, pre: torch.Tensor, begin: int) -> torch.Tensor:
        """Phi of the pre-activations [T, n] of the features from *begin* on."""
        threshold = None if self.threshold is None else self.threshold[begin : begin + pre.shape[1]].to(pre.dtype)
        return activated(self.activation, pre, threshold=threshold, k=self.k, postact=self.postact)

    def __repr__(self) -> str:
        """Sizes only."""
        return f"StoredTranscoder({self.n_features} features of layer {self.written.start}, {self.activation})"
