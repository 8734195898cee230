"""Activations as functions of the residual just before them: traces, and the far ends of edges.

One function, `activation`, recomputes a neuron's, head's or latent's activations from a residual; a trace's value is
one entry of it, an edge its derivative along a write. No taps are offered here: ablations and splices of the node's own
layer do not reach a recomputation (specification, sections 5 and 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
from dst_grpc.domain.components import AttentionTraceType, Component, NodeType, PreOrPostAct
from dst_grpc.engine.layer import unit_read
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.origins import LossOrigin


def heads(
    layer: Layer, rho: torch.Tensor, through: AttentionTraceType, *, detach_scale: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys [T, H, c] and values [U, H, c] of the residual *rho* [T, d]; only *through* passes gradient."""
    q, k, v = layer.qkv(layer.attn_norm(rho, detach_scale=detach_scale))
    if through in {AttentionTraceType.K, AttentionTraceType.V}:
        q = q.detach()
    if through in {AttentionTraceType.Q, AttentionTraceType.V}:
        k = k.detach()
    return q, k, v


def activation(
    model: ExplainedModel,
    node_type: NodeType,
    layer_index: int,
    rho: torch.Tensor,
    *,
    at: PreOrPostAct = PreOrPostAct.POST,
    through: AttentionTraceType = AttentionTraceType.QK,
    detach_scale: bool,
) -> torch.Tensor:
    """All activations of a node type at a layer, from the residual *rho* [T, d] before it.

    Returns:
        Neurons [T, F], attention probabilities (PRE: scores) [T, U, H], or latents (PRE: before phi) [T, Z].
    """
    layer = model.decoder.layers[layer_index]
    post = at is PreOrPostAct.POST
    if node_type is NodeType.MLP_NEURON:
        normed = layer.mlp_norm(rho, detach_scale=detach_scale)
        return layer.mlp_acts(normed) if post else layer.mlp_pre_act(normed)
    if node_type is NodeType.ATTENTION_HEAD:
        q, k, _ = heads(layer, rho, through, detach_scale=detach_scale)
        scores = layer.attn_scores(q, k)
        return layer.attn_probs(scores) if post else scores
    autoencoder = model.autoencoder(node_type, layer_index)
    read = _latent_input(layer, rho, require(model.inputs.of(node_type)), detach_scale=detach_scale)
    return autoencoder.encode(read) if post else autoencoder.pre_activation(read)


def _latent_input(layer: Layer, rho: torch.Tensor, kind: AutoencoderInput, *, detach_scale: bool) -> torch.Tensor:
    """What an autoencoder of *kind* reads, from the residual *rho* [T, d] before it."""
    if kind.is_of_attention_write:
        q, k, v = layer.qkv(layer.attn_norm(rho, detach_scale=detach_scale))
        mixed = layer.attn_mix(layer.attn_probs(layer.attn_scores(q, k)), v)
        return layer.attn_write(mixed, detach_scale=detach_scale)
    acts = layer.mlp_acts(layer.mlp_norm(rho, detach_scale=detach_scale))
    return acts if kind.written_as is Component.NEURON else layer.mlp_write(acts, detach_scale=detach_scale)


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
        trace: which node, and how.
        rho: the residual before it.
        recorded: gives the recorded value [T, d] of another residual; only a trace through V asks for one.
        loss: what a trace through V without downstream node reads.
    """
    node = trace.node_index
    if trace.attention_trace_type is AttentionTraceType.V:
        return _value_trace(model, trace, rho, downstream_gradient(model, trace, recorded, loss))
    return activation(
        model,
        node.node_type,
        require(node.layer_index),
        rho,
        at=trace.pre_or_post_act,
        through=trace.attention_trace_type or AttentionTraceType.QK,
        detach_scale=trace.detach_layer_norm_scale,
    )[node.tensor_indices]


def _value_trace(model: ExplainedModel, trace: TraceConfig, rho: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """What a head writes, through its value, along *gradient* [T, d]; probabilities and norm scales are constants."""
    t, u, h = trace.node_index.tensor_indices
    layer = model.decoder.layers[require(trace.node_index.layer_index)]
    q, k, v = heads(layer, rho, AttentionTraceType.V, detach_scale=True)
    probs = layer.attn_probs(layer.attn_scores(q, k)).detach()
    direction = unit_read(gradient[t], layer.attn_post_norm)
    if layer.attn_post_norm is not None:
        raw = layer.attn_project(layer.attn_mix(probs, v.detach()))
        direction = (direction / layer.attn_post_norm.scale(raw)[t]).to(raw.dtype)
    return probs[t, u, h] * (v[u, h] @ (layer.attn_out[h] @ direction))


def downstream_gradient(
    model: ExplainedModel, trace: TraceConfig, recorded: Callable[[Site], torch.Tensor], loss: LossOrigin | None
) -> torch.Tensor:
    """The gradient [T, d] that a trace through V reads its head's value with: a downstream trace's, or the loss's."""
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
