"""Every token of the vocabulary as an input: the pre-activation of one neuron or latent for its embedding alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import Bound, Component, LayerOfRun, registered
from dst_grpc.scalars.components.latent import Latent
from dst_grpc.scalars.components.neuron import Neuron

if TYPE_CHECKING:
    from dst_grpc.domain.indices import ActivationIndex
    from dst_grpc.scalars.task import Task

_CHUNK = 4096


@registered(Kind.VOCABULARY)
@dataclass(frozen=True)
class Vocabulary(Component):
    """The tokens' embeddings, each as the residual that one node is computed from. Reads no tap."""

    reader: ActivationIndex
    """The node: a neuron, or a latent of an autoencoder of the MLPs or of the residual stream."""

    @property
    def node_type(self) -> NodeType:
        """The type of the latents, if the node is one."""
        is_generic = self.reader.activation_location_type is ActivationLocationType.ONLINE_AUTOENCODER_LATENT
        kind = self.topology.inputs.of(NodeType.AUTOENCODER_LATENT) if is_generic else None
        is_of_stream = kind is not None and kind.is_of_stream
        return NodeType.AUTOENCODER_LATENT if is_of_stream else NodeType.MLP_AUTOENCODER_LATENT

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The vocabulary as the node of *task* reads it."""
        return cls(task.topology, require(task.fake_grad))

    def bind(self, run: LayerOfRun) -> TokenPreActivations:
        """[T, V]."""
        return TokenPreActivations(self, run)


class TokenPreActivations(Bound):
    """Pre-activations of the node, equal rows [T, V]."""

    component: Vocabulary

    @cached_property
    def value(self) -> torch.Tensor:
        """[T, V]."""
        index, model = self.component.reader, self.run.model
        layer, entry = require(index.layer_index), require(index.tensor_indices[1])
        is_neuron = index.activation_location_type is ActivationLocationType.MLP_POST_ACT
        topology = model.topology
        nodes = Neuron(topology) if is_neuron else Latent(topology, self.component.node_type)
        chunks = []
        for tokens in torch.split(torch.arange(model.decoder.config.vocab_size, device=model.decoder.device), _CHUNK):
            embedded = model.decoder.embed(tokens)
            chunks.append(nodes.pre_activations(model, layer, embedded, torch.full_like(tokens, entry)))
        return torch.cat(chunks).expand(self.run.recorded.n_tokens, -1)
