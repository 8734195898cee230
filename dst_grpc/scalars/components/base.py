"""What every component is: the taps that it is computed from, and, at one layer of one run, what they say of it.

A component is the part of a model that a derived scalar is about: a neuron, an attention head, a latent, a residual
vector. A `Component` knows its taps without weights, for the planner; bound to a layer of a run it is a `Bound`, which
reads exactly those taps, each when a quantity first needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from dst_grpc.domain.components import LocationWithinLayer
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps, Tap
    from dst_grpc.scalars.task import Task
    from dst_grpc.scalars.topology import Topology


@dataclass(frozen=True, slots=True)
class LayerOfRun:
    """One layer of one run: its weights, and what was recorded at it."""

    model: ExplainedModel
    recorded: RecordedTaps
    layer: int | None
    """None for what exists once per model."""

    @property
    def block(self) -> Layer:
        """The layer's weights and arithmetic."""
        return self.model.decoder.layers[require(self.layer)]

    def value(self, location: ActivationLocationType) -> torch.Tensor:
        """What was recorded at a location of the layer."""
        return self.recorded.value((location, self.layer))


@dataclass(frozen=True)
class Component(ABC):
    """A part of a model, at every token and, where it has them, every layer."""

    tap: ClassVar[ActivationLocationType | None] = None
    """Where its activation is tapped, of components that have one tap; None of the others."""
    topology: Topology
    """The model's parts in order, with what the autoencoders read."""

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The component that *task* is about."""
        return cls(task.topology)

    def site(self, layer: int | None) -> Site | None:
        """Where its activation, or the coefficient of its write, is tapped, and its gradient; None if nowhere."""
        return None if self.tap is None else (self.tap, layer)

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """What its activation is computed from."""
        site = self.site(layer)
        if site is not None:
            yield site

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """What its write takes besides: the scales that it is multiplied by on its way to the residual stream."""
        del layer
        yield from ()

    def taps(self, layer: int | None, quantity: Quantity) -> Iterator[Tap]:
        """What *quantity* of it is computed from at *layer*, besides any direction."""
        if quantity is Quantity.ACT_TIMES_GRAD:
            site = require(self.site(layer))
            yield PassType.FORWARD, site
            yield PassType.BACKWARD, site
            return
        for site in self.activation_sites(layer):
            yield PassType.FORWARD, site
        if quantity.is_of_writes:
            for site in self.scale_sites(layer):
                yield PassType.FORWARD, site

    @abstractmethod
    def bind(self, run: LayerOfRun) -> Bound:
        """The component at one layer of one run."""


@dataclass(frozen=True)
class Bound:
    """A component at one layer of one run."""

    component: Component
    run: LayerOfRun

    @cached_property
    def value(self) -> torch.Tensor:
        """Its activation, or the coefficient of its write before any scale, as tapped."""
        return self.run.recorded.value(require(self.component.site(self.run.layer)))

    def activation(self) -> torch.Tensor:
        """Its activation, in the axes that the type declares."""
        return self.value

    def gradient(self) -> torch.Tensor:
        """Gradient of the origin at `value`; 0 where the origin does not depend on it."""
        return self.run.recorded.gradient(require(self.component.site(self.run.layer)), self.value)

    def act_times_grad(self) -> torch.Tensor:
        """`value` times its gradient, elementwise: attribution patching's first-order effect of setting it to 0."""
        return self.value * self.gradient()


class Writer(Component):
    """A component that adds vectors to the residual stream."""

    post_norm_scale: ClassVar[ActivationLocationType | None] = None
    """Where models with post-norms tap the scale of the one that its write passes; None if it passes none."""

    @property
    @abstractmethod
    def location(self) -> LocationWithinLayer | None:
        """Its place in the order within its layer; None where unknown."""

    @property
    def output_norm_scale(self) -> ActivationLocationType | None:
        """Where the scale of the norm is tapped that its write passes; None if it passes none."""
        return self.post_norm_scale if self.topology.architecture.post_norms else None

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """The scale of the norm that its write passes."""
        scale = self.output_norm_scale
        if scale is not None:
            yield scale, layer

    def write_factor(self, run: LayerOfRun) -> torch.Tensor | None:
        """What its coefficients are multiplied by where it writes, token by token, [T, 1]; None if by nothing.

        The norm's scale is a constant as recorded, so that the writes of all heads or neurons still add up.
        """
        scale = self.output_norm_scale
        return None if scale is None else run.value(scale).reciprocal()

    @abstractmethod
    def bind(self, run: LayerOfRun) -> Writes:
        """The component at one layer of one run."""


class Writes(Bound, ABC):
    """What a component writes at one layer of one run. Biases belong to no component."""

    component: Writer

    @abstractmethod
    def write(self) -> torch.Tensor:
        """Write vectors [T, ..., d]."""

    def summed_write(self) -> torch.Tensor:
        """Write vectors summed over the heads or neurons, [T, ..., d], without making them apart."""
        return self.write()

    @abstractmethod
    def write_norm(self) -> torch.Tensor:
        """Norms of the write vectors, with the sign of a scalar coefficient (Q6)."""

    @abstractmethod
    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """Inner products of the write vectors with *direction* [T, d], token by token."""


COMPONENTS: dict[Kind, type[Component]] = {}
"""The class of every member of the domain's enum; each module of this package registers its own."""

_C = TypeVar("_C", bound=type[Component])


def registered(kind: Kind) -> Callable[[_C], _C]:
    """Make the decorated class that of *kind*."""

    def register(component: _C) -> _C:
        COMPONENTS[kind] = component
        return component

    return register


def times(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """*x* [T, ...] times *factor* [T, 1], token by token; unchanged without one."""
    return x if factor is None else (x * factor.reshape(-1, *(1,) * (x.dim() - 1))).to(x.dtype)
