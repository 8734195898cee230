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
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.taps import LATENT_LOCATION
from dst_grpc.scalars.task import (
    Kinds,
    Task,
    final_residual,
    given,
    location_of_node,
    residual_before,
    residual_entering,
    residuals_of_trace_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site

_L = ActivationLocationType
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
    DerivedScalarType.MLP_POST_ACT: _L.MLP_POST_ACT,
    DerivedScalarType.RESID_DELTA_MLP: _L.RESID_DELTA_MLP,
    DerivedScalarType.RESID_DELTA_ATTN: _L.RESID_DELTA_ATTN,
    DerivedScalarType.RESID_POST_ATTN: _L.RESID_POST_ATTN,
    DerivedScalarType.RESID_POST_MLP: _L.RESID_POST_MLP,
}
"""The tap that a spliced autoencoder reads."""

TRACED_KINDS = (DerivedScalarType.MLP_POST_ACT, DerivedScalarType.RESID_DELTA_MLP, DerivedScalarType.RESID_DELTA_ATTN)
"""Inputs of autoencoders whose latents can be traced and be ends of edges: what a part of the model writes."""


WRITES_OF_NEURONS = frozenset({DerivedScalarType.RESID_DELTA_MLP, DerivedScalarType.RESID_DELTA_MLP_FROM_MLP_POST_ACT})
"""Inputs that are rebuilt from neurons where latents are computed offline."""


def latent_location(node_type: NodeType, kinds: Kinds) -> ActivationLocationType:
    """The tap of the spliced latents that are *node_type*."""
    return LATENT_LOCATION[INPUT_LOCATION[given(kinds.of(node_type))]]


def reads_head_pairs(kind: DerivedScalarType | None) -> bool:
    """Whether an autoencoder of *kind* reads the writes of single heads, a row for each pair of tokens and head."""
    return kind is DerivedScalarType.ATTN_WRITE


def offline_inputs(kind: DerivedScalarType | None) -> tuple[ActivationLocationType, ...]:
    """The taps that offline latents are computed from; RESID_DELTA_MLP is rebuilt without its bias (Q5)."""
    if reads_head_pairs(kind):
        return _TAPS_OF_COMPONENT[Component.HEAD_PAIR]
    if kind in WRITES_OF_NEURONS:
        return (_L.MLP_POST_ACT,)
    return (given(FACTS[given(kind)].tap),)


def component_taps(component: Component, facts: ScalarFacts, kinds: Kinds) -> tuple[ActivationLocationType, ...]:
    """The taps that hold a component's activation."""
    if facts.tap is not None:
        return (facts.tap,)
    if component is Component.LATENT:
        return (latent_location(facts.autoencoder or facts.node_type, kinds),)
    if component is Component.OFFLINE_LATENT:
        return offline_inputs(kinds.of(facts.autoencoder or facts.node_type))
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
    taps = component_taps(facts.component, facts, task.kinds)
    if facts.quantity is Quantity.ACT_TIMES_GRAD:
        yield _FORWARD, (taps[0], layer)
        yield _BACKWARD, (taps[0], layer)
        return
    for tap in taps:
        yield _FORWARD, (tap, layer)
    if facts.component is Component.LATENT and facts.is_of_writes:
        yield from _reads_of_write_scale(facts.autoencoder or facts.node_type, layer, task.kinds)
    if _BACKWARD in task.passes:
        yield _BACKWARD, (taps[0], layer)


def _reads_of_write_scale(node_type: NodeType, layer: int | None, kinds: Kinds) -> Iterator[Read]:
    """The input of a spliced autoencoder, which tells at what scale its latents write, if they do at one."""
    kind = given(kinds.of(node_type))
    if kind in kinds.scaled:
        yield _FORWARD, (INPUT_LOCATION[kind], layer)


def _reads_of_edge_end(task: Task, layer: int) -> Iterator[Read]:
    """The residual before the downstream component and, for attributions, the component's gradient.

    Nothing where the upstream node comes too late for the layer: a gradient there would make the backward pass longer.
    """
    facts, node = task.facts, given(task.node)
    node_type = NODE_OF_COMPONENT.get(facts.component, facts.node_type)
    residual = residual_before(node_type, layer, task.kinds)
    if not residual.is_after(location_of_node(node, task.kinds), node.layer_index):
        return
    yield _FORWARD, residual.site
    if facts.quantity is Quantity.IN_EDGE_ATTRIBUTION:
        yield _BACKWARD, (edge_gradient_tap(facts.component, facts.node_type, task.kinds), layer)


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
        yield _BACKWARD, final_residual(task.n_layers, task.trace, task.kinds).site
    elif direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
        yield _FORWARD, final_residual(task.n_layers, task.trace, task.kinds).site
        for site in residuals_of_trace_value(given(task.trace), task.n_layers, task.kinds):
            yield _FORWARD, site
    elif direction is Direction.SUBNODE_GRAD:
        node = given(task.node)
        yield _FORWARD, residual_before(node.node_type, given(node.layer_index), task.kinds).site
        yield _BACKWARD, (edge_gradient_tap(subnode_component(node), node.node_type, task.kinds), node.layer_index)
    else:
        for tap in _latent_read_inputs(task, direction):
            for layer in task.layers:
                yield _FORWARD, (tap, layer)


def _latent_read_inputs(task: Task, direction: Direction) -> tuple[ActivationLocationType, ...]:
    """The true input of the autoencoder that is read, or, for all its latents, the offline one."""
    kind = task.kinds.of(task.facts.autoencoder or NodeType.AUTOENCODER_LATENT)
    if direction is Direction.ALL_LATENT_READS:
        return offline_inputs(kind)
    return (INPUT_LOCATION[given(kind)],)


def _reads_of_node(task: Task) -> Iterator[Read]:
    """What the write of the one upstream node is made of."""
    node = given(task.node)
    component = COMPONENT_OF_NODE[node.node_type]
    taps = (
        (latent_location(node.node_type, task.kinds),)
        if component is Component.LATENT
        else _TAPS_OF_COMPONENT[component]
    )
    for tap in taps:
        yield _FORWARD, (tap, node.layer_index)
    if component is Component.LATENT:
        yield from _reads_of_write_scale(node.node_type, node.layer_index, task.kinds)


def subnode_component(node: NodeIndex) -> Component:
    """What a downstream subnode is an entry of: a query, key or value; a neuron; a latent."""
    if isinstance(node, AttnSubNodeIndex):
        return {
            _L.ATTN_QUERY: Component.QUERY,
            _L.ATTN_KEY: Component.KEY,
            _L.ATTN_VALUE: Component.VALUE,
        }[node.q_k_or_v]
    return COMPONENT_OF_NODE[node.node_type]
