"""What latents leave out where they stand for MLPs or attention, as a direct effect on what is explained.

A reconstruction has an error, and an autoencoder may not have one for every layer: there the neurons, or the heads, do
what no latent can be credited with. What the skip connection of a transcoder writes is no latent's either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.engine.autoencoder_input import autoencoder_input
from dst_grpc.errors import require
from dst_grpc.scalars.components import HeadAtToken, LayerOfRun, Neuron, NeuronError, ResidualVector
from dst_grpc.scalars.components.base import Writer
from dst_grpc.scalars.components.residual import ResidualWrites
from dst_grpc.scalars.directions import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.domain.components import LocationWithinLayer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.directions import BoundDirection
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps
    from dst_grpc.scalars.task import Task


@dataclass(frozen=True)
class _SkipConnection(Writer):
    """The skip connection of a transcoder, which is 0 where there is none."""

    input: AutoencoderInput

    @property
    def location(self) -> LocationWithinLayer:
        """That of the latents."""
        return self.input.location

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """The residual that it reads."""
        yield self.topology.input_site(self.input, layer)

    def bind(self, run: LayerOfRun) -> _SkipWrites:
        """The skip connection at one layer of one run."""
        return _SkipWrites(self, run)


class _SkipWrites(ResidualWrites):
    component: _SkipConnection

    @cached_property
    def value(self) -> torch.Tensor:
        """X Wskip^T, [T, d]."""
        (site,) = self.component.activation_sites(self.run.layer)
        tap = self.run.recorded.value(site)
        transcoder = self.run.model.autoencoder(self.component.input.node_type, self.run.layer)
        if transcoder.skip is None:
            return torch.zeros_like(tap)
        read = autoencoder_input(transcoder, tap, self.run.block)
        return torch.nn.functional.linear(read, transcoder.skip.to(read.dtype))


@dataclass(frozen=True, slots=True)
class EffectsLeftOut:
    """Direct effects of what latents leave out."""

    errors: float
    """Of what is not reconstructed."""
    uncovered: float
    """Of the layers that have no autoencoder."""
    skips: float | None
    """Of skip connections; None if there are none."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the latents of one task leave out."""

    task: Task
    input: AutoencoderInput
    """What their autoencoders read."""

    @classmethod
    def of(cls, task: Task) -> LeftOut | None:
        """What the latents of *task* leave out; None unless it is about direct effects of latents of MLPs or attention.

        Latents of the residual stream stand for no part (`residual_shares`).
        """
        facts = task.facts
        if facts.component is not Kind.LATENT or facts.quantity is not Quantity.PROJECTION:
            return None
        read = task.autoencoder_input
        if read is None or not read.is_traced or read.is_of_stream:
            return None
        return cls(task, read)

    @property
    def _error(self) -> Writer:
        topology, read = self.task.topology, self.input
        if read.written_as is Kind.NEURON:
            return NeuronError(topology)
        return ResidualVector(topology, require(read.error_tap))

    @property
    def _part(self) -> Writer:
        """What the latents stand for."""
        return Neuron(self.task.topology) if self.input.is_of_mlp else HeadAtToken(self.task.topology)

    @property
    def _uncovered(self) -> Iterable[int]:
        return (layer for layer in range(self.task.topology.n_layers) if layer not in self.task.layers)

    @property
    def _skip(self) -> Writer | None:
        """The skip connections, of which some layers may have none; None of what is no transcoder."""
        return None if self.input.output is None else _SkipConnection(self.task.topology, self.input)

    def sites(self) -> Iterator[Site]:
        """What it is computed from, besides what the latents' own effects are."""
        written = [(self._error, self.task.layers), (self._part, self._uncovered)]
        if self._skip is not None:
            written.append((self._skip, self.task.layers))
        for writer, layers in written:
            for layer in layers:
                yield from (site for _, site in writer.taps(layer, Quantity.PROJECTION))

    @torch.no_grad()
    def effects(self, model: ExplainedModel, recorded: RecordedTaps) -> EffectsLeftOut:
        """Of all of it."""
        direction = DIRECTIONS[require(self.task.facts.direction)](self.task).bind(model, recorded)

        def total(writer: Writer, layers: Iterable[int | None]) -> float:
            return sum(_effect(direction, writer, LayerOfRun(model, recorded, layer)) for layer in layers)

        of_layers = (model.autoencoder(self.input.node_type, layer) for layer in self.task.layers)
        has_skips = self._skip is not None and any(one.skip is not None for one in of_layers)
        return EffectsLeftOut(
            errors=total(self._error, self.task.layers),
            uncovered=total(self._part, self._uncovered),
            skips=total(self._skip, self.task.layers) if self._skip is not None and has_skips else None,
        )


def _effect(direction: BoundDirection, writer: Writer, run: LayerOfRun) -> float:
    return direction.project(writer.bind(run), summed=False).double().sum().item()
