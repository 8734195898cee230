"""Which taps a task reads: the planner's list of what a run has to record.

The other half of `derive`: what is read there must be announced here, which a test holds for every type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Dimension, NodeType, PassType
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Component, Direction, Quantity, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.taps import LATENT_LOCATION
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import AutoencoderInputs, Topology, require, residual_entering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.architecture import Architecture
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site

_L = ActivationLocationType
_T = DerivedScalarType
_FORWARD, _BACKWARD = PassType.FORWARD, PassType.BACKWARD

Read = tuple[PassType, "Site"]
"""A value or gradient at a site."""

_TAPS_OF_COMPONENT = {
    Component.NEURON: (_L.MLP_POST_ACT,),
    Component.HEAD_PAIR: (_L.ATTN_QK_PROBS, _L.ATTN_VALUE),
    Component.HEAD_AT_TOKEN: (_L.ATTN_WEIGHTED_SUM_OF_VALUES,),
}

COMPONENT_OF_NODE = {
    NodeType.MLP_NEURON: Component.NEURON,
    NodeType.ATTENTION_HEAD: Component.HEAD_PAIR,
    NodeType.AUTOENCODER_LATENT: Component.LATENT,
    NodeType.MLP_AUTOENCODER_LATENT: Component.LATENT,
    NodeType.ATTENTION_AUTOENCODER_LATENT: Component.LATENT,
}
"""What a node at the fixed end of an edge is an entry of."""

NODE_OF_COMPONENT = {
    Component.NEURON: NodeType.MLP_NEURON,
    Component.QUERY: NodeType.ATTENTION_HEAD,
    Component.KEY: NodeType.ATTENTION_HEAD,
    Component.VALUE: NodeType.ATTENTION_HEAD,
}
"""What is recomputed at the far end of an edge; latents follow their autoencoder."""

LATENTS = frozenset({Component.LATENT, Component.OFFLINE_LATENT})
"""Components of an autoencoder, spliced in or read offline."""

INPUT_LOCATION = {
    _T.MLP_POST_ACT: _L.MLP_POST_ACT,
    _T.RESID_DELTA_MLP: _L.RESID_DELTA_MLP,
    _T.RESID_DELTA_ATTN: _L.RESID_DELTA_ATTN,
    _T.RESID_POST_ATTN: _L.RESID_POST_ATTN,
    _T.RESID_POST_MLP: _L.RESID_POST_MLP,
}
"""The tap that a spliced autoencoder reads."""

TRACED_KINDS = (_T.MLP_POST_ACT, _T.RESID_DELTA_MLP, _T.RESID_DELTA_ATTN)
"""Inputs of autoencoders whose latents can be traced and be ends of edges: what a part of the model writes."""
_ATTENTION_READERS = (_T.RESID_DELTA_ATTN,)
_RESIDUAL_READERS = (_T.RESID_DELTA_ATTN, _T.RESID_DELTA_MLP, _T.RESID_POST_ATTN, _T.RESID_POST_MLP)
KINDS_READ = {
    _T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT: _RESIDUAL_READERS,
    _T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT: (_T.MLP_POST_ACT,),
    _T.ATTN_WRITE_TO_LATENT: _ATTENTION_READERS,
    _T.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: _ATTENTION_READERS,
    _T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: _ATTENTION_READERS,
    _T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS_BATCHED: _ATTENTION_READERS,
    _T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN: (_T.RESID_DELTA_ATTN, _T.RESID_DELTA_MLP),
    _T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED: _ATTENTION_READERS,
    _T.ONLINE_AUTOENCODER_IN_EDGE_ATTRIBUTION: TRACED_KINDS,
    _T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION: TRACED_KINDS,
    _T.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: (_T.RESID_DELTA_MLP,),
    _T.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: _ATTENTION_READERS,
}
"""Inputs that the autoencoder of a type may read, where its node type alone does not say."""

WRITTEN_AS = {_T.MLP_POST_ACT: Component.NEURON, _T.ATTN_WEIGHTED_SUM_OF_VALUES: Component.HEAD_AT_TOKEN}
"""The component that an autoencoder's output stands for, and writes as, if that is no vector of the residual stream."""


def latent_location(node_type: NodeType, inputs: AutoencoderInputs) -> ActivationLocationType:
    """The tap of the spliced latents that are *node_type*."""
    return LATENT_LOCATION[INPUT_LOCATION[require(inputs.of(node_type))]]


def writes_to_residual(kind: DerivedScalarType) -> bool:
    """Whether what an autoencoder of *kind* puts out ends up in the residual stream as it is, or by way of a matrix."""
    return kind in WRITTEN_AS or FACTS[kind].dimensions[-1] is Dimension.RESIDUAL_STREAM_CHANNELS


def reads_head_pairs(kind: DerivedScalarType | None) -> bool:
    """Whether an autoencoder of *kind* reads the writes of single heads, a row for each pair of tokens and head."""
    return kind is _T.ATTN_WRITE


def offline_component(kind: DerivedScalarType | None) -> Component | None:
    """The component whose writes an autoencoder of *kind* reads offline; None if it reads a tap as it is.

    RESID_DELTA_MLP is rebuilt from its neurons, without the bias (Q5).
    """
    if reads_head_pairs(kind):
        return Component.HEAD_PAIR
    of_neurons = kind in {_T.RESID_DELTA_MLP, _T.RESID_DELTA_MLP_FROM_MLP_POST_ACT}
    return Component.NEURON if of_neurons else None


def offline_inputs(kind: DerivedScalarType | None, topology: Topology, layer: int | None) -> tuple[Site, ...]:
    """The taps at *layer* that offline latents are computed from."""
    component = offline_component(kind)
    if component is not None:
        return _write_sites(component, kind, topology, layer)
    return (input_site(require(kind), layer, topology.architecture),)


def output_scale(
    component: Component, kind: DerivedScalarType | None, architecture: Architecture
) -> ActivationLocationType | None:
    """The scale of the norm that a component's write passes on its way to the residual; None if it passes none.

    Args:
        component: what writes.
        kind: for latents, what their autoencoder reads. Those that read RESID_DELTA_ATTN or RESID_DELTA_MLP stand
            behind the norm: they read, and write, what is added to the residual.
        architecture: the model's.
    """
    if not architecture.post_norms:
        return None
    if component in LATENTS:
        component = WRITTEN_AS.get(require(kind), component)
    if component in {Component.HEAD_PAIR, Component.HEAD_AT_TOKEN}:
        return _L.ATTN_OUTPUT_LAYER_NORM_SCALE
    return _L.MLP_OUTPUT_LAYER_NORM_SCALE if component in {Component.NEURON, Component.NEURON_ERROR} else None


def _scale_sites(
    component: Component, kind: DerivedScalarType | None, topology: Topology, layer: int | None
) -> Iterator[Site]:
    """What tells at which scale a component writes: the norm that its write passes, a spliced autoencoder's input."""
    scale = output_scale(component, kind, topology.architecture)
    if scale is not None:
        yield scale, layer
    if component is Component.LATENT and kind in topology.inputs.scaled:
        yield INPUT_LOCATION[require(kind)], layer


def _write_sites(
    component: Component, kind: DerivedScalarType | None, topology: Topology, layer: int | None
) -> tuple[Site, ...]:
    """The taps that a component's writes are made of: its activation's, and those that scale them."""
    is_latent = component is Component.LATENT
    taps = (LATENT_LOCATION[INPUT_LOCATION[require(kind)]],) if is_latent else _TAPS_OF_COMPONENT[component]
    return (*((tap, layer) for tap in taps), *_scale_sites(component, kind, topology, layer))


def component_sites(
    component: Component, facts: ScalarFacts, topology: Topology, layer: int | None
) -> tuple[Site, ...]:
    """The taps at *layer* that hold a component's activation, or that it is computed from."""
    node_type = facts.autoencoder or facts.node_type
    if component is Component.OFFLINE_LATENT:
        return offline_inputs(topology.inputs.of(node_type), topology, layer)
    taps = _TAPS_OF_COMPONENT.get(component, ())
    if facts.tap is not None:
        taps = (facts.tap,)
    elif component is Component.LATENT:
        taps = (latent_location(node_type, topology.inputs),)
    return tuple((tap, layer) for tap in taps)


def reads(task: Task) -> Iterator[Read]:
    """Every tap that *task* reads, with repetitions."""
    for layer in task.layers:
        yield from _reads_at(task, layer)
    if task.facts.direction is not None:
        yield from _reads_of_direction(task, task.facts.direction)
    if task.facts.needs_attribution_node and task.facts.direction is not Direction.SUBNODE_GRAD:
        yield from _reads_of_node(task)


def _reads_at(task: Task, layer: int | None) -> Iterator[Read]:
    facts = task.facts
    if facts.component in {Component.ONE, Component.SINGLE_NODE, Component.VOCABULARY}:
        return
    if facts.component is Component.PREVIOUS_RESIDUAL:
        for pass_type in task.passes:
            yield pass_type, residual_entering(require(layer)).site
        return
    if facts.quantity in {Quantity.IN_EDGE_ACTIVATION, Quantity.IN_EDGE_ATTRIBUTION}:
        yield from _reads_of_edge_end(task, require(layer))
        return
    if facts.quantity is Quantity.DIRECTION:
        return
    sites = component_sites(facts.component, facts, task.topology, layer)
    if facts.quantity is Quantity.ACT_TIMES_GRAD:
        yield _FORWARD, sites[0]
        yield _BACKWARD, sites[0]
        return
    if facts.is_of_writes:
        kind = task.topology.inputs.of(facts.autoencoder or facts.node_type)
        sites = (*sites, *_scale_sites(facts.component, kind, task.topology, layer))
    for site in sites:
        yield _FORWARD, site
    if _BACKWARD in task.passes:
        yield _BACKWARD, sites[0]


def _reads_of_edge_end(task: Task, layer: int) -> Iterator[Read]:
    """The residual before the downstream component and, for attributions, the component's gradient.

    Nothing where the upstream node comes too late for the layer: a gradient there would make the backward pass longer.
    """
    facts, node = task.facts, require(task.node)
    node_type = NODE_OF_COMPONENT.get(facts.component, facts.node_type)
    residual = task.topology.residual_before(node_type, layer)
    if not residual.is_after(task.topology.location_of_node(node), node.layer_index):
        return
    yield _FORWARD, residual.site
    if facts.quantity is Quantity.IN_EDGE_ATTRIBUTION:
        yield _BACKWARD, (edge_gradient_tap(facts.component, facts.node_type, task.topology.inputs), layer)


def edge_gradient_tap(component: Component, node_type: NodeType, inputs: AutoencoderInputs) -> ActivationLocationType:
    """The tap whose gradient weighs an edge's downstream activations."""
    if component is Component.LATENT:
        return latent_location(node_type, inputs)
    return {
        Component.NEURON: _L.MLP_POST_ACT,
        Component.QUERY: _L.ATTN_QK_PROBS,
        Component.KEY: _L.ATTN_QK_PROBS,
        Component.VALUE: _L.ATTN_WEIGHTED_SUM_OF_VALUES,
    }[component]


def _reads_of_direction(task: Task, direction: Direction) -> Iterator[Read]:
    if direction is Direction.FINAL_RESIDUAL_GRAD:
        yield _BACKWARD, task.topology.final_residual(task.trace).site
    elif direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
        yield _FORWARD, task.topology.final_residual(task.trace).site
        for site in task.topology.residuals_of_trace_value(require(task.trace)):
            yield _FORWARD, site
    elif direction is Direction.SUBNODE_GRAD:
        node = require(task.node)
        weight = edge_gradient_tap(subnode_component(node), node.node_type, task.topology.inputs)
        yield _FORWARD, task.topology.residual_before(node.node_type, require(node.layer_index)).site
        yield _BACKWARD, (weight, node.layer_index)
    else:
        for layer in task.layers:
            for site in _latent_read_inputs(task, direction, layer):
                yield _FORWARD, site


def _latent_read_inputs(task: Task, direction: Direction, layer: int | None) -> tuple[Site, ...]:
    """The true input of the autoencoder that is read, or, for all its latents, the offline one."""
    kind = task.topology.inputs.of(task.facts.autoencoder or NodeType.AUTOENCODER_LATENT)
    if direction is Direction.ALL_LATENT_READS:
        return offline_inputs(kind, task.topology, layer)
    return (input_site(require(kind), layer, task.topology.architecture),)


def _reads_of_node(task: Task) -> Iterator[Read]:
    """What the write of the one upstream node is made of."""
    node = require(task.node)
    kind = task.topology.inputs.of(node.node_type)
    for site in _write_sites(COMPONENT_OF_NODE[node.node_type], kind, task.topology, node.layer_index):
        yield _FORWARD, site


def subnode_component(node: NodeIndex) -> Component:
    """What a downstream subnode is an entry of: a query, key or value; a neuron; a latent."""
    if isinstance(node, AttnSubNodeIndex):
        return {
            _L.ATTN_QUERY: Component.QUERY,
            _L.ATTN_KEY: Component.KEY,
            _L.ATTN_VALUE: Component.VALUE,
        }[node.q_k_or_v]
    return COMPONENT_OF_NODE[node.node_type]
