"""Components that write a scalar coefficient times a direction: neurons, attention heads at pairs of tokens, latents.

The direction is at scale 1: in models with post-norms, the norm's gain is in the directions and its scale, a recorded
constant, in the coefficients. So is the scale at which an autoencoder decodes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.scalars.components.base import EVERY_TOKEN, LayerOfRun, Writer, Writes, times

if TYPE_CHECKING:
    from dst_grpc.scalars.token_vectors import TokenVectors
    from dst_grpc.scalars.write_directions import WriteDirections


class ScaledComponent(Writer):
    """Entries that each write a coefficient times a direction."""

    @abstractmethod
    def directions(self, run: LayerOfRun) -> WriteDirections:
        """The write directions: what the entries write at coefficient 1."""

    def bind(self, run: LayerOfRun) -> ScaledWrites:
        """The component at one layer of one run."""
        return ScaledWrites(self, run)


@dataclass(frozen=True, slots=True)
class EntryWrites:
    """The writes of n entries, each at its own token: entry i writes its coefficient times directions[which[i]]."""

    coefficients: torch.Tensor
    """[n]."""
    which: torch.Tensor
    """Position of each entry's direction, [n]."""
    directions: torch.Tensor
    """The m <= n different ones, [m, d]."""


class ScaledWrites(Writes):
    """Coefficients [T, ...] times directions [..., d]."""

    component: ScaledComponent

    @cached_property
    def factor(self) -> torch.Tensor | None:
        """Factor of `value` in the coefficients, by token, [T, 1]; None if there is none."""
        return self.component.write_factor(self.run)

    @cached_property
    def coefficients(self) -> torch.Tensor:
        """[T, ...]."""
        return times(self.value, self.factor)

    @cached_property
    def directions(self) -> WriteDirections:
        """[..., d]."""
        return self.component.directions(self.run)

    @cached_property
    def _matrix(self) -> torch.Tensor:
        """Every direction, [..., d]: kept, since writes are derived some tokens at a time."""
        return self.directions.matrix()

    def write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """[T, ..., d]."""
        return self.coefficients[tokens].unsqueeze(-1) * self._matrix

    def summed_write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """Summed over the last axis: [T, d] of neurons or latents, [T, U, d] of heads."""
        return self.directions.combined(self.coefficients[tokens])

    def write_norm(self) -> torch.Tensor:
        """[T, ...], signed."""
        return self.coefficients * self.directions.norms()

    def write_norm_gradient(self) -> torch.Tensor:
        """Gradient of the coefficients over the norms of their directions, [T, ...]."""
        gradient = self.gradient()
        return times(gradient, None if self.factor is None else self.factor.reciprocal()) / self.directions.norms()

    def project(self, direction: TokenVectors) -> torch.Tensor:
        """[T, ...]. Tokens whose direction is 0, such as all but the last under a loss, cost nothing."""
        result, directions, used = torch.zeros_like(self.coefficients), self.directions, direction.tokens
        if len(used):
            read = direction.read_by(directions.weights)
            result[used] = self.coefficients[used] * directions.from_read(read)
        return result

    def autoencoder_input(self) -> torch.Tensor:
        """The writes as the input of an autoencoder: summed, a row per token, [T, d]."""
        return self.summed_write()

    def at(self, entries: torch.Tensor) -> EntryWrites:
        """The writes of some entries. *entries* are their indices, [n, axes], a query token first."""
        places, which = entries[:, 1:].unique(dim=0, return_inverse=True)
        factor = None if self.factor is None else self.factor[entries[:, 0]]
        coefficients = times(self.value[tuple(entries.t())], factor)
        return EntryWrites(coefficients, which, self.directions.at(places))
