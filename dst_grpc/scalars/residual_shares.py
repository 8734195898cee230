"""The effect of the residual stream at each layer, split into what its autoencoder says of it.

The latents of one layer, what they do not reconstruct and what the decoder writes without any latent add up to the
residual, and so to all that was written before: the embedding, heads, MLPs and their biases. They say it again, in
other terms. So effects of latents of two layers, or of a latent and a head before it, are not parts of one sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import PassType
from dst_grpc.errors import require
from dst_grpc.scalars.components import Latent, LayerOfRun, ResidualVector
from dst_grpc.scalars.directions import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps, Tap
    from dst_grpc.scalars.task import Task


class Shares(NamedTuple):
    """The effect of the residual at one layer, in parts."""

    latents: float
    """Of all latents."""
    error: float
    """Of what is not reconstructed."""
    decoder_bias: float
    """Of what the decoder writes without any latent."""


@dataclass(frozen=True, slots=True)
class SharesOfResiduals:
    """The residuals that the latents of one task are of."""

    task: Task
    input: AutoencoderInput
    """What their autoencoders read."""

    @classmethod
    def of(cls, task: Task) -> SharesOfResiduals | None:
        """The residuals of *task*; None unless it is about effects of latents of the residual stream."""
        facts = task.facts
        is_of_effects = facts.component is Kind.LATENT and facts.quantity.is_of_effects
        if not (is_of_effects and task.says_again):
            return None
        return cls(task, require(task.autoencoder_input))

    @property
    def _latents(self) -> Latent:
        return Latent.of_task(self.task)

    @property
    def _error(self) -> ResidualVector:
        return ResidualVector(self.task.topology, require(self.input.error_tap))

    @property
    def layers(self) -> list[int]:
        """The layers whose residual the origin comes after."""
        task = self.task
        if task.facts.direction is None:
            final = task.topology.final_residual(task.trace)
            return [require(layer) for layer in task.layers if final.is_after(self.input.location, layer)]
        direction = DIRECTIONS[task.facts.direction](task)
        return [require(layer) for layer in task.layers if direction.counts(self._latents, layer)]

    def taps(self) -> Iterator[Tap]:
        """What the shares are computed from, besides what the latents' own effects are."""
        for layer in self.layers:
            yield PassType.FORWARD, (self.input.tap, layer)
            yield from self._error.taps(layer, self.task.facts.quantity)
            if self.task.facts.direction is None:
                yield PassType.BACKWARD, (require(self.input.output_tap), layer)

    @torch.no_grad()
    def by_layer(self, model: ExplainedModel, recorded: RecordedTaps) -> dict[int, Shares]:
        """The shares at each of `layers`."""
        facts = self.task.facts
        direction = None if facts.direction is None else DIRECTIONS[facts.direction](self.task).bind(model, recorded)
        found = {}
        for layer in self.layers:
            run = LayerOfRun(model, recorded, layer)
            latents, error = self._latents.bind(run), self._error.bind(run)
            offset = model.loaded(self._latents.node_type, layer).offset(run.value(self.input.tap))
            if direction is None:
                gradient = recorded.gradient((require(self.input.output_tap), layer), offset)
                parts = latents.act_times_grad(), error.act_times_grad(), offset * gradient
            else:
                gradient = direction.at(layer)
                parts = latents.summed_write() * gradient, error.value * gradient, offset * gradient
            found[layer] = Shares(*(part.double().sum().item() for part in parts))
        return found
