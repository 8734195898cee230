"""Rows: the vectors that many things write into the residual stream, as matrices that need not be made.

Of a write that passes a norm, this is the part at scale 1; the scale is in the coefficients (`components`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Component
from dst_grpc.engine.layer import unit_read, unit_write
from dst_grpc.errors import require

if TYPE_CHECKING:
    from dst_grpc.domain.components import NodeType
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.layer import Layer
    from dst_grpc.scalars.explained_model import ExplainedModel


class Rows(ABC):
    """The write vectors, at coefficient 1, of K things: a matrix [K, d] that need not exist."""

    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """The rows [K, d]."""

    @abstractmethod
    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """What *coefficients* [..., K] make of the rows together, [..., d]."""

    @abstractmethod
    def norms(self) -> torch.Tensor:
        """Their lengths [K]."""

    @abstractmethod
    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """*direction* [T, d] on each row: [T, K]."""


@dataclass(frozen=True)
class NeuronRows(Rows):
    """Wout."""

    layer: Layer

    def matrix(self) -> torch.Tensor:
        """Wout [F, d]."""
        return unit_write(self.layer.mlp_out, self.layer.mlp_post_norm)

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return unit_write(coefficients @ self.layer.mlp_out, self.layer.mlp_post_norm)

    def norms(self) -> torch.Tensor:
        """[F]."""
        return self.layer.mlp_out_norms

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, F]."""
        return unit_read(direction, self.layer.mlp_post_norm) @ self.layer.mlp_out.t()


@dataclass(frozen=True)
class HeadChannelRows(Rows):
    """WO, a row for each channel of each head."""

    layer: Layer

    def matrix(self) -> torch.Tensor:
        """[H c, d]."""
        return unit_write(self.layer.attn_out.flatten(0, 1), self.layer.attn_post_norm)

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return unit_write(coefficients @ self.layer.attn_out.flatten(0, 1), self.layer.attn_post_norm)

    def norms(self) -> torch.Tensor:
        """[H c]."""
        return torch.linalg.vector_norm(self.matrix(), dim=1)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, H c]."""
        return unit_read(direction, self.layer.attn_post_norm) @ self.layer.attn_out.flatten(0, 1).t()


@dataclass(frozen=True)
class LatentRows(Rows):
    """D (specification, 7.4): the decoder, and for an autoencoder of neurons or heads' values Wout or WO after it."""

    autoencoder: Autoencoder
    behind: Rows | None
    """What the decoder's output is a combination of; None if it is a vector of the residual stream."""

    def matrix(self) -> torch.Tensor:
        """D [Z, d]."""
        decoder = self.autoencoder.decoder.t()
        return decoder if self.behind is None else self.behind.combined(decoder)

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        inputs = coefficients @ self.autoencoder.decoder.t()
        return inputs if self.behind is None else self.behind.combined(inputs)

    def row(self, latent: int) -> torch.Tensor:
        """D[j], [d]."""
        vector = self.autoencoder.decoder[:, latent]
        return vector if self.behind is None else self.behind.combined(vector)

    def rows(self, latents: torch.Tensor) -> torch.Tensor:
        """D of some *latents* [n], [n, d]."""
        vectors = self.autoencoder.decoder[:, latents].t()
        return vectors if self.behind is None else self.behind.combined(vectors)

    def norms(self) -> torch.Tensor:
        """[Z]."""
        return torch.linalg.vector_norm(self.matrix(), dim=1)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, Z], through what lies behind rather than through D."""
        inputs = direction if self.behind is None else self.behind.project(direction)
        return inputs @ self.autoencoder.decoder


_ROWS = {Component.NEURON: NeuronRows, Component.HEAD_AT_TOKEN: HeadChannelRows}


def latent_rows(model: ExplainedModel, node_type: NodeType, layer: int | None) -> LatentRows:
    """D of the autoencoder of *layer* whose latents are *node_type*."""
    written_as = require(model.inputs.of(node_type)).written_as
    behind = None if written_as is None else _ROWS[written_as](model.decoder.layers[require(layer)])
    return LatentRows(model.autoencoder(node_type, layer), behind)
