"""The write of the node that `node_index_for_attribution` names, at its own token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import LocationWithinLayer
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import LayerOfRun, Writer, registered
from dst_grpc.scalars.components.nodes import NodeComponent, component_of_nodes
from dst_grpc.scalars.components.residual import ResidualWrites

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.task import Task
    from dst_grpc.scalars.topology import Residual


@registered(Kind.SINGLE_NODE)
@dataclass(frozen=True)
class SingleNode(Writer):
    """One neuron, head or latent at its token; its layer is the node's."""

    node: NodeIndex

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The node of *task*."""
        return cls(task.topology, require(task.node))

    @property
    def location(self) -> LocationWithinLayer:
        """The node's."""
        return self.topology.location_of_node(self.node)

    @property
    def of_nodes(self) -> NodeComponent:
        """The component that the node is an entry of."""
        return require(component_of_nodes(self.node.node_type, self.topology))

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """Sites that the component is computed from."""
        return self.of_nodes.activation_sites(layer)

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """Further sites that the component's writes are computed from."""
        return self.of_nodes.scale_sites(layer)

    def bind(self, run: LayerOfRun) -> SingleNodeWrites:
        """The node's write in one run."""
        return SingleNodeWrites(self, run)


@dataclass(frozen=True)
class SingleNodeWrites(ResidualWrites):
    """w [T, d]: the node's write at its token, elsewhere 0."""

    component: SingleNode
    until: Residual | None = None
    """The residual that the write comes before; None for any."""

    def before(self, residual: Residual) -> Self:
        """The part of the write that comes before *residual*."""
        return replace(self, until=residual)

    @cached_property
    def value(self) -> torch.Tensor:
        """[T, d]."""
        run, indices = self.run, self.component.node.tensor_indices
        entries = torch.tensor([indices], device=run.model.decoder.device)
        of_nodes = self.component.of_nodes.bind(run)
        found = (of_nodes if self.until is None else of_nodes.before(self.until)).at(entries)
        vectors = found.coefficients.unsqueeze(-1) * found.directions
        write = vectors.new_zeros(run.recorded.n_tokens, vectors.shape[-1])
        write[entries[:, 0]] = vectors
        return write
