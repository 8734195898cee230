"""Base classes of components: the taps that a component is computed from, and its quantities at one layer of one run.

A component is what a derived scalar is about: neurons, attention heads, latents, residual vectors. A `Component` knows
its taps without weights, for the planner; bound to a layer of a run it is a `Bound`, which reads exactly those taps,
each when a quantity first needs it.
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
    from dst_grpc.scalars.token_vectors import TokenVectors
    from dst_grpc.scalars.topology import Residual, Topology

EVERY_TOKEN = slice(None)
"""All query tokens of a prompt."""


@dataclass(frozen=True, slots=True)
class LayerOfRun:
    """One layer of one run: its weights, and its recorded taps."""

    model: ExplainedModel
    recorded: RecordedTaps
    layer: int | None
    """None for a component that exists once per model."""

    @property
    def block(self) -> Layer:
        """The layer's weights and arithmetic."""
        return self.model.decoder.layers[require(self.layer)]

    def value(self, location: ActivationLocationType) -> torch.Tensor:
        """The recorded value of a location of the layer."""
        return self.recorded.value((location, self.layer))


@dataclass(frozen=True)
class Component(ABC):
    """A component of a model, at every token and, where it has them, every layer."""

    tap: ClassVar[ActivationLocationType | None] = None
    """The tap of its activation; None for a component that is not read from one tap."""
    topology: Topology
    """The order of computation in the model, with the inputs of its autoencoders."""

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The component that *task* is about."""
        return cls(task.topology)

    def site(self, layer: int | None) -> Site | None:
        """The site of its activation, or of the coefficient of its write, and of its gradient; None if there is
        none."""
        return None if self.tap is None else (self.tap, layer)

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """Sites that its activation is computed from."""
        site = self.site(layer)
        if site is not None:
            yield site

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """Further sites that its write is computed from: scales between the activation and the residual stream."""
        del layer
        yield from ()

    def taps(self, layer: int | None, quantity: Quantity) -> Iterator[Tap]:
        """Taps that *quantity* of it is computed from at *layer*, without those of a direction."""
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

    def activation(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """Its activation at *tokens*, with the axes that the type declares."""
        return self.value[tokens]

    def gradient(self) -> torch.Tensor:
        """Gradient of the origin at `value`; 0 where the origin does not depend on it."""
        return self.run.recorded.gradient(require(self.component.site(self.run.layer)), self.value)

    def act_times_grad(self) -> torch.Tensor:
        """`value` times its gradient, elementwise: attribution patching's first-order effect of setting it to 0."""
        return self.value * self.gradient()


class Writer(Component):
    """A component that adds vectors to the residual stream."""

    post_norm_scale: ClassVar[ActivationLocationType | None] = None
    """Tap of the scale of the post-norm that its write passes in models with post-norms; None if it passes none."""

    @property
    @abstractmethod
    def location(self) -> LocationWithinLayer | None:
        """Its place in the order within its layer; None if unknown."""

    @property
    def output_norm_scale(self) -> ActivationLocationType | None:
        """Tap of the scale of the post-norm that its write passes; None if it passes none."""
        return self.post_norm_scale if self.topology.architecture.post_norms else None

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """The scale of the post-norm that its write passes."""
        scale = self.output_norm_scale
        if scale is not None:
            yield scale, layer

    def write_factor(self, run: LayerOfRun) -> torch.Tensor | None:
        """Factor of its coefficients in the write, by token, [T, 1]; None if there is none.

        The norm's scale is a constant as recorded, so that the writes of all heads or neurons still add up.
        """
        scale = self.output_norm_scale
        return None if scale is None else run.value(scale).reciprocal()

    @abstractmethod
    def bind(self, run: LayerOfRun) -> Writes:
        """The component at one layer of one run."""


class Writes(Bound, ABC):
    """The writes of a component at one layer of one run. Biases belong to no component."""

    component: Writer

    @abstractmethod
    def write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """Write vectors at *tokens*, [T, ..., d]."""

    def summed_write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """Write vectors at *tokens* summed over the heads or neurons, [T, ..., d], without computing each."""
        return self.write(tokens)

    def before(self, residual: Residual) -> Self:
        """The part of the writes that is added to the residual stream before *residual*: all, where each entry writes
        once, and that before."""
        del residual
        return self

    @abstractmethod
    def write_norm(self) -> torch.Tensor:
        """Norms of the write vectors, with the sign of a scalar coefficient (Q6)."""

    @abstractmethod
    def project(self, direction: TokenVectors) -> torch.Tensor:
        """Inner products of the write vectors with *direction*, token by token."""


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
