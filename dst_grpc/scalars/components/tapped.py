"""Tensors as they are: a tap, the residual entering a layer, the constant one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import Bound, Component, LayerOfRun, registered

if TYPE_CHECKING:
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.task import Task


@registered(Kind.TAP)
@dataclass(frozen=True)
class TappedTensor(Component):
    """A tap."""

    tapped: ActivationLocationType

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The tap of *task*."""
        return cls(task.topology, require(task.facts.tap))

    def site(self, layer: int | None) -> Site:
        """The tap."""
        return self.tapped, layer

    def bind(self, run: LayerOfRun) -> Bound:
        """The tensor at one layer of one run."""
        return Bound(self, run)


@registered(Kind.PREVIOUS_RESIDUAL)
class PreviousResidual(Component):
    """The residual [T, d] that enters a layer: the sum after the layer before, or the embedding."""

    def site(self, layer: int | None) -> Site:
        """The site of that residual."""
        return self.topology.residual_entering(require(layer)).site

    def bind(self, run: LayerOfRun) -> Bound:
        """The residual that enters one layer of one run."""
        return Bound(self, run)


@registered(Kind.ONE)
class ConstantOne(Component):
    """1 at every token."""

    def bind(self, run: LayerOfRun) -> Ones:
        """[T, 1]."""
        return Ones(self, run)


class Ones(Bound):
    """1 at every token of a run."""

    @cached_property
    def value(self) -> torch.Tensor:
        """[T, 1]."""
        decoder = self.run.model.decoder
        return torch.ones(self.run.recorded.n_tokens, 1, dtype=decoder.dtype, device=decoder.device)
