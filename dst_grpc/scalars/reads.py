"""Which taps a task reads: the planner's list of what a run has to record.

The other half of `derive`: what is read there must be announced here, which a test holds for every type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Component, Direction, Quantity, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.taps import LATENT_LOCATION
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import Kinds, Topology, given, residual_entering

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

INPUT_LOCATION = {
    _T.MLP_POST_ACT: _L.MLP_POST_ACT,
    _T.RESID_DELTA_MLP: _L.RESID_DELTA_MLP,
    _T.RESID_DELTA_ATTN: _L.RESID_DELTA_ATTN,
}
"""The tap that a spliced autoencoder reads."""


def latent_location(node_type: NodeType, kinds: Kinds) -> ActivationLocationType:
    """The tap of the spliced latents that are *node_type*."""
    return LATENT_LOCATION[INPUT_LOCATION[given(kinds.of(node_type))]]


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


def offline_inputs(kind: DerivedScalarType | None, architecture: Architecture) -> tuple[ActivationLocationType, ...]:
    """The taps that offline latents are computed from."""
    component = offline_component(kind)
    if component is not None:
        return _write_taps(component, kind, architecture)
    return (_L.RESID_DELTA_ATTN if kind is _T.RESID_DELTA_ATTN else _L.MLP_POST_ACT,)


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
    if not architecture.has_post_norms:
        return None
    if component in {Component.HEAD_PAIR, Component.HEAD_AT_TOKEN}:
        return _L.ATTN_OUTPUT_LAYER_NORM_SCALE
    latent_of_neurons = component in {Component.LATENT, Component.OFFLINE_LATENT} and kind is _T.MLP_POST_ACT
    of_neurons = latent_of_neurons or component in {Component.NEURON, Component.NEURON_ERROR}
    return _L.MLP_OUTPUT_LAYER_NORM_SCALE if of_neurons else None


def _write_taps(
    component: Component, kind: DerivedScalarType | None, architecture: Architecture
) -> tuple[ActivationLocationType, ...]:
    """The taps that a component's writes are made of: its activation's, and the scale of the norm that they pass."""
    is_latent = component is Component.LATENT
    taps = (LATENT_LOCATION[INPUT_LOCATION[given(kind)]],) if is_latent else _TAPS_OF_COMPONENT[component]
    scale = output_scale(component, kind, architecture)
    return taps if scale is None else (*taps, scale)


def component_taps(component: Component, facts: ScalarFacts, topology: Topology) -> tuple[ActivationLocationType, ...]:
    """The taps that hold a component's activation."""
    if facts.tap is not None:
        return (facts.tap,)
    if component is Component.LATENT:
        return (latent_location(facts.autoencoder or facts.node_type, topology.kinds),)
    if component is Component.OFFLINE_LATENT:
        return offline_inputs(topology.kinds.of(facts.autoencoder or facts.node_type), topology.architecture)
    return _TAPS_OF_COMPONENT.get(component, ())


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
            yield pass_type, residual_entering(given(layer)).site
        return
    if facts.quantity in {Quantity.IN_EDGE_ACTIVATION, Quantity.IN_EDGE_ATTRIBUTION}:
        yield from _reads_of_edge_end(task, given(layer))
        return
    if facts.quantity is Quantity.DIRECTION:
        return
    taps = component_taps(facts.component, facts, task.topology)
    if facts.quantity is Quantity.ACT_TIMES_GRAD:
        yield _FORWARD, (taps[0], layer)
        yield _BACKWARD, (taps[0], layer)
        return
    for tap in taps:
        yield _FORWARD, (tap, layer)
    kind = task.topology.kinds.of(facts.autoencoder or facts.node_type)
    scale = output_scale(facts.component, kind, task.topology.architecture)
    if facts.is_of_writes and scale is not None:
        yield _FORWARD, (scale, layer)
    if _BACKWARD in task.passes:
        yield _BACKWARD, (taps[0], layer)


def _reads_of_edge_end(task: Task, layer: int) -> Iterator[Read]:
    """The residual before the downstream component and, for attributions, the component's gradient.

    Nothing where the upstream node comes too late for the layer: a gradient there would make the backward pass longer.
    """
    facts, node = task.facts, given(task.node)
    node_type = NODE_OF_COMPONENT.get(facts.component, facts.node_type)
    residual = task.topology.residual_before(node_type, layer)
    if not residual.is_after(task.topology.location_of_node(node), node.layer_index):
        return
    yield _FORWARD, residual.site
    if facts.quantity is Quantity.IN_EDGE_ATTRIBUTION:
        yield _BACKWARD, (edge_gradient_tap(facts.component, facts.node_type, task.topology.kinds), layer)


def edge_gradient_tap(component: Component, node_type: NodeType, kinds: Kinds) -> ActivationLocationType:
    """The tap whose gradient weighs an edge's downstream activations."""
    if component is Component.LATENT:
        return latent_location(node_type, kinds)
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
        for site in task.topology.residuals_of_trace_value(given(task.trace)):
            yield _FORWARD, site
    elif direction is Direction.SUBNODE_GRAD:
        node = given(task.node)
        weight = edge_gradient_tap(subnode_component(node), node.node_type, task.topology.kinds)
        yield _FORWARD, task.topology.residual_before(node.node_type, given(node.layer_index)).site
        yield _BACKWARD, (weight, node.layer_index)
    else:
        for tap in _latent_read_inputs(task, direction):
            for layer in task.layers:
                yield _FORWARD, (tap, layer)


def _latent_read_inputs(task: Task, direction: Direction) -> tuple[ActivationLocationType, ...]:
    """The true input of the autoencoder that is read, or, for all its latents, the offline one."""
    kind = task.topology.kinds.of(task.facts.autoencoder or NodeType.AUTOENCODER_LATENT)
    if direction is Direction.ALL_LATENT_READS:
        return offline_inputs(kind, task.topology.architecture)
    return (INPUT_LOCATION[given(kind)],)


def _reads_of_node(task: Task) -> Iterator[Read]:
    """What the write of the one upstream node is made of."""
    node = given(task.node)
    kind = task.topology.kinds.of(node.node_type)
    for tap in _write_taps(COMPONENT_OF_NODE[node.node_type], kind, task.topology.architecture):
        yield _FORWARD, (tap, node.layer_index)


def subnode_component(node: NodeIndex) -> Component:
    """What a downstream subnode is an entry of: a query, key or value; a neuron; a latent."""
    if isinstance(node, AttnSubNodeIndex):
        return {
            _L.ATTN_QUERY: Component.QUERY,
            _L.ATTN_KEY: Component.KEY,
            _L.ATTN_VALUE: Component.VALUE,
        }[node.q_k_or_v]
    return COMPONENT_OF_NODE[node.node_type]
