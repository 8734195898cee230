"""Directions [T, d] of the residual stream that writes are projected on: one class each, which knows its taps.

A write projected on the gradient at the last residual before the origin is its direct effect on the origin: direct
logit attribution where the origin is a logit. Only components that come strictly before a direction's residual have a
projection on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_facts import Direction as Kind
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.engine.autoencoder_input import autoencoder_input
from dst_grpc.errors import require
from dst_grpc.scalars.components import NodeComponent, OfflineLatent, Writes
from dst_grpc.scalars.edges import component_of_subnode
from dst_grpc.scalars.recompute import gradient_at, local_gradient
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.token_vectors import TokenVectors, stacked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.components.base import Writer
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps, Tap
    from dst_grpc.scalars.topology import Residual


@dataclass(frozen=True)
class Direction(ABC):
    """The direction that the writes of a task are projected on."""

    task: Task

    @abstractmethod
    def taps(self) -> Iterator[Tap]:
        """Taps that it is computed from, at all of the task's layers."""

    @abstractmethod
    def bind(self, model: ExplainedModel, recorded: RecordedTaps) -> BoundDirection:
        """The direction in one run."""

    def counts(self, component: Writer, layer: int | None) -> bool:
        """Whether what *component* writes at *layer* has an effect along it at all."""
        del component, layer
        return True


class BoundDirection(ABC):
    """A direction in one run."""

    @abstractmethod
    def at(self, layer: int | None) -> torch.Tensor:
        """The direction for components of *layer*: a vector per token, [T, d], or per latent, [Z, d]."""

    def project(self, writes: Writes, *, summed: bool) -> torch.Tensor:
        """Inner products of *writes* with it, token by token; if *summed*, of all heads together, on an axis of 1."""
        x = writes.project(self._seen_by(writes))
        return x.sum(dim=-1, keepdim=True) if summed else x

    def _seen_by(self, writes: Writes) -> TokenVectors:
        return TokenVectors.of(self.at(writes.run.layer))


class _ResidualGradient(Direction):
    """A gradient at one residual, the same for every layer."""

    @property
    def residual(self) -> Residual:
        """The last residual before the origin."""
        return self.task.topology.final_residual(self.task.trace)

    @abstractmethod
    def gradient(self, model: ExplainedModel, recorded: RecordedTaps) -> torch.Tensor:
        """[T, d]."""

    def vectors(self, recorded: RecordedTaps, gradient: torch.Tensor) -> TokenVectors:
        """*gradient* [T, d] as weights read it."""
        del recorded
        return TokenVectors.of(gradient)

    def bind(self, model: ExplainedModel, recorded: RecordedTaps) -> BoundDirection:
        """The gradient in one run."""
        gradient = self.gradient(model, recorded)
        return _BoundGradient(self, gradient, self.vectors(recorded, gradient))

    def counts(self, component: Writer, layer: int | None) -> bool:
        """A write affects only what comes strictly after it (Q4)."""
        return self.residual.is_after(component.location, layer)


@dataclass(frozen=True)
class _BoundGradient(BoundDirection):
    direction: _ResidualGradient
    gradient: torch.Tensor
    vectors: TokenVectors

    def at(self, layer: int | None) -> torch.Tensor:
        del layer
        return self.gradient

    def project(self, writes: Writes, *, summed: bool) -> torch.Tensor:
        return super().project(writes.before(self.direction.residual), summed=summed)

    def _seen_by(self, writes: Writes) -> TokenVectors:
        counts = self.direction.counts(writes.component, writes.run.layer)
        return self.vectors if counts else self.vectors.none


class FinalResidualGradient(_ResidualGradient):
    """The gradient at the last residual before the origin, from the run's backward pass."""

    def taps(self) -> Iterator[Tap]:
        """The gradient."""
        yield PassType.BACKWARD, self.residual.site

    def gradient(self, model: ExplainedModel, recorded: RecordedTaps) -> torch.Tensor:
        """[T, d]; 0 if the origin does not depend on the residual."""
        decoder = model.decoder
        found = recorded.gradients.get(self.residual.site)
        if found is not None:
            return found
        return torch.zeros(recorded.n_tokens, decoder.config.d_model, dtype=decoder.dtype, device=decoder.device)

    def vectors(self, recorded: RecordedTaps, gradient: torch.Tensor) -> TokenVectors:
        """*gradient*, read together with that of other runs if this one ran together with them."""
        return recorded.together.get(self.residual.site) or super().vectors(recorded, gradient)


class LocalTraceGradient(_ResidualGradient):
    """The gradient of a trace at the residual before its node, recomputed there; needs no backward pass."""

    def taps(self) -> Iterator[Tap]:
        """The residual, and the other residuals that a trace through V reads."""
        yield PassType.FORWARD, self.residual.site
        for site in self.task.topology.residuals_of_trace_value(require(self.task.trace)):
            yield PassType.FORWARD, site

    def gradient(self, model: ExplainedModel, recorded: RecordedTaps) -> torch.Tensor:
        """[T, d]."""
        rho = recorded.value(self.residual.site)
        return local_gradient(model, require(self.task.trace), rho, recorded.value, self.task.loss)


class SubnodeGradient(_ResidualGradient):
    """The gradient of one downstream subnode's attribution at the residual before it."""

    @cached_property
    def node(self) -> NodeIndex:
        """The subnode."""
        return require(self.task.node)

    @cached_property
    def downstream(self) -> NodeComponent:
        """The component that it is an entry of."""
        return component_of_subnode(self.node, self.task.topology)

    @property
    def residual(self) -> Residual:
        """The residual that the subnode is computed from."""
        return self.downstream.residual_before(require(self.node.layer_index))

    def taps(self) -> Iterator[Tap]:
        """The residual, and the gradient that weights the subnode."""
        yield PassType.FORWARD, self.residual.site
        yield PassType.BACKWARD, self.downstream.gradient_site(self.node.layer_index)

    def gradient(self, model: ExplainedModel, recorded: RecordedTaps) -> torch.Tensor:
        """[T, d]; 0 if the origin does not depend on the subnode."""
        layer, rho = require(self.node.layer_index), recorded.value(self.residual.site)
        weight = recorded.gradients.get(self.downstream.gradient_site(layer))
        if weight is None:
            return torch.zeros_like(rho)

        def attribution(x: torch.Tensor) -> torch.Tensor:
            ends = self.downstream.edge_end(model, layer, x, weight, detach_scale=self.task.detach_scale)
            return ends[self.node.tensor_indices]

        return gradient_at(attribution, rho)


class LatentRead(Direction):
    """The read direction of one traced latent: its gradient at the input of the layer's autoencoder."""

    def site(self, layer: int | None) -> Site:
        """The site of that input."""
        read = require(self.task.autoencoder_input)
        return self.task.topology.input_site(read, layer)

    def taps(self) -> Iterator[Tap]:
        """The autoencoders' inputs."""
        for layer in self.task.layers:
            yield PassType.FORWARD, self.site(layer)

    def bind(self, model: ExplainedModel, recorded: RecordedTaps) -> BoundDirection:
        """The latent in one run."""
        return _BoundLatentRead(self, model, recorded)


@dataclass(frozen=True)
class _BoundLatentRead(BoundDirection):
    direction: LatentRead
    model: ExplainedModel
    recorded: RecordedTaps

    def at(self, layer: int | None) -> torch.Tensor:
        task = self.direction.task
        latent = require(require(task.trace).node_index.tensor_indices[1])
        autoencoder = self.model.autoencoder(require(task.facts.autoencoder), layer)
        block = self.model.decoder.layers[require(layer)]

        def total(x: torch.Tensor) -> torch.Tensor:
            # Each token's latent depends only on its own input, so the gradient of their sum is that of each.
            return autoencoder.encode(autoencoder_input(autoencoder, x, block))[:, latent].sum()

        return gradient_at(total, self.recorded.value(self.direction.site(layer)))


class AllLatentReads(Direction):
    """The read directions of all latents, their rows of the encoder, at the tokens where each is active."""

    @cached_property
    def latents(self) -> OfflineLatent:
        """The latents, of which some are active."""
        return OfflineLatent.of_task(self.task)

    def taps(self) -> Iterator[Tap]:
        """Taps that the latents are computed from."""
        for layer in self.task.layers:
            yield from self.latents.taps(layer, Quantity.ACTIVATION)

    def bind(self, model: ExplainedModel, recorded: RecordedTaps) -> BoundDirection:
        """The latents in one run."""
        del recorded
        return _BoundLatentReads(self.latents, model)


@dataclass(frozen=True)
class _BoundLatentReads(BoundDirection):
    latents: OfflineLatent
    model: ExplainedModel

    def at(self, layer: int | None) -> torch.Tensor:
        return self.model.loaded(self.latents.node_type, layer).encoder

    def project(self, writes: Writes, *, summed: bool) -> torch.Tensor:
        """[T, U, Z] of all heads together, or [T, H, Z] of heads at a token."""
        found = writes.summed_write() if summed else writes.write()
        active = self.latents.bind(writes.run).activation() > 0
        return found @ self.at(writes.run.layer).t() * active.unsqueeze(1)


DIRECTIONS: dict[Kind, type[Direction]] = {
    Kind.FINAL_RESIDUAL_GRAD: FinalResidualGradient,
    Kind.FINAL_ACTIVATION_RESIDUAL_GRAD: LocalTraceGradient,
    Kind.SUBNODE_GRAD: SubnodeGradient,
    Kind.LATENT_READ: LatentRead,
    Kind.ALL_LATENT_READS: AllLatentReads,
}
"""The class of every kind of direction."""


def read_together(runs: Sequence[tuple[Iterable[Task], RecordedTaps]]) -> Sequence[Mapping[Site, TokenVectors]]:
    """For each of the *runs* that ran together, the gradients that its tasks project on, to be read at once."""
    found: list[dict[Site, TokenVectors]] = [{} for _ in runs]
    places, vectors = [], []
    for i, (tasks, recorded) in enumerate(runs):
        directions = (FinalResidualGradient(task) for task in tasks if task.facts.direction is Kind.FINAL_RESIDUAL_GRAD)
        for site in dict.fromkeys(one.residual.site for one in directions):
            if site in recorded.gradients:
                places.append((i, site))
                vectors.append(TokenVectors.of(recorded.gradients[site]))
    for (i, site), one in zip(places, stacked(vectors), strict=True):
        found[i][site] = one
    return found
