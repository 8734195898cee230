"""MLP neurons, and the reconstruction errors of an autoencoder that is spliced in after their nonlinearity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import LocationWithinLayer, NodeType, PreOrPostAct
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.scalars.components.base import LayerOfRun, registered
from dst_grpc.scalars.components.nodes import NodeComponent
from dst_grpc.scalars.components.scaled import ScaledComponent
from dst_grpc.scalars.write_directions import NeuronDirections

if TYPE_CHECKING:
    import torch

    from dst_grpc.scalars.explained_model import ExplainedModel


class _WrittenThroughNeurons(ScaledComponent):
    """A value [T, F] that is written through the rows of W_out."""

    location = LocationWithinLayer.MLP
    post_norm_scale = ActivationLocationType.MLP_OUTPUT_LAYER_NORM_SCALE

    def directions(self, run: LayerOfRun) -> NeuronDirections:
        """W_out [F, d]."""
        return NeuronDirections(run.block)


@registered(Kind.NEURON)
class Neuron(_WrittenThroughNeurons, NodeComponent):
    """A neuron n at a token t, after the nonlinearity: writes a[t,n] W_out[n]."""

    tap = ActivationLocationType.MLP_POST_ACT
    node_type = NodeType.MLP_NEURON

    def recompute(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, *, at: PreOrPostAct, detach_scale: bool
    ) -> torch.Tensor:
        """[T, F]."""
        block = model.decoder.layers[layer]
        normed = block.mlp_norm(rho, detach_scale=detach_scale)
        return block.mlp_acts(normed) if at is PreOrPostAct.POST else block.mlp_pre_act(normed)

    def pre_activations(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """[n], without computing the other neurons."""
        block = model.decoder.layers[layer]
        return block.neuron_pre_act(block.mlp_norm(rho, detach_scale=True), which)


@registered(Kind.NEURON_ERROR)
class NeuronError(_WrittenThroughNeurons):
    """A neuron's activation minus its reconstruction: writes eps[t,n] W_out[n]."""

    tap = ActivationLocationType.ONLINE_MLP_AUTOENCODER_ERROR
