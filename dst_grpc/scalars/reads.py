"""Which taps a task reads: the planner's list of what a run has to record.

The other half of `derive`: what is read there must be announced here, which a test holds for every type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
from dst_grpc.domain.components import Component, NodeType, PassType
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_facts import Direction, Quantity, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.errors import require
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import AutoencoderInputs, Topology, residual_entering

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


def latent_location(node_type: NodeType, inputs: AutoencoderInputs) -> ActivationLocationType:
    """The tap of the spliced latents that are *node_type*."""
    return require(inputs.of(node_type)).latent_tap


def offline_inputs(kind: AutoencoderInput | None, topology: Topology, layer: int | None) -> tuple[Site, ...]:
    """The taps at *layer* that offline latents are computed from."""
    component = None if kind is None else kind.offline_component
    if component is not None:
        return _write_sites(component, kind, topology, layer)
    return (input_site(require(kind).type, layer, topology.architecture),)


def output_scale(
    component: Component, kind: AutoencoderInput | None, architecture: Architecture
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
    if component.is_of_latents:
        component = require(kind).written_as or component
    if component in {Component.HEAD_PAIR, Component.HEAD_AT_TOKEN}:
        return _L.ATTN_OUTPUT_LAYER_NORM_SCALE
    return _L.MLP_OUTPUT_LAYER_NORM_SCALE if component in {Component.NEURON, Component.NEURON_ERROR} else None


def _scale_sites(
    component: Component, kind: AutoencoderInput | None, topology: Topology, layer: int | None
) -> Iterator[Site]:
    """What tells at which scale a component writes: the norm that its write passes, a spliced autoencoder's input."""
    scale = output_scale(component, kind, topology.architecture)
    if scale is not None:
        yield scale, layer
    if component is Component.LATENT and kind is not None and kind in topology.inputs.scaled:
        yield kind.tap, layer


def _write_sites(
    component: Component, kind: AutoencoderInput | None, topology: Topology, layer: int | None
) -> tuple[Site, ...]:
    """The taps that a component's writes are made of: its activation's, and those that scale them."""
    is_latent = component is Component.LATENT
    taps = (require(kind).latent_tap,) if is_latent else _TAPS_OF_COMPONENT[component]
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
    if facts.quantity.is_of_in_edges:
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
    residual = task.topology.residual_before(facts.node_type, layer)
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
    return (input_site(require(kind).type, layer, task.topology.architecture),)


def _reads_of_node(task: Task) -> Iterator[Read]:
    """What the write of the one upstream node is made of."""
    node = require(task.node)
    kind = task.topology.inputs.of(node.node_type)
    for site in _write_sites(require(NODES[node.node_type].component), kind, task.topology, node.layer_index):
        yield _FORWARD, site


def subnode_component(node: NodeIndex) -> Component:
    """What a downstream subnode is an entry of: a query, key or value; a neuron; a latent."""
    if isinstance(node, AttnSubNodeIndex):
        return {
            _L.ATTN_QUERY: Component.QUERY,
            _L.ATTN_KEY: Component.KEY,
            _L.ATTN_VALUE: Component.VALUE,
        }[node.q_k_or_v]
    return require(NODES[node.node_type].component)
