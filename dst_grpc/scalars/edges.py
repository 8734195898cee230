"""Edges: how one node's write moves the activations after it, and what moves one activation.

An edge is a derivative of a recomputation (`recompute.activation`) at the recorded residual: along one node's write for
the edges into many downstream nodes, and with respect to the residual for the direction that the edges out of many
upstream nodes are projected on (specification, 10.12 and 10.13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import AttentionTraceType, Component, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.engine.layer import unit_write
from dst_grpc.errors import require
from dst_grpc.scalars.components import write_factor
from dst_grpc.scalars.reads import (
    edge_gradient_tap,
    latent_location,
    subnode_component,
)
from dst_grpc.scalars.recompute import activation, gradient_at, heads
from dst_grpc.scalars.rows import latent_rows
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import Residual

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps

_L = ActivationLocationType
_THROUGH = {Component.QUERY: AttentionTraceType.Q, Component.KEY: AttentionTraceType.K}


def edge_end(
    model: ExplainedModel,
    component: Component,
    node_type: NodeType,
    layer: int,
    rho: torch.Tensor,
    gradient: torch.Tensor | None,
    *,
    detach_scale: bool,
) -> torch.Tensor:
    """The downstream activations as a function of *rho* [T, d], weighed by their *gradient* if one is given.

    Returns:
        [T, U, H] for queries, keys and values, [T, F] for neurons, [T, Z] for latents.
    """
    if component is Component.VALUE:
        block = model.decoder.layers[layer]
        q, k, v = heads(block, rho, AttentionTraceType.V, detach_scale=detach_scale)
        probs = block.attn_probs(block.attn_scores(q, k)).detach()
        return probs * torch.einsum("uhc,thc->tuh", v, require(gradient))
    through = _THROUGH.get(component, AttentionTraceType.QK)
    x = activation(model, node_type, layer, rho, through=through, detach_scale=detach_scale)
    return x if gradient is None else x * gradient


def in_edge(
    model: ExplainedModel, recorded: RecordedTaps, task: Task, layer: int, write: torch.Tensor
) -> torch.Tensor | None:
    """Derivative of the downstream activations of *layer* along *write* [T, d], or None if the write comes too late."""
    facts = task.facts
    node_type = facts.node_type
    residual = task.topology.residual_before(node_type, layer)
    node = require(task.node)
    if not residual.is_after(task.topology.location_of_node(node), node.layer_index):
        return None
    rho, gradient, detach_scale = recorded.value(residual.site), None, True
    if facts.quantity is Quantity.IN_EDGE_ATTRIBUTION:
        weight = edge_gradient_tap(facts.component, facts.node_type, task.topology.inputs)
        gradient = recorded.gradients.get((weight, layer))
        if gradient is None:
            return None
        detach_scale = task.detach_scale

    def end(x: torch.Tensor) -> torch.Tensor:
        return edge_end(model, facts.component, node_type, layer, x, gradient, detach_scale=detach_scale)

    return directional_derivative(end, rho, write)


def directional_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Derivative of *function* at *x* along *direction*; detached parts count as constants."""
    with torch.enable_grad():
        attached = x.detach().requires_grad_()
        value = function(attached)
        # Twice backward: the gradient is linear in its weights, and its derivative by them is the one along x.
        weights = torch.zeros_like(value, requires_grad=True)
        (gradient,) = torch.autograd.grad(value, attached, weights, create_graph=True)
        (derivative,) = torch.autograd.grad(gradient, weights, direction)
    return derivative


def subnode_gradient(model: ExplainedModel, recorded: RecordedTaps, task: Task) -> tuple[torch.Tensor, Residual]:
    """Gradient [T, d] of the one downstream subnode's attribution at the residual before it, and that residual."""
    node = require(task.node)
    layer, component = require(node.layer_index), subnode_component(node)
    residual = task.topology.residual_before(node.node_type, layer)
    rho = recorded.value(residual.site)
    weight = recorded.gradients.get((edge_gradient_tap(component, node.node_type, task.topology.inputs), layer))
    if weight is None:
        return torch.zeros_like(rho), residual

    def attribution(x: torch.Tensor) -> torch.Tensor:
        ends = edge_end(model, component, node.node_type, layer, x, weight, detach_scale=task.detach_scale)
        return ends[node.tensor_indices]

    return gradient_at(attribution, rho), residual


def node_write(model: ExplainedModel, recorded: RecordedTaps, task: Task) -> torch.Tensor:
    """What one node writes: [T, d], zero except at its own token."""
    node = require(task.node)
    layer = require(node.layer_index)
    block, t = model.decoder.layers[layer], require(node.tensor_indices[0])
    if node.node_type is NodeType.ATTENTION_HEAD:
        _, u, h = node.tensor_indices
        probs, values = recorded.value((_L.ATTN_QK_PROBS, layer)), recorded.value((_L.ATTN_VALUE, layer))
        vector = unit_write(probs[t, u, h] * (values[u, h] @ block.attn_out[h]), block.attn_post_norm)
    elif node.node_type is NodeType.MLP_NEURON:
        n = node.tensor_indices[1]
        vector = unit_write(recorded.value((_L.MLP_POST_ACT, layer))[t, n] * block.mlp_out[n], block.mlp_post_norm)
    else:
        j = require(node.tensor_indices[1])
        latents = recorded.value((latent_location(node.node_type, task.topology.inputs), layer))
        vector = latents[t, j] * latent_rows(model, node.node_type, layer).row(j)
    factor = write_factor(model, recorded, require(NODES[node.node_type].component), node.node_type, layer)
    write = torch.zeros(recorded.n_tokens, vector.shape[-1], dtype=vector.dtype, device=vector.device)
    write[t] = vector if factor is None else vector * factor[t]
    return write
