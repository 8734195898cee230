"""What writes: every component of a model as coefficients and write vectors (specification, 9.4).

A component of one layer knows its activation, the gradient of it, and three linear things about its write into the
residual stream: the vectors themselves, their norms, and their projection on a direction. The last two never make the
vectors. Biases belong to no component.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Dimension, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Component, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.autoencoder_input import autoencoder_input
from dst_grpc.scalars.reads import (
    INPUT_LOCATION,
    WRITES_OF_NEURONS,
    component_taps,
    latent_location,
    offline_inputs,
    reads_head_pairs,
)
from dst_grpc.scalars.task import given, location_of_latents

if TYPE_CHECKING:
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.decoder import Layer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.evidence import Evidence
    from dst_grpc.scalars.recompute import Subject

_L = ActivationLocationType


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
        return self.layer.mlp_out

    def norms(self) -> torch.Tensor:
        """[F]."""
        return self.layer.mlp_out_norms

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, F]."""
        return direction @ self.layer.mlp_out.t()


@dataclass(frozen=True)
class HeadChannelRows(Rows):
    """WO, a row for each channel of each head."""

    layer: Layer

    def matrix(self) -> torch.Tensor:
        """[H c, d]."""
        return self.layer.attn_out.flatten(0, 1)

    def norms(self) -> torch.Tensor:
        """[H c]."""
        return _lengths(self.matrix())

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, H c]."""
        return direction @ self.matrix().t()


@dataclass(frozen=True)
class LatentRows(Rows):
    """D (specification, 7.4): the decoder, and for an autoencoder of neurons or heads' values Wout or WO after it."""

    autoencoder: Autoencoder
    neurons: Rows | None

    def matrix(self) -> torch.Tensor:
        """D [Z, d]."""
        decoder = self.autoencoder.decoder.t()
        return decoder if self.neurons is None else decoder @ self.neurons.matrix()

    def row(self, latent: int) -> torch.Tensor:
        """D[j], [d]."""
        vector = self.autoencoder.decoder[:, latent]
        return vector if self.neurons is None else vector @ self.neurons.matrix()

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
    write_scale: torch.Tensor | None = None
    """[T, 1]: what their writes are multiplied by besides; None = nothing."""

    @property
    def _written(self) -> torch.Tensor:
        """Coefficients of the rows, [T, K]."""
        return self.coefficients if self.write_scale is None else self.coefficients * self.write_scale

    def activation(self) -> torch.Tensor:
        """[T, K]."""
        return self.coefficients

    def activation_gradient(self) -> torch.Tensor:
        """[T, K]."""
        return given(self.gradient)

    def write(self) -> torch.Tensor:
        """[T, K, d]."""
        return self._written.unsqueeze(-1) * self.rows.matrix()

    def summed_write(self) -> torch.Tensor:
        """[T, d]."""
        return self._written @ self.rows.matrix()

    def write_norm(self) -> torch.Tensor:
        """[T, K], signed."""
        return self._written * self.rows.norms()

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, K]. Tokens whose direction is 0, such as all but the last under a loss, cost nothing."""
        used = direction.any(dim=-1).nonzero().squeeze(-1)
        result = torch.zeros_like(self.coefficients)
        result[used] = self._written[used] * self.rows.project(direction[used])
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
        return torch.einsum("uhc,hcd->uhd", given(self.values), self.layer.attn_out)

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
        per_head = torch.einsum("td,hcd->thc", direction[used], self.layer.attn_out)
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
        return torch.einsum("thc,hcd->thd", self.mixed, self.layer.attn_out)

    def write_norm(self) -> torch.Tensor:
        """[T, H]."""
        return _lengths(torch.einsum("hij,thj->thi", self.layer.attn_out_triangle, self.mixed))

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, H]."""
        per_head = torch.einsum("td,hcd->thc", direction, self.layer.attn_out)
        return (self.mixed * per_head).sum(dim=-1)


def _lengths(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


_ROWS_BEHIND = {
    DerivedScalarType.MLP_POST_ACT: NeuronRows,
    DerivedScalarType.ATTN_WEIGHTED_SUM_OF_VALUES: HeadChannelRows,
}
"""What an autoencoder's output passes on its way into the residual stream, where that is not what it reads."""


def writes_to_residual(kind: DerivedScalarType) -> bool:
    """Whether what an autoencoder of *kind* puts out ends up in the residual stream as it is, or by way of a matrix."""
    return kind in _ROWS_BEHIND or FACTS[kind].dimensions[-1] is Dimension.RESIDUAL_STREAM_CHANNELS


def latent_rows(subject: Subject, node_type: NodeType, layer: int | None) -> LatentRows:
    """D of the autoencoder of *layer* whose latents are *node_type*."""
    behind = _ROWS_BEHIND.get(given(subject.kinds.of(node_type)))
    rows = None if behind is None else behind(subject.decoder.layers[given(layer)])
    return LatentRows(subject.autoencoder(node_type, layer), rows)


def latent_write_scale(
    subject: Subject, evidence: Evidence, node_type: NodeType, layer: int | None
) -> torch.Tensor | None:
    """At what scale the latents of a spliced autoencoder write at each token, [T, 1]; None if at none."""
    autoencoder = subject.autoencoder(node_type, layer)
    if not autoencoder.has_write_scale:
        return None
    return autoencoder.write_scale(evidence.value((INPUT_LOCATION[given(subject.kinds.of(node_type))], layer)))


def offline_latents(subject: Subject, evidence: Evidence, node_type: NodeType, layer: int | None) -> torch.Tensor:
    """Latents [T, Z], or [P H, Z] of heads' writes, computed from recorded taps (specification, 7.3)."""
    return subject.autoencoder(node_type, layer).encode(_offline_input(subject, evidence, node_type, layer))


def _offline_input(subject: Subject, evidence: Evidence, node_type: NodeType, layer: int | None) -> torch.Tensor:
    """What the autoencoder reads, [T, n_in] or [P H, n_in]."""
    kind, block = subject.kinds.of(node_type), None if layer is None else subject.decoder.layers[layer]
    taps = [evidence.value((tap, layer)) for tap in offline_inputs(kind)]
    if reads_head_pairs(kind):
        return HeadPairs(taps[0], None, taps[1], given(block)).write_of_pairs().flatten(0, 1)
    if kind in WRITES_OF_NEURONS:
        return taps[0] @ given(block).mlp_out
    return autoencoder_input(subject.autoencoder(node_type, layer), taps[0], block)


def writer(
    subject: Subject, evidence: Evidence, facts: ScalarFacts, layer: int | None, *, with_gradient: bool
) -> Writer:
    """The component of *facts* at *layer*, reading from *evidence* only what its quantities need."""
    taps = component_taps(facts.component, facts, subject.kinds)

    def gradient(value: torch.Tensor, tap: ActivationLocationType) -> torch.Tensor | None:
        site: Site = (tap, layer)
        return evidence.gradient(site, value) if with_gradient else None

    if facts.component in {Component.RESIDUAL, Component.RESIDUAL_ERROR}:
        x = evidence.value((taps[0], layer))
        return ResidualVector(x, gradient(x, taps[0]), taps[0].location_within_layer)
    if facts.component in {Component.LATENT, Component.OFFLINE_LATENT}:
        return _latents(subject, evidence, facts, layer, with_gradient=with_gradient)
    block = subject.decoder.layers[given(layer)]
    if facts.component is Component.HEAD_AT_TOKEN:
        return HeadsAtToken(evidence.value((taps[0], layer)), block)
    if facts.component is Component.HEAD_PAIR:
        probs = evidence.value((taps[0], layer))
        return HeadPairs(probs, gradient(probs, taps[0]), evidence.values.get((taps[1], layer)), block)
    x = evidence.value((taps[0], layer))
    return Scaled(x, gradient(x, taps[0]), NeuronRows(block), LocationWithinLayer.MLP)


def _latents(
    subject: Subject, evidence: Evidence, facts: ScalarFacts, layer: int | None, *, with_gradient: bool
) -> Scaled:
    """The latents of an autoencoder, spliced or read offline."""
    node_type = facts.autoencoder or facts.node_type
    rows, location = latent_rows(subject, node_type, layer), location_of_latents(node_type, subject.kinds)
    if facts.component is Component.OFFLINE_LATENT:
        autoencoder = subject.autoencoder(node_type, layer)
        read = _offline_input(subject, evidence, node_type, layer)
        return Scaled(autoencoder.encode(read), None, rows, location, autoencoder.write_scale(read))
    site: Site = (latent_location(node_type, subject.kinds), layer)
    x = evidence.value(site)
    gradient = evidence.gradient(site, x) if with_gradient else None
    scale = latent_write_scale(subject, evidence, node_type, layer) if facts.is_of_writes else None
    return Scaled(x, gradient, rows, location, scale)
