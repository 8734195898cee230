"""What writes: every component of a model as coefficients and write vectors (specification, 9.4).

A component of one layer knows its activation, the gradient of it, and three linear things about its write into the
residual stream: the vectors themselves, their norms, and their projection on a direction. The last two never make the
vectors. Biases belong to no component.

Where a layer norms what it adds to the residual, the write of each component passes that norm too, its scale a
constant as recorded, so that the writes of all heads or neurons still add up. Writes being linear, the norm's gain is
in the rows (`unit_write`), and its scale in the coefficients (`write_factor`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Component, LocationWithinLayer
from dst_grpc.domain.scalar_facts import ScalarFacts
from dst_grpc.engine.autoencoder_input import autoencoder_input
from dst_grpc.engine.layer import unit_read, unit_write
from dst_grpc.errors import require
from dst_grpc.scalars.reads import component_sites, offline_inputs, output_scale
from dst_grpc.scalars.rows import NeuronRows, Rows, latent_rows

if TYPE_CHECKING:
    from dst_grpc.domain.components import NodeType
    from dst_grpc.engine.layer import Layer
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps


class Writer(ABC):
    """A component at one layer."""

    location: LocationWithinLayer | None
    """Its place within the layer; None where unknown."""

    @abstractmethod
    def activation(self) -> torch.Tensor:
        """Its activation, whatever shape the type declares."""

    @abstractmethod
    def activation_gradient(self) -> torch.Tensor:
        """Gradient of what `act_times_grad` multiplies."""

    def act_times_grad(self) -> torch.Tensor:
        """Activation times its gradient, elementwise."""
        return self.activation() * self.activation_gradient()

    @abstractmethod
    def write(self) -> torch.Tensor:
        """Write vectors [T, ..., d]."""

    def summed_write(self) -> torch.Tensor:
        """Write vectors summed over heads or neurons, [T, ..., d], without making them apart."""
        return self.write()

    @abstractmethod
    def write_norm(self) -> torch.Tensor:
        """Norms of the write vectors, with the sign of a scalar coefficient (Q6)."""

    @abstractmethod
    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """Inner products of the write vectors with *direction* [T, d], token by token."""


@dataclass(frozen=True)
class ResidualVector(Writer):
    """A residual vector x [T, d], which is its own write."""

    x: torch.Tensor
    gradient: torch.Tensor | None
    location: LocationWithinLayer | None

    def activation(self) -> torch.Tensor:
        """The vector [T, d]."""
        return self.x

    def activation_gradient(self) -> torch.Tensor:
        """[T, d]."""
        return require(self.gradient)

    def write(self) -> torch.Tensor:
        """The vector [T, d]."""
        return self.x

    def write_norm(self) -> torch.Tensor:
        """|x[t]| [T, 1]."""
        return torch.linalg.vector_norm(self.x, dim=-1, keepdim=True)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, 1]."""
        return (self.x * direction).sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Scaled(Writer):
    """K things with a scalar coefficient each: neurons, latents, reconstruction errors of neurons."""

    coefficients: torch.Tensor
    """[T, K]."""
    gradient: torch.Tensor | None
    rows: Rows
    location: LocationWithinLayer | None

    def activation(self) -> torch.Tensor:
        """[T, K]."""
        return self.coefficients

    def activation_gradient(self) -> torch.Tensor:
        """[T, K]."""
        return require(self.gradient)

    def write(self) -> torch.Tensor:
        """[T, K, d]."""
        return self.coefficients.unsqueeze(-1) * self.rows.matrix()

    def summed_write(self) -> torch.Tensor:
        """[T, d]."""
        return self.rows.combined(self.coefficients)

    def write_norm(self) -> torch.Tensor:
        """[T, K], signed."""
        return self.coefficients * self.rows.norms()

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, K]. Tokens whose direction is 0, such as all but the last under a loss, cost nothing."""
        used = direction.any(dim=-1).nonzero().squeeze(-1)
        result = torch.zeros_like(self.coefficients)
        result[used] = self.coefficients[used] * self.rows.project(direction[used])
        return result


@dataclass(frozen=True)
class HeadPairs(Writer):
    """Attention heads at pairs of tokens: A[t,u,h] v[u,h] WO[h]."""

    probs: torch.Tensor
    """A [T, U, H]."""
    gradient: torch.Tensor | None
    values: torch.Tensor | None
    """v [U, H, c]."""
    layer: Layer
    location: LocationWithinLayer = LocationWithinLayer.ATTN

    def activation(self) -> torch.Tensor:
        """A v [T, U, H, c]."""
        return self.probs.unsqueeze(-1) * require(self.values)

    def activation_gradient(self) -> torch.Tensor:
        """Gradient of A [T, U, H]."""
        return require(self.gradient)

    def act_times_grad(self) -> torch.Tensor:
        """A times its gradient [T, U, H]."""
        return self.probs * self.activation_gradient()

    def _value_writes(self) -> torch.Tensor:
        """v[u,h] WO[h], [U, H, d]."""
        raw = torch.einsum("uhc,hcd->uhd", require(self.values), self.layer.attn_out)
        return unit_write(raw, self.layer.attn_post_norm)

    def write(self) -> torch.Tensor:
        """[T, U, H, d]."""
        return self.probs.unsqueeze(-1) * self._value_writes()

    def write_of_pairs(self) -> torch.Tensor:
        """[P, H, d], without making the upper triangle."""
        t, u = torch.tril_indices(*self.probs.shape[:2], device=self.probs.device)
        return self.probs[t, u].unsqueeze(-1) * self._value_writes()[u]

    def summed_write(self) -> torch.Tensor:
        """[T, U, d]."""
        return torch.einsum("tuh,uhd->tud", self.probs, self._value_writes())

    def value_norms(self) -> torch.Tensor:
        """|v[u,h] WO[h]|, [U, H]."""
        return _lengths(torch.einsum("hij,uhj->uhi", self.layer.attn_out_triangle, require(self.values)))

    def write_norm(self) -> torch.Tensor:
        """[T, U, H]."""
        return self.probs * self.value_norms()

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, U, H]: the direction is brought to each head's channels before it meets the values."""
        used = direction.any(dim=-1).nonzero().squeeze(-1)
        direction = unit_read(direction[used], self.layer.attn_post_norm)
        per_head = torch.einsum("td,hcd->thc", direction, self.layer.attn_out)
        result = torch.zeros_like(self.probs)
        result[used] = self.probs[used] * torch.einsum("thc,uhc->tuh", per_head, require(self.values))
        return result


@dataclass(frozen=True)
class HeadsAtToken(Writer):
    """Attention heads at a query token, summed over keys: o[t,h] WO[h]."""

    mixed: torch.Tensor
    """o [T, H, c]."""
    layer: Layer
    location: LocationWithinLayer = LocationWithinLayer.ATTN

    def activation(self) -> torch.Tensor:
        """[T, H, c]."""
        return self.mixed

    def activation_gradient(self) -> torch.Tensor:
        """No type asks for it."""
        return require(None)

    def write(self) -> torch.Tensor:
        """[T, H, d]."""
        raw = torch.einsum("thc,hcd->thd", self.mixed, self.layer.attn_out)
        return unit_write(raw, self.layer.attn_post_norm)

    def write_norm(self) -> torch.Tensor:
        """[T, H]."""
        return _lengths(torch.einsum("hij,thj->thi", self.layer.attn_out_triangle, self.mixed))

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, H]."""
        direction = unit_read(direction, self.layer.attn_post_norm)
        per_head = torch.einsum("td,hcd->thc", direction, self.layer.attn_out)
        return (self.mixed * per_head).sum(dim=-1)


def _lengths(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def offline_latents(
    model: ExplainedModel, recorded: RecordedTaps, node_type: NodeType, layer: int | None
) -> torch.Tensor:
    """Latents [T, Z], or [P H, Z] of heads' writes, computed from recorded taps (specification, 7.3)."""
    return model.autoencoder(node_type, layer).encode(_offline_input(model, recorded, node_type, layer))


def _offline_input(
    model: ExplainedModel, recorded: RecordedTaps, node_type: NodeType, layer: int | None
) -> torch.Tensor:
    """What the autoencoder reads, [T, n_in] or [P H, n_in]."""
    kind, block = require(model.inputs.of(node_type)), None if layer is None else model.decoder.layers[layer]
    component, sites = kind.offline_component, offline_inputs(kind, model.topology, layer)
    read = recorded.value(sites[0])
    if component is None:
        return autoencoder_input(model.autoencoder(node_type, layer), read, block)
    read = times(read, write_factor(model, recorded, component, node_type, layer))
    if component is Component.HEAD_PAIR:
        return HeadPairs(read, None, recorded.value(sites[1]), require(block)).write_of_pairs().flatten(0, 1)
    return NeuronRows(require(block)).combined(read)


def write_factor(
    model: ExplainedModel,
    recorded: RecordedTaps,
    component: Component,
    node_type: NodeType,
    layer: int | None,
    read: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """What a component's coefficients are multiplied by where it writes, token by token: [T, 1]; None if by nothing.

    The inverse of the recorded scale of the norm that its write passes and, for latents of an autoencoder that scales
    its inputs, the scale of each of them. *node_type* is the latents'; *read* what they are computed from, if offline.
    """
    kind = model.inputs.of(node_type)
    tap = output_scale(component, kind, model.topology.architecture)
    factor = None if tap is None else recorded.value((tap, layer)).reciprocal()
    if not component.is_of_latents or not model.autoencoder(node_type, layer).has_write_scale:
        return factor
    if read is None:
        read = recorded.value((require(kind).tap, layer))
    scale = model.autoencoder(node_type, layer).write_scale(read)
    return scale if factor is None or scale is None else factor * scale


def times(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """*x* [T, ...] times *factor* [T, 1], token by token; unchanged without one."""
    return x if factor is None else (x * factor.reshape(-1, *(1,) * (x.dim() - 1))).to(x.dtype)


def writer(
    model: ExplainedModel, recorded: RecordedTaps, facts: ScalarFacts, layer: int | None, *, with_gradient: bool
) -> Writer:
    """The component of *facts* at *layer*, reading from *recorded* only what its quantities need."""
    node_type, component = facts.autoencoder or facts.node_type, facts.component
    sites = component_sites(component, facts, model.topology, layer)
    factor = read = None
    if component is Component.OFFLINE_LATENT:
        read = _offline_input(model, recorded, node_type, layer)
    if facts.is_of_writes:
        factor = write_factor(model, recorded, component, node_type, layer, read)

    found = recorded.value(sites[0]) if read is None else model.autoencoder(node_type, layer).encode(read)
    x, gradient = times(found, factor), None
    if with_gradient:
        gradient = times(recorded.gradient(sites[0], x), None if factor is None else factor.reciprocal())
    if component in {Component.RESIDUAL, Component.RESIDUAL_ERROR}:
        return ResidualVector(x, gradient, sites[0][0].location_within_layer)
    if component.is_of_latents:
        location = model.topology.location_of_latents(node_type)
        return Scaled(x, gradient, latent_rows(model, node_type, layer), location)
    block = model.decoder.layers[require(layer)]
    if component is Component.HEAD_AT_TOKEN:
        return HeadsAtToken(x, block)
    if component is Component.HEAD_PAIR:
        return HeadPairs(x, gradient, recorded.values.get(sites[1]), block)
    return Scaled(x, gradient, NeuronRows(block), LocationWithinLayer.MLP)
