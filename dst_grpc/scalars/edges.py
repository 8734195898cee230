"""Edges: derivatives of downstream activations along the write of one upstream node.

An edge is a derivative of a recomputation at the recorded residual. Edges from one upstream node into many downstream
nodes are derivatives along the node's write (here); edges from many upstream nodes into one downstream node are
projections of their writes on its gradient (`directions`). See the specification, 10.12 and 10.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.errors import require
from dst_grpc.scalars.components import LayerOfRun, NodeComponent, SingleNode, component_of_nodes, component_of_task
from dst_grpc.scalars.components.attention_head import heads_through
from dst_grpc.scalars.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.scalars.components.base import Writes
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps, Tap
    from dst_grpc.scalars.topology import Topology


@dataclass(frozen=True)
class InEdges:
    """The edges from one upstream node into all entries of one downstream component."""

    task: Task

    @cached_property
    def upstream(self) -> SingleNode:
        """The upstream node."""
        return SingleNode.of_task(self.task)

    @cached_property
    def downstream(self) -> NodeComponent:
        """The downstream component."""
        return cast("NodeComponent", component_of_task(self.task))

    @property
    def is_weighed(self) -> bool:
        """Whether each derivative is weighted by the gradient of the downstream activation."""
        return self.task.facts.quantity is Quantity.IN_EDGE_ATTRIBUTION

    def reach(self, layer: int) -> bool:
        """Whether the upstream node comes before the residual that the downstream component of *layer* is computed
        from."""
        residual = self.downstream.residual_before(layer)
        return residual.is_after(self.upstream.location, self.upstream.node.layer_index)

    def taps(self) -> Iterator[Tap]:
        """Taps that they are computed from.

        None of layers that the node does not reach: a gradient there would make the backward pass longer.
        """
        for layer in self.task.layers:
            if self.reach(require(layer)):
                yield PassType.FORWARD, self.downstream.residual_before(require(layer)).site
                if self.is_weighed:
                    yield PassType.BACKWARD, self.downstream.gradient_site(layer)
        yield from self.upstream.taps(self.upstream.node.layer_index, Quantity.WRITE)

    def bind(self, model: ExplainedModel, recorded: RecordedTaps) -> BoundInEdges:
        """The edges in one run."""
        return BoundInEdges(self, model, recorded)


@dataclass(frozen=True)
class BoundInEdges:
    """The edges in one run."""

    edges: InEdges
    model: ExplainedModel
    recorded: RecordedTaps

    @cached_property
    def _upstream(self) -> Writes:
        """The upstream node in the run."""
        upstream = self.edges.upstream
        return upstream.bind(LayerOfRun(self.model, self.recorded, upstream.node.layer_index))

    def at(self, layer: int) -> torch.Tensor:
        """Derivatives of the downstream activations of *layer* along the write: [T, U, H], [T, F] or [T, Z].

        0 in layers that the node does not reach, or where the origin does not depend on the activation.
        """
        edges = self.edges
        downstream, gradient = edges.downstream, None
        if not edges.reach(layer):
            return self._zeros(layer)
        if edges.is_weighed:
            gradient = self.recorded.gradients.get(downstream.gradient_site(layer))
            if gradient is None:
                return self._zeros(layer)
        # Edge activations hold the scale of the norm constant; for attributions the config decides.
        detach_scale = edges.task.detach_scale if edges.is_weighed else True

        def end(rho: torch.Tensor) -> torch.Tensor:
            return downstream.edge_end(self.model, layer, rho, gradient, detach_scale=detach_scale)

        residual = downstream.residual_before(layer)
        return directional_derivative(end, self.recorded.value(residual.site), self._upstream.before(residual).write())

    def _zeros(self, layer: int) -> torch.Tensor:
        decoder, facts = self.model.decoder, self.edges.task.facts
        latents = 0 if facts.autoencoder is None else self.model.autoencoder(facts.autoencoder, layer).n_latents
        sizes = decoder.config.dimensions
        shape = [sizes.size_of(axis, n_tokens=self.recorded.n_tokens, n_latents=latents) for axis in facts.dimensions]
        return torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)


def component_of_subnode(node: NodeIndex, topology: Topology) -> NodeComponent:
    """The component that a downstream subnode is an entry of: heads reached through query, key or value; neurons;
    latents."""
    if isinstance(node, AttnSubNodeIndex):
        return heads_through(require(node.q_k_or_v.facts.head_input))(topology)
    return require(component_of_nodes(node.node_type, topology))


def directional_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Derivative of *function* at *x* along *direction*; detached terms are constants."""
    with torch.enable_grad():
        attached = x.detach().requires_grad_()
        value = function(attached)
        # Two backward passes: the gradient is linear in its weights, and its derivative with respect to them is the one
        # along x.
        weights = torch.zeros_like(value, requires_grad=True)
        (gradient,) = torch.autograd.grad(value, attached, weights, create_graph=True)
        (derivative,) = torch.autograd.grad(gradient, weights, direction)
    return derivative
