"""Writes of latents of transcoders that stay in their files: rows of active latents are read, no others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

import torch

from dst_grpc.domain.components import LocationWithinLayer
from dst_grpc.scalars.components.base import EVERY_TOKEN
from dst_grpc.scalars.components.scaled import EntryWrites, ScaledWrites
from dst_grpc.scalars.stored_directions import StoredDirections

if TYPE_CHECKING:
    from dst_grpc.scalars.token_vectors import TokenVectors
    from dst_grpc.scalars.topology import Residual


@dataclass(frozen=True)
class StoredWrites(ScaledWrites):
    """Coefficients [T, Z] times directions [Z, d], which are sums over the layers that a latent writes to."""

    until: Residual | None = None
    """The residual that the writes come before; None for any."""

    def before(self, residual: Residual) -> Self:
        """The writes to the layers before *residual*."""
        return replace(self, until=residual)

    @property
    def stored(self) -> StoredDirections:
        """The directions of what is written before `until`."""
        found, until = cast("StoredDirections", self.directions), self.until
        if until is None:
            return found
        layers = tuple(layer for layer in found.layers if until.is_after(LocationWithinLayer.MLP, layer))
        return replace(found, layers=layers)

    def write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """[T, Z, d]."""
        coefficients = self.coefficients[tokens]
        d = len(self.stored.transcoder.decoder_bias)
        found = coefficients.new_zeros(*coefficients.shape, d)
        for latents, rows in self.stored.active(coefficients):
            found[:, latents] = coefficients[:, latents].unsqueeze(-1) * rows.to(found.dtype)
        return found

    def summed_write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """[T, d]."""
        return self.stored.combined(self.coefficients[tokens])

    def write_norm(self) -> torch.Tensor:
        """[T, Z], signed."""
        found = torch.zeros_like(self.coefficients)
        for latents, rows in self.stored.active(self.coefficients):
            norms = torch.linalg.vector_norm(rows.to(found.dtype), dim=1)
            found[:, latents] = self.coefficients[:, latents] * norms
        return found

    def project(self, direction: TokenVectors) -> torch.Tensor:
        """[T, Z]."""
        found, used = torch.zeros_like(self.coefficients), direction.tokens
        coefficients = self.coefficients[used]
        for latents, rows in self.stored.active(coefficients) if len(used) else ():
            products = direction.vectors @ rows.to(direction.vectors.dtype).t()
            found[used.unsqueeze(1), latents] = coefficients[:, latents] * products
        return found

    def at(self, entries: torch.Tensor) -> EntryWrites:
        """The writes of some entries, [n, 2]."""
        places, which = entries[:, 1:].unique(dim=0, return_inverse=True)
        coefficients = self.coefficients[tuple(entries.t())]
        return EntryWrites(coefficients, which, self.stored.at(places).to(coefficients.dtype))
