"""The components that derived scalars are about: one class each, which knows the taps it is computed from.

Each module registers its classes in `base.COMPONENTS`, and this package imports every module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.scalars.components.attention_head import HeadAtToken, HeadPair, Key, Query, Value
from dst_grpc.scalars.components.base import COMPONENTS, Bound, Component, LayerOfRun, Writes
from dst_grpc.scalars.components.latent import Latent, OfflineLatent
from dst_grpc.scalars.components.neuron import Neuron, NeuronError
from dst_grpc.scalars.components.nodes import NodeComponent, component_of_nodes
from dst_grpc.scalars.components.residual import ResidualVector
from dst_grpc.scalars.components.scaled import EntryWrites, ScaledWrites
from dst_grpc.scalars.components.single_node import SingleNode
from dst_grpc.scalars.components.tapped import ConstantOne, PreviousResidual, TappedTensor
from dst_grpc.scalars.components.vocabulary import Vocabulary

if TYPE_CHECKING:
    from dst_grpc.scalars.task import Task

__all__ = [
    "Bound",
    "Component",
    "ConstantOne",
    "EntryWrites",
    "HeadAtToken",
    "HeadPair",
    "Key",
    "Latent",
    "LayerOfRun",
    "Neuron",
    "NeuronError",
    "NodeComponent",
    "OfflineLatent",
    "PreviousResidual",
    "Query",
    "ResidualVector",
    "ScaledWrites",
    "SingleNode",
    "TappedTensor",
    "Value",
    "Vocabulary",
    "Writes",
    "component_of_nodes",
    "component_of_task",
]


def component_of_task(task: Task) -> Component:
    """The component that *task* is about."""
    return COMPONENTS[task.facts.component].of_task(task)
