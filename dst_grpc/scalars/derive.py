"""From recorded taps to a derived scalar: component, quantity, direction and form put together, one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from dst_grpc.domain.components import Component, Dimension, NodeType, PassType, PreOrPostAct
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Backward, Direction, Form, Quantity
from dst_grpc.engine.autoencoder_input import autoencoder_input, input_site
from dst_grpc.errors import require
from dst_grpc.scalars.components import Writer, offline_latents, writer
from dst_grpc.scalars.edges import in_edge, node_write, subnode_gradient
from dst_grpc.scalars.explained_model import ExplainedModel
from dst_grpc.scalars.recompute import activation, gradient_at, local_gradient
from dst_grpc.scalars.recorded_taps import RecordedTaps
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import Residual, residual_entering

if TYPE_CHECKING:
    from dst_grpc.domain.components import LocationWithinLayer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.components import HeadPairs

_L = ActivationLocationType
_VOCABULARY_CHUNK = 4096


@dataclass(frozen=True)
class Derivation:
    """One task on one run. `at` gives the tensors of a layer; nothing is kept between layers but the direction."""

    model: ExplainedModel
    recorded: RecordedTaps
    task: Task

    @torch.no_grad()
    def at(self, layer: int | None) -> dict[PassType, torch.Tensor]:
        """The tensors at one of the task's layers, by pass, in the axes that its row of facts declares."""
        found = {PassType.FORWARD: self._formed(self._forward(layer))}
        if PassType.BACKWARD in self.task.passes:
            found[PassType.BACKWARD] = self._formed(self._backward(layer))
        return found

    def _forward(self, layer: int | None) -> torch.Tensor:
        facts = self.task.facts
        if facts.component in _SPECIAL:
            return _SPECIAL[facts.component](self, layer)
        if facts.quantity.is_of_in_edges:
            found = in_edge(self.model, self.recorded, self.task, require(layer), self._node_write)
            return self._zeros(layer) if found is None else found
        if facts.quantity is Quantity.DIRECTION:
            return self._latent_read(require(layer))
        if facts.component is Component.TAP:
            return self._value((require(facts.tap), layer))
        parts = self._writer(layer, with_gradient=facts.quantity is Quantity.ACT_TIMES_GRAD)
        if facts.quantity is Quantity.WRITE:
            return parts.write() if facts.form is Form.FULL else parts.summed_write()
        if facts.quantity is Quantity.PROJECTION:
            return self._projected(parts, layer)
        return {
            Quantity.ACTIVATION: parts.activation,
            Quantity.WRITE_NORM: parts.write_norm,
            Quantity.ACT_TIMES_GRAD: parts.act_times_grad,
        }[facts.quantity]()

    def _backward(self, layer: int | None) -> torch.Tensor:
        facts = self.task.facts
        if facts.backward is Backward.RATIO:
            pairs = cast("HeadPairs", self._writer(layer, with_gradient=True))
            return pairs.activation_gradient() / pairs.value_norms()
        previous = facts.component is Component.PREVIOUS_RESIDUAL
        site = residual_entering(require(layer)).site if previous else (require(facts.tap), layer)
        return self.recorded.gradient(site, self._value(site))

    def _formed(self, x: torch.Tensor) -> torch.Tensor:
        form, quantity = self.task.facts.form, self.task.facts.quantity
        if form in {Form.SUM_HEADS, Form.FLATTENED_SUM_HEADS} and quantity is Quantity.PROJECTION:
            x = x.sum(dim=-1, keepdim=True) if self._direction_is_one else x
        if form in {Form.FLATTENED, Form.FLATTENED_SUM_HEADS}:
            t, u = torch.tril_indices(x.shape[0], x.shape[1], device=x.device)
            return x[t, u]
        if form is Form.SUM_KEYS:
            return x.sum(dim=1)
        return x.sum(dim=-1, keepdim=True) if form is Form.SUM_CHANNELS else x

    @property
    def _direction_is_one(self) -> bool:
        return self.task.facts.direction is not Direction.ALL_LATENT_READS

    def _value(self, site: Site) -> torch.Tensor:
        return self.recorded.value(site)

    def _writer(self, layer: int | None, *, with_gradient: bool) -> Writer:
        return writer(self.model, self.recorded, self.task.facts, layer, with_gradient=with_gradient)

    def _zeros(self, layer: int | None) -> torch.Tensor:
        """Zeros in the declared axes."""
        facts, decoder = self.task.facts, self.model.decoder
        of_latents = Dimension.AUTOENCODER_LATENTS in facts.dimensions
        latents = self.model.autoencoder(require(facts.autoencoder), require(layer)).n_latents if of_latents else 0
        dimensions = decoder.config.dimensions
        shape = [
            dimensions.size_of(axis, n_tokens=self.recorded.n_tokens, n_latents=latents) for axis in facts.dimensions
        ]
        return torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)

    # Directions

    @cached_property
    def _direction(self) -> tuple[torch.Tensor, Residual]:
        """The direction [T, d] and the residual that it lives at; the same for every layer."""
        task, recorded = self.task, self.recorded
        if task.facts.direction is Direction.SUBNODE_GRAD:
            return subnode_gradient(self.model, recorded, task)
        residual = task.topology.final_residual(task.trace)
        if task.facts.direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
            rho = self._value(residual.site)
            return local_gradient(self.model, require(task.trace), rho, recorded.value, task.loss), residual
        found = recorded.gradients.get(residual.site)
        d = self.model.decoder.config.d_model
        zeros = torch.zeros(recorded.n_tokens, d, dtype=self.model.decoder.dtype, device=self.model.decoder.device)
        return (zeros if found is None else found), residual

    def _projected(self, parts: Writer, layer: int | None) -> torch.Tensor:
        if self.task.facts.direction is Direction.ALL_LATENT_READS:
            return self._projected_on_all_reads(parts, require(layer))
        if self.task.facts.direction is Direction.LATENT_READ:
            return parts.project(self._latent_read(require(layer)))
        return self._projected_on(parts, parts.location, layer)

    def _projected_on(self, parts: Writer, location: LocationWithinLayer | None, layer: int | None) -> torch.Tensor:
        """Projection on the direction, 0 where the component does not come before it (strictly: Q4)."""
        direction, residual = self._direction
        if not residual.is_after(location, layer):
            direction = torch.zeros_like(direction)
        return parts.project(direction)

    def _latent_read(self, layer: int) -> torch.Tensor:
        """What the traced latent reads at each token, [T, width of its autoencoder's input]."""
        latent = require(require(self.task.trace).node_index.tensor_indices[1])
        node_type = require(self.task.facts.autoencoder)
        autoencoder = self.model.autoencoder(node_type, layer)
        kind, architecture = require(self.model.inputs.of(node_type)), self.model.topology.architecture
        block = self.model.decoder.layers[layer]

        def total(x: torch.Tensor) -> torch.Tensor:
            return autoencoder.encode(autoencoder_input(autoencoder, x, block))[:, latent].sum()

        return gradient_at(total, self._value(input_site(kind.type, layer, architecture)))

    def _projected_on_all_reads(self, parts: Writer, layer: int) -> torch.Tensor:
        """Projections on every latent's read, where the latent is active: [T, U, Z], or [T, H, Z] at a token."""
        node_type = require(self.task.facts.autoencoder)
        writes = parts.summed_write() if self.task.facts.is_flattened else parts.write()
        active = offline_latents(self.model, self.recorded, node_type, layer) > 0
        return writes @ self.model.autoencoder(node_type, layer).encoder.t() * active.unsqueeze(1)

    # Components of their own

    @cached_property
    def _node_write(self) -> torch.Tensor:
        return node_write(self.model, self.recorded, self.task)

    def _single_node(self, layer: int | None) -> torch.Tensor:
        """The one node's write, its projection, or, as a direction, the gradient of its attribution."""
        if self.task.facts.quantity is Quantity.DIRECTION:
            return self._direction[0]
        write = self._node_write
        if self.task.facts.quantity is Quantity.WRITE:
            return write
        direction, residual = self._direction
        precedes = residual.is_after(self.task.topology.location_of_node(require(self.task.node)), layer)
        projected = (write * direction).sum(dim=-1, keepdim=True)
        return projected if precedes else torch.zeros_like(projected)

    def _ones(self, layer: int | None) -> torch.Tensor:
        return self._zeros(layer) + 1

    def _previous_residual(self, layer: int | None) -> torch.Tensor:
        return self._value(residual_entering(require(layer)).site)

    def _vocabulary(self, _: int | None) -> torch.Tensor:
        """Pre-activation of one node for each token's embedding as the residual before its MLP: [T, V], equal rows."""
        index, decoder = require(self.task.fake_grad), self.model.decoder
        layer, entry = require(index.layer_index), require(index.tensor_indices[1])
        is_neuron = index.activation_location_type is _L.MLP_POST_ACT
        node_type = NodeType.MLP_NEURON if is_neuron else NodeType.MLP_AUTOENCODER_LATENT
        chunks = []
        for tokens in torch.split(torch.arange(decoder.config.vocab_size, device=decoder.device), _VOCABULARY_CHUNK):
            embedded = decoder.embed(tokens)
            pre = activation(self.model, node_type, layer, embedded, at=PreOrPostAct.PRE, detach_scale=False)
            chunks.append(pre[:, entry])
        return torch.cat(chunks).expand(self.recorded.n_tokens, -1)


_SPECIAL = {
    Component.ONE: Derivation._ones,  # noqa: SLF001  the class's own table
    Component.PREVIOUS_RESIDUAL: Derivation._previous_residual,  # noqa: SLF001
    Component.SINGLE_NODE: Derivation._single_node,  # noqa: SLF001
    Component.VOCABULARY: Derivation._vocabulary,  # noqa: SLF001
}
