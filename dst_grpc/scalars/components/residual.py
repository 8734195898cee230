"""Vectors of the residual stream, which are their own write: residuals, layers' writes, errors, a node's write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import LocationWithinLayer
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import EVERY_TOKEN, LayerOfRun, Writer, Writes, registered
from dst_grpc.scalars.components.scaled import EntryWrites

if TYPE_CHECKING:
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.task import Task
    from dst_grpc.scalars.token_vectors import TokenVectors


@registered(Kind.RESIDUAL)
@registered(Kind.RESIDUAL_ERROR)
@dataclass(frozen=True)
class ResidualVector(Writer):
    """A tapped vector per token."""

    tapped: ActivationLocationType
    """Its tap."""

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The vector that *task* is about."""
        return cls(task.topology, require(task.facts.tap))

    @property
    def location(self) -> LocationWithinLayer | None:
        """The tap's; of a reconstruction error, that of what is reconstructed."""
        return self.topology.inputs.place_of(self.tapped)

    def site(self, layer: int | None) -> Site:
        """[T, d]."""
        return self.tapped, layer

    def bind(self, run: LayerOfRun) -> ResidualWrites:
        """The vector at one layer of one run."""
        return ResidualWrites(self, run)


class ResidualWrites(Writes):
    """A vector x [T, d]."""

    def write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """[T, d]."""
        return self.value[tokens]

    def write_norm(self) -> torch.Tensor:
        """|x[t]|, [T, 1]."""
        return torch.linalg.vector_norm(self.value, dim=-1, keepdim=True)

    def project(self, direction: TokenVectors) -> torch.Tensor:
        """x[t] . direction[t], [T, 1]."""
        result = self.value.new_zeros(len(self.value), 1)
        result[direction.tokens] = (self.value[direction.tokens] * direction.vectors).sum(dim=-1, keepdim=True)
        return result

    def at(self, entries: torch.Tensor) -> EntryWrites:
        """The vectors of some tokens, *entries* [n, 1]."""
        tokens, which = entries[:, 0].unique(return_inverse=True)
        vectors = self.value[tokens]
        return EntryWrites(torch.ones_like(which, dtype=vectors.dtype), which, vectors)
