"""Origins for tests: traces of every kind of node, and what a loss is by hand."""

from __future__ import annotations

from typing import Any

import torch

from dst_grpc.domain.components import AttentionTraceType, NodeType, PreOrPostAct
from dst_grpc.domain.indices import AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.decoder_config import DecoderConfig

NEURON, HEAD = NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD
LATENT = NodeType.AUTOENCODER_LATENT
MLP_LATENT, ATTENTION_LATENT = NodeType.MLP_AUTOENCODER_LATENT, NodeType.ATTENTION_AUTOENCODER_LATENT
Q, K, QK, V = AttentionTraceType


def node(node_type: NodeType, layer: int, *indices: int | None) -> NodeIndex:
    """A node."""
    return NodeIndex(node_type=node_type, tensor_indices=indices, layer_index=layer)


def subnode(head: NodeIndex, part: ActivationLocationType) -> AttnSubNodeIndex:
    """The query, key or value of an attention head."""
    return AttnSubNodeIndex(
        node_type=head.node_type,
        tensor_indices=head.tensor_indices,
        layer_index=head.layer_index,
        pass_type=head.pass_type,
        q_k_or_v=part,
    )


def trace(
    node_type: NodeType,
    layer: int,
    *indices: int | None,
    post: bool = True,
    detach: bool = False,
    through: AttentionTraceType | None = None,
    downstream: TraceConfig | None = None,
) -> TraceConfig:
    """A trace from a node."""
    return TraceConfig(
        node_index=node(node_type, layer, *indices),
        pre_or_post_act=PreOrPostAct.POST if post else PreOrPostAct.PRE,
        detach_layer_norm_scale=detach,
        attention_trace_type=through,
        downstream_trace_config=downstream,
    )


def is_seen(config: DecoderConfig, origin: TraceConfig | None) -> bool:
    """Whether every head of *origin* sees the token that it is traced at: sliding windows hide some."""
    if origin is None:
        return True
    if origin.node_index.node_type is HEAD and config.sliding_windows:
        t, u, _ = (index or 0 for index in origin.node_index.tensor_indices)
        window = config.sliding_windows[origin.node_index.layer_index or 0]
        if window is not None and u <= t - window:
            return False
    return is_seen(config, origin.downstream_trace_config)


def name(origin: TraceConfig | None) -> str:
    """For test ids."""
    if origin is None:
        return "loss"
    through = f"-{origin.attention_trace_type}" if origin.attention_trace_type else ""
    detached = "-detached" if origin.detach_layer_norm_scale else ""
    down = "" if origin.downstream_trace_config is None else f"-to-{name(origin.downstream_trace_config)}"
    place = f"{origin.node_index.node_type}-{origin.node_index.layer_index}"
    return f"{place}-{origin.pre_or_post_act}{through}{detached}{down}"


def loss(logits: torch.Tensor) -> torch.Tensor:
    """`models.LOSS` of one token's logits, by hand: token 7 counts twice."""
    return (logits[2] + 2 * logits[7]) / 3 - logits[11]


PLAIN_TRACES = [
    *(trace(NEURON, layer, 4, 7, post=post, detach=detach) for layer, post, detach in
      [(0, True, False), (1, False, True), (2, True, True), (2, False, False)]),
    *(trace(HEAD, layer, 4, 2, 3, post=post, detach=detach, through=through) for layer, post, detach, through in
      [(2, True, False, QK), (1, False, True, QK), (2, True, True, Q), (1, False, False, Q), (2, True, False, K),
       (1, True, True, K), (0, True, False, QK)]),
]  # fmt: skip
"""Traces that need no autoencoder and no loss."""
V_TRACES = [
    trace(HEAD, 1, 4, 2, 3, through=V, downstream=trace(NEURON, 2, 4, 7)),
    trace(HEAD, 0, 3, 1, 0, through=V, downstream=trace(NEURON, 0, 3, 5, post=False, detach=True)),
    trace(HEAD, 1, 5, 0, 1, through=V, detach=True, downstream=trace(HEAD, 2, 5, 5, 2, through=QK)),
    trace(HEAD, 0, 2, 2, 4, through=V, post=False, downstream=trace(HEAD, 2, 4, 2, 2, through=K, detach=True)),
]
V_OF_LOSS = trace(HEAD, 1, 5, 3, 2, through=V)
"""Reads the loss, which only the last token has a gradient of."""
V_CHAINS = [
    trace(HEAD, 0, 3, 1, 4, through=V, downstream=V_OF_LOSS),
    trace(HEAD, 0, 4, 2, 3, through=V, downstream=trace(
        HEAD, 1, 5, 4, 0, through=V, downstream=trace(NEURON, 2, 5, 7))),
    trace(HEAD, 0, 3, 1, 2, through=V, post=False, downstream=trace(
        HEAD, 1, 4, 3, 1, through=V, detach=True, downstream=trace(HEAD, 2, 5, 4, 2, through=V))),
    trace(HEAD, 0, 3, 0, 1, through=V, downstream=trace(
        HEAD, 1, 5, 3, 1, through=V, downstream=trace(HEAD, 2, 5, 5, 2, through=Q, post=False))),
]  # fmt: skip
"""Through V of one head after the other: each key is the query of the head before."""


def latent_traces(kind: T) -> list[TraceConfig]:
    """Traces from latents of an autoencoder of *kind*, by their own type and by the generic one."""
    is_of_stream = kind in {T.RESID_POST_ATTN, T.RESID_POST_MLP}
    own = LATENT if is_of_stream else ATTENTION_LATENT if kind is T.RESID_DELTA_ATTN else MLP_LATENT
    return [
        trace(own, 2, 4, 6, post=False),
        trace(own, 1, 4, 5, post=False, detach=True),
        trace(LATENT, 2, 3, 2, post=False, detach=True),
        # After phi many latents are 0 and so is their gradient: try a few.
        *(trace(own, 1, 4, latent, detach=latent % 2 == 0) for latent in range(5)),
    ]


def fields_of(origin: TraceConfig | None, loss_config: Any) -> dict[str, Any]:
    """The request's fields that make *origin* its origin: a chain that ends in a V trace needs the loss beside it."""
    if origin is None:
        return {"loss_fn_config": loss_config}
    last = origin
    while last.downstream_trace_config is not None:
        last = last.downstream_trace_config
    if last.attention_trace_type is V:
        return {"trace_config": origin, "loss_fn_config": loss_config}
    return {"trace_config": origin}
