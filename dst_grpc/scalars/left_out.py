"""What latents leave out where they stand for MLPs or attention, as a direct effect on what is explained.

A reconstruction has an error, and an autoencoder may not have one for every layer: there the neurons, or the heads, do
what no latent can be credited with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.errors import require
from dst_grpc.scalars.components import HeadAtToken, LayerOfRun, Neuron, NeuronError, ResidualVector
from dst_grpc.scalars.directions import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.components.base import Writer
    from dst_grpc.scalars.directions import BoundDirection
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps
    from dst_grpc.scalars.task import Task


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
        read = task.topology.inputs.of(require(facts.autoencoder))
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

    def sites(self) -> Iterator[Site]:
        """What it is computed from, besides what the latents' own effects are."""
        for writer, layers in ((self._error, self.task.layers), (self._part, self._uncovered)):
            for layer in layers:
                yield from (site for _, site in writer.taps(layer, Quantity.PROJECTION))

    @torch.no_grad()
    def effects(self, model: ExplainedModel, recorded: RecordedTaps) -> tuple[float, float]:
        """Of the reconstruction errors, and of the layers that have no autoencoder."""
        direction = DIRECTIONS[require(self.task.facts.direction)](self.task).bind(model, recorded)

        def total(writer: Writer, layers: Iterable[int | None]) -> float:
            return sum(_effect(direction, writer, LayerOfRun(model, recorded, layer)) for layer in layers)

        return total(self._error, self.task.layers), total(self._part, self._uncovered)


def _effect(direction: BoundDirection, writer: Writer, run: LayerOfRun) -> float:
    return direction.project(writer.bind(run), summed=False).double().sum().item()
