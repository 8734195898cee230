"""trace.proto: the node that a backward pass starts from."""

from __future__ import annotations

from functools import partial

from dst_grpc._gen.dst.v1 import trace_pb2 as pb
from dst_grpc.domain.components import AttentionTraceType, NodeType, PreOrPostAct
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.trace import MAX_TRACE_DEPTH, TraceConfig
from dst_grpc.wire._reader import Reader
from dst_grpc.wire.enums import ATTENTION_TRACE_TYPE, PRE_OR_POST_ACT
from dst_grpc.wire.indices import node_index_from_wire, node_index_to_wire

# No rule complains about a head, whichever way it is traced.
_ANY_NODE = NodeIndex(node_type=NodeType.ATTENTION_HEAD)


def trace_config_to_wire(trace: TraceConfig) -> pb.TraceConfig:
    """The message of a trace, its downstream trace included."""
    message = pb.TraceConfig(
        node_index=node_index_to_wire(trace.node_index),
        pre_or_post_act=PRE_OR_POST_ACT.to_wire(trace.pre_or_post_act),
        detach_layer_norm_scale=trace.detach_layer_norm_scale,
    )
    if trace.attention_trace_type is not None:
        message.attention_trace_type = ATTENTION_TRACE_TYPE.to_wire(trace.attention_trace_type)
    if trace.downstream_trace_config is not None:
        message.downstream_trace_config.CopyFrom(trace_config_to_wire(trace.downstream_trace_config))
    return message


def trace_config_from_wire(message: pb.TraceConfig) -> TraceConfig:
    """The trace. Raises InvalidRequest.

    A chain longer than any valid one is reported without being read: a message may nest as deep as its sender likes,
    and Python's stack may not.
    """
    return _trace_config(message, MAX_TRACE_DEPTH)


def _trace_config(message: pb.TraceConfig, depth: int) -> TraceConfig:
    reader = Reader(message)
    node_index = reader.required_child("node_index", node_index_from_wire, _ANY_NODE)
    pre_or_post_act = reader.required_enum("pre_or_post_act", PRE_OR_POST_ACT, PreOrPostAct.POST)
    attention_trace_type = reader.enum("attention_trace_type", ATTENTION_TRACE_TYPE, None)
    downstream: TraceConfig | None = None
    if depth > 1:
        downstream = reader.child("downstream_trace_config", partial(_trace_config, depth=depth - 1))
    elif message.HasField("downstream_trace_config"):
        reader.note("downstream_trace_config", f"must be absent: at most {MAX_TRACE_DEPTH} traces follow one another")
    if reader.failed("attention_trace_type"):
        # Whether there may be a downstream trace depends on it, and whether it may be there on the node.
        node_index, attention_trace_type = _ANY_NODE, AttentionTraceType.V
    return reader.finish(
        lambda: TraceConfig(
            node_index=node_index,
            pre_or_post_act=pre_or_post_act,
            detach_layer_norm_scale=message.detach_layer_norm_scale,
            attention_trace_type=attention_trace_type,
            downstream_trace_config=downstream,
        )
    )
