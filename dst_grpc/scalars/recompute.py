"""A traced activation as a function of the residual just before its node, and its gradient there.

A trace's value is one entry of a component's activations, recomputed from that residual (`NodeComponent.recompute`). A
trace through V is a head's write, through its value, projected on a downstream gradient (specification, section 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.engine.layer import unit_read
from dst_grpc.errors import require
from dst_grpc.scalars.components import component_of_nodes
from dst_grpc.scalars.components.attention_head import heads, heads_through

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.origins import LossOrigin


def trace_value(
    model: ExplainedModel,
    trace: TraceConfig,
    rho: torch.Tensor,
    recorded: Callable[[Site], torch.Tensor],
    loss: LossOrigin | None,
) -> torch.Tensor:
    """The traced scalar as a function of the residual *rho* [T, d] before its node (specification, section 8).

    Args:
        model: the model, and the autoencoders of traced latents.
        trace: the node, and how it is traced.
        rho: the residual before it.
        recorded: gives the recorded value [T, d] of another residual; only a trace through V asks for one.
        loss: the loss whose gradient a trace through V without downstream node uses.
    """
    node, through = trace.node_index, trace.attention_trace_type
    if through is AttentionTraceType.V:
        return _value_trace(model, trace, rho, downstream_gradient(model, trace, recorded, loss))
    component = require(component_of_nodes(node.node_type, model.topology))
    if through is not None:
        component = heads_through(through)(model.topology)
    layer, detach_scale = require(node.layer_index), trace.detach_layer_norm_scale
    found = component.recompute(model, layer, rho, at=trace.pre_or_post_act, detach_scale=detach_scale)
    return found[node.tensor_indices]


def _value_trace(model: ExplainedModel, trace: TraceConfig, rho: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A head's write, through its value, projected on *gradient* [T, d]; probabilities and norm scales are
    constants."""
    t, u, h = trace.node_index.tensor_indices
    layer = model.decoder.layers[require(trace.node_index.layer_index)]
    q, k, v = heads(layer, rho, AttentionTraceType.V, detach_scale=True)
    probs = layer.attn_probs(layer.attn_scores(q, k))
    direction = unit_read(gradient[t], layer.attn_post_norm)
    if layer.attn_post_norm is not None:
        raw = layer.attn_project(layer.attn_mix(probs, v.detach()))
        direction = (direction / layer.attn_post_norm.scale(raw)[t]).to(raw.dtype)
    return probs[t, u, h] * (v[u, h] @ (layer.attn_out[h] @ direction))


def downstream_gradient(
    model: ExplainedModel, trace: TraceConfig, recorded: Callable[[Site], torch.Tensor], loss: LossOrigin | None
) -> torch.Tensor:
    """The gradient [T, d] that a trace through V is projected on: a downstream trace's, or the loss's."""
    downstream = trace.downstream_trace_config
    residual = model.topology.final_residual(downstream)
    if downstream is not None:
        return local_gradient(model, downstream, recorded(residual.site), recorded, loss)

    def value(rho: torch.Tensor) -> torch.Tensor:
        normed = model.decoder.final_norm(rho, detach_scale=True)
        return require(loss)(model.decoder.unembed(normed[-1]))

    return gradient_at(value, recorded(residual.site))


def local_gradient(
    model: ExplainedModel,
    trace: TraceConfig,
    rho: torch.Tensor,
    recorded: Callable[[Site], torch.Tensor],
    loss: LossOrigin | None,
) -> torch.Tensor:
    """Gradient [T, d] of a trace's value at the recorded residual *rho* [T, d] before its node."""
    return gradient_at(lambda attached: trace_value(model, trace, attached, recorded, loss), rho)


def gradient_at(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Gradient of a scalar *function* at *x*, in the shape of *x*; 0 where it does not depend on it."""
    with torch.enable_grad():
        attached = x.detach().requires_grad_()
        value = function(attached)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value, attached)[0]
