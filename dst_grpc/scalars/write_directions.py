"""Write directions (W_out, W_O, W_dec) as lazy [K, d_model] matrices.

A write direction is what an entry writes at coefficient 1. The matrix is formed only on demand: sums and projections
use the factors that it is a product of. Directions of writes that pass a post-norm are at scale 1; the scale is in the
coefficients (`components`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.layer import unit_read, unit_write

if TYPE_CHECKING:
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.layer import Layer


class LinearWrite(ABC):
    """A linear map from coefficients [..., K] to the residual stream."""

    @abstractmethod
    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The sum over K of *coefficients* [..., K] times the directions, [..., d]."""

    @abstractmethod
    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """Inner products of *direction* [T, d] with the directions, [T, K]."""


class WriteDirections(LinearWrite):
    """The same, one direction at a time."""

    @property
    def weights(self) -> LinearWrite:
        """What of the map is weights alone, the same in every run."""
        return self

    def from_read(self, read: torch.Tensor) -> torch.Tensor:
        """The inner products [T, K], given those with the write directions of `weights`."""
        return read

    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """The directions [K, d]."""

    @abstractmethod
    def at(self, entries: torch.Tensor) -> torch.Tensor:
        """The directions of some *entries* [m, axes of K], [m, d]."""

    @abstractmethod
    def norms(self) -> torch.Tensor:
        """Their norms [K]."""


@dataclass(frozen=True)
class NeuronDirections(WriteDirections):
    """W_out [F, d]."""

    layer: Layer

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return unit_write(coefficients @ self.layer.mlp_out, self.layer.mlp_post_norm)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, F]."""
        return _read_by(self.layer.mlp_out, unit_read(direction, self.layer.mlp_post_norm))

    def matrix(self) -> torch.Tensor:
        """[F, d]."""
        return unit_write(self.layer.mlp_out, self.layer.mlp_post_norm)

    def at(self, entries: torch.Tensor) -> torch.Tensor:
        """Of some neurons [m, 1], [m, d]."""
        return unit_write(self.layer.mlp_out[entries[:, 0]], self.layer.mlp_post_norm)

    def norms(self) -> torch.Tensor:
        """[F]."""
        return self.layer.mlp_out_norms


@dataclass(frozen=True)
class ValueDirections(WriteDirections):
    """v[u,h] W_O[h], the value of each key through each head's output matrix: [U, H, d]."""

    layer: Layer
    values: torch.Tensor
    """v [U, H, c]."""

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Summed over the heads of *coefficients* [T, U, H]: [T, U, d]."""
        return torch.einsum("tuh,uhd->tud", coefficients, self.matrix())

    @property
    def weights(self) -> HeadChannels:
        """W_O."""
        return HeadChannels(self.layer)

    def from_read(self, read: torch.Tensor) -> torch.Tensor:
        """[T, U, H], of *read* [T, H c]."""
        return torch.einsum("thc,uhc->tuh", read.unflatten(-1, self.values.shape[1:]), self.values)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, U, H]: (*direction* @ W_O[h]^T) . v[u,h], without forming v W_O."""
        return self.from_read(self.weights.project(direction))

    def matrix(self) -> torch.Tensor:
        """[U, H, d]."""
        raw = torch.einsum("uhc,hcd->uhd", self.values, self.layer.attn_out)
        return unit_write(raw, self.layer.attn_post_norm)

    def at(self, entries: torch.Tensor) -> torch.Tensor:
        """Of some keys and heads [m, 2], [m, d]."""
        u, h = entries.t()
        values, weights = self.values[u, h], self.layer.attn_out
        raw = values.new_empty(len(values), weights.shape[-1])
        for head in h.unique().tolist():  # all at once, each entry would have a copy of its head's weights
            raw[h == head] = values[h == head] @ weights[head]
        return unit_write(raw, self.layer.attn_post_norm)

    def norms(self) -> torch.Tensor:
        """[U, H]."""
        channels = torch.einsum("hij,uhj->uhi", self.layer.attn_out_triangle, self.values)
        return torch.linalg.vector_norm(channels, dim=-1)


@dataclass(frozen=True)
class HeadChannels(LinearWrite):
    """W_O [H c, d], for coefficients of every channel of every head."""

    layer: Layer

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return unit_write(coefficients @ self.layer.attn_out.flatten(0, 1), self.layer.attn_post_norm)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, H c]."""
        return _read_by(self.layer.attn_out.flatten(0, 1), unit_read(direction, self.layer.attn_post_norm))


@dataclass(frozen=True)
class LatentDirections(WriteDirections):
    """D [Z, d] (specification, 7.4): W_dec, and after it W_out or W_O if it decodes neurons or heads' values."""

    autoencoder: Autoencoder
    behind: LinearWrite | None
    """The map from the decoder's output to the residual stream; None if the output is a vector of it."""

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return self._written(coefficients @ self.autoencoder.decoder.t())

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, Z], as (*direction* @ behind^T) @ W_dec, without forming D."""
        inputs = direction if self.behind is None else self.behind.project(direction)
        return inputs @ self.autoencoder.decoder

    def matrix(self) -> torch.Tensor:
        """[Z, d]."""
        return self._written(self.autoencoder.decoder.t())

    def at(self, entries: torch.Tensor) -> torch.Tensor:
        """Of some latents [m, 1], [m, d]."""
        return self._written(self.autoencoder.decoder[:, entries[:, 0]].t())

    def norms(self) -> torch.Tensor:
        """[Z]."""
        return torch.linalg.vector_norm(self.matrix(), dim=1)

    def _written(self, decoded: torch.Tensor) -> torch.Tensor:
        return decoded if self.behind is None else self.behind.combined(decoded)


def _read_by(weight: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Inner products [T, K] of *directions* [T, d] with the rows of *weight* [K, d]."""
    # The other way round, two to four directions take a CPU up to twice as long: the weight is fetched more than once.
    return (weight @ directions.t()).t()
