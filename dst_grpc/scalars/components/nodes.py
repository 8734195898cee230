"""Components whose entries are nodes: they can be traced, and be at either end of an edge.

Their activations can be recomputed from the residual just before them. A recomputation has no taps: ablations and
splices of the node's own layer do not apply in it (specification, sections 5 and 8).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self, cast

from dst_grpc.domain.components import LocationWithinLayer, NodeType, PreOrPostAct
from dst_grpc.domain.nodes import NODES
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import COMPONENTS
from dst_grpc.scalars.components.scaled import ScaledComponent

if TYPE_CHECKING:
    import torch

    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.topology import Residual, Topology


class NodeComponent(ScaledComponent):
    """Neurons, attention heads at pairs of tokens, or latents of a spliced autoencoder."""

    node_type: NodeType
    """Type of the entries."""

    @classmethod
    def of_nodes(cls, node_type: NodeType, topology: Topology) -> Self:
        """The component that nodes of *node_type* are entries of."""
        del node_type
        return cls(topology)

    def gradient_site(self, layer: int | None) -> Site:
        """The site of the gradient that weights an edge into it."""
        return require(self.site(layer))

    @property
    def reads_one_token(self) -> bool:
        """Whether it is computed from a residual one token at a time, as neurons are from the MLP's input."""
        return NODES[self.node_type].reads is LocationWithinLayer.RESID_POST_ATTN

    def residual_before(self, layer: int) -> Residual:
        """The residual that it is computed from."""
        return self.topology.residual_before(self.node_type, layer)

    @abstractmethod
    def recompute(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, *, at: PreOrPostAct, detach_scale: bool
    ) -> torch.Tensor:
        """All activations at a layer, as a function of the residual *rho* [T, d] before it.

        Args:
            model: the weights.
            layer: which layer.
            rho: the residual.
            at: whether after the nonlinearity or before it.
            detach_scale: whether the scale of the norm before it is a constant.
        """

    def pre_activations(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """One entry of each row before the nonlinearity, [n]; the scale of the norm is a constant.

        Args:
            model: the weights.
            layer: which layer.
            rho: residuals [n, d], each of a separate token; only for components that read one token at a time.
            which: the entries [n].
        """
        pre = self.recompute(model, layer, rho, at=PreOrPostAct.PRE, detach_scale=True)
        return pre.gather(1, which.unsqueeze(1)).squeeze(1)

    def edge_end(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, gradient: torch.Tensor | None, *, detach_scale: bool
    ) -> torch.Tensor:
        """The activations at the downstream end of edges as a function of *rho* [T, d].

        They are weighted by *gradient*, that at `gradient_site`, if one is given.
        """
        x = self.recompute(model, layer, rho, at=PreOrPostAct.POST, detach_scale=detach_scale)
        return x if gradient is None else x * gradient


def component_of_nodes(node_type: NodeType, topology: Topology) -> NodeComponent | None:
    """The component that nodes of *node_type* are entries of in a run; None if there is none, as for latents of an
    autoencoder that is not spliced in."""
    facts = NODES[node_type]
    if facts.component is None:
        return None
    if facts.is_autoencoder_latent:
        read = topology.inputs.of(node_type)
        if read is None or not read.is_spliceable:
            return None
    return cast("type[NodeComponent]", COMPONENTS[facts.component]).of_nodes(node_type, topology)
