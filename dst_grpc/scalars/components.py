"""What writes: every component of a model as coefficients and write vectors (specification, 9.4).

A component of one layer knows its activation, the gradient of it, and three linear things about its write into the
residual stream: the vectors themselves, their norms, and their projection on a direction. The last two never make the
vectors. Biases belong to no component.

Where a layer norms what it adds to the residual, the write of each component passes that norm too, its scale a
constant as recorded, so that the writes of all heads or neurons still add up. Writes being linear, they take the norm's
gain from `unit_write`, and the scale as a divisor of the coefficients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import LocationWithinLayer, NodeType
from dst_grpc.domain.scalar_facts import Component, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.layer import unit_read, unit_write
from dst_grpc.scalars.reads import component_taps, offline_component, offline_inputs, output_scale
from dst_grpc.scalars.topology import given

if TYPE_CHECKING:
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.layer import Layer
    from dst_grpc.scalars.evidence import Evidence
    from dst_grpc.scalars.recompute import Subject


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
        return given(self.gradient)

    def write(self) -> torch.Tensor:
        """The vector [T, d]."""
        return self.x

    def write_norm(self) -> torch.Tensor:
        """|x[t]| [T, 1]."""
        return torch.linalg.vector_norm(self.x, dim=-1, keepdim=True)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, 1]."""
        return (self.x * direction).sum(dim=-1, keepdim=True)


class Rows(ABC):
    """The write vectors, at coefficient 1, of K things: a matrix [K, d] that need not exist."""

    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """The rows [K, d]."""

    @abstractmethod
    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """What *coefficients* [..., K] make of the rows together, [..., d]."""

    @abstractmethod
    def norms(self) -> torch.Tensor:
        """Their lengths [K]."""

    @abstractmethod
    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """*direction* [T, d] on each row: [T, K]."""


@dataclass(frozen=True)
class NeuronRows(Rows):
    """Wout."""

    layer: Layer

    def matrix(self) -> torch.Tensor:
        """Wout [F, d]."""
        return unit_write(self.layer.mlp_out, self.layer.mlp_post_norm)

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        return unit_write(coefficients @ self.layer.mlp_out, self.layer.mlp_post_norm)

    def norms(self) -> torch.Tensor:
        """[F]."""
        return self.layer.mlp_out_norms

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, F]."""
        return unit_read(direction, self.layer.mlp_post_norm) @ self.layer.mlp_out.t()


@dataclass(frozen=True)
class LatentRows(Rows):
    """D (specification, 7.4): the decoder, and for an autoencoder of neurons Wout after it."""

    autoencoder: Autoencoder
    neurons: NeuronRows | None

    def matrix(self) -> torch.Tensor:
        """D [Z, d]."""
        decoder = self.autoencoder.decoder.t()
        return decoder if self.neurons is None else self.neurons.combined(decoder)

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]."""
        inputs = coefficients @ self.autoencoder.decoder.t()
        return inputs if self.neurons is None else self.neurons.combined(inputs)

    def row(self, latent: int) -> torch.Tensor:
        """D[j], [d]."""
        vector = self.autoencoder.decoder[:, latent]
        return vector if self.neurons is None else self.neurons.combined(vector)

    def rows(self, latents: torch.Tensor) -> torch.Tensor:
        """D of some *latents* [n], [n, d]."""
        vectors = self.autoencoder.decoder[:, latents].t()
        return vectors if self.neurons is None else self.neurons.combined(vectors)

    def norms(self) -> torch.Tensor:
        """[Z]."""
        return torch.linalg.vector_norm(self.matrix(), dim=1)

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, Z], through the neurons rather than through D."""
        inputs = direction if self.neurons is None else self.neurons.project(direction)
        return inputs @ self.autoencoder.decoder


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
        return given(self.gradient)

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
        return self.probs.unsqueeze(-1) * given(self.values)

    def activation_gradient(self) -> torch.Tensor:
        """Gradient of A [T, U, H]."""
        return given(self.gradient)

    def act_times_grad(self) -> torch.Tensor:
        """A times its gradient [T, U, H]."""
        return self.probs * self.activation_gradient()

    def _value_writes(self) -> torch.Tensor:
        """v[u,h] WO[h], [U, H, d]."""
        raw = torch.einsum("uhc,hcd->uhd", given(self.values), self.layer.attn_out)
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
        return _lengths(torch.einsum("hij,uhj->uhi", self.layer.attn_out_triangle, given(self.values)))

    def write_norm(self) -> torch.Tensor:
        """[T, U, H]."""
        return self.probs * self.value_norms()

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, U, H]: the direction is brought to each head's channels before it meets the values."""
        used = direction.any(dim=-1).nonzero().squeeze(-1)
        direction = unit_read(direction[used], self.layer.attn_post_norm)
        per_head = torch.einsum("td,hcd->thc", direction, self.layer.attn_out)
        result = torch.zeros_like(self.probs)
        result[used] = self.probs[used] * torch.einsum("thc,uhc->tuh", per_head, given(self.values))
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
        return given(None)

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


def latent_rows(subject: Subject, node_type: NodeType, layer: int) -> LatentRows:
    """D of the autoencoder of *layer* whose latents are *node_type*."""
    of_neurons = subject.kinds.of(node_type) is DerivedScalarType.MLP_POST_ACT
    neurons = NeuronRows(subject.decoder.layers[layer]) if of_neurons else None
    return LatentRows(subject.autoencoder(node_type, layer), neurons)


def offline_latents(subject: Subject, evidence: Evidence, node_type: NodeType, layer: int) -> torch.Tensor:
    """Latents [T, Z], or [P H, Z] of heads' writes, computed from recorded taps (specification, 7.3)."""
    kind, block = subject.kinds.of(node_type), subject.decoder.layers[layer]
    component = offline_component(kind)
    taps = offline_inputs(kind, subject.topology.architecture)
    read = evidence.value((taps[0], layer))
    if component is not None:
        read = over_scale(read, recorded_scale(subject, evidence, component, kind, layer))
    if component is Component.HEAD_PAIR:
        read = HeadPairs(read, None, evidence.value((taps[1], layer)), block).write_of_pairs().flatten(0, 1)
    elif component is Component.NEURON:
        read = NeuronRows(block).combined(read)
    return subject.autoencoder(node_type, layer).encode(read)


def recorded_scale(
    subject: Subject, evidence: Evidence, component: Component, kind: DerivedScalarType | None, layer: int
) -> torch.Tensor | None:
    """Divisor [T, 1] of the norm that a component's write passes, as recorded; None if it passes none.

    *kind* is what the autoencoder of a latent reads.
    """
    tap = output_scale(component, kind, subject.topology.architecture)
    return None if tap is None else evidence.value((tap, layer))


def over_scale(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """*x* [T, ...] over *scale* [T, 1], token by token; unchanged without one."""
    return x if scale is None else (x / _aligned(scale, x)).to(x.dtype)


def _aligned(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *(1,) * (x.dim() - 1))


def writer(
    subject: Subject, evidence: Evidence, facts: ScalarFacts, layer: int | None, *, with_gradient: bool
) -> Writer:
    """The component of *facts* at *layer*, reading from *evidence* only what its quantities need."""
    node_type = facts.autoencoder or facts.node_type
    taps = component_taps(facts.component, facts, subject.topology)
    scale = None
    if facts.is_of_writes and layer is not None:
        scale = recorded_scale(subject, evidence, facts.component, subject.kinds.of(node_type), layer)

    def coefficient() -> torch.Tensor:
        return over_scale(evidence.value((taps[0], layer)), scale)

    def gradient(of: torch.Tensor) -> torch.Tensor | None:
        """Gradient of the coefficient, in the shape *of* it."""
        if not with_gradient:
            return None
        found = evidence.gradient((taps[0], layer), of)
        return found if scale is None else (found * _aligned(scale, found)).to(found.dtype)

    if facts.component in {Component.RESIDUAL, Component.RESIDUAL_ERROR}:
        x = coefficient()
        return ResidualVector(x, gradient(x), taps[0].location_within_layer)
    block = subject.decoder.layers[given(layer)]
    if facts.component is Component.HEAD_AT_TOKEN:
        return HeadsAtToken(coefficient(), block)
    if facts.component is Component.HEAD_PAIR:
        x = coefficient()
        return HeadPairs(x, gradient(x), evidence.values.get((taps[1], layer)), block)
    if facts.component in {Component.NEURON, Component.NEURON_ERROR}:
        x = coefficient()
        return Scaled(x, gradient(x), NeuronRows(block), LocationWithinLayer.MLP)
    rows, location = latent_rows(subject, node_type, given(layer)), subject.topology.location_of_latents(node_type)
    if facts.component is Component.OFFLINE_LATENT:
        latents = offline_latents(subject, evidence, node_type, given(layer))
        return Scaled(over_scale(latents, scale), None, rows, location)
    x = coefficient()
    return Scaled(x, gradient(x), rows, location)
