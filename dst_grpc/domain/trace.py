"""TraceConfig: the single activation that a backward pass starts from instead of a loss."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.components import AttentionTraceType, NodeType, PassType, PreOrPostAct
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.indices import ActivationIndex, NodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.errors import InvalidRequest, Violations

MAX_TRACE_DEPTH = 8
"""Longest chain of traces; each but the last is through V."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """A node whose activation a backward pass starts from."""

    node_index: NodeIndex
    """The node: a neuron (t, n), a head (t, u, h) or a latent (t, j). (None, j) only names a latent to read."""
    pre_or_post_act: PreOrPostAct
    """Start before or after the node's nonlinearity. Ignored when tracing through V."""
    detach_layer_norm_scale: bool
    """Whether the scales of the layer norm before the node, and of a post-norm on a write that it reads, are held
    constant."""
    attention_trace_type: AttentionTraceType | None = None
    """Which inputs of an attention head the gradient flows through; None unless the node is a head."""
    downstream_trace_config: TraceConfig | None = None
    """With V: the downstream node on whose gradient the head's value is projected, itself perhaps through V; None = the
    loss."""

    def __post_init__(self) -> None:
        """Check rules 7 and 8, and the length of the chain; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        is_head = self.node_index.node_type is NodeType.ATTENTION_HEAD
        problems.check(
            is_head or self.attention_trace_type is None,
            "attention_trace_type",
            f"must be absent unless node_type is {json_name(NodeType.ATTENTION_HEAD)}",
        )
        downstream = self.downstream_trace_config
        if downstream is not None:
            problems.check(
                self.attention_trace_type is AttentionTraceType.V,
                "downstream_trace_config",
                f"must be absent unless attention_trace_type is {json_name(AttentionTraceType.V)}",
            )
            problems.check(
                self.depth <= MAX_TRACE_DEPTH,
                "downstream_trace_config",
                f"makes a chain of {self.depth} traces; at most {MAX_TRACE_DEPTH} may follow one another",
            )
        problems.raise_if_any()

    @classmethod
    def from_activation_index(cls, index: ActivationIndex, *, detach_layer_norm_scale: bool = True) -> TraceConfig:
        """The trace of the node at *index*; raises InvalidRequest for a tap whose entries are not activations of
        nodes."""
        location = index.activation_location_type
        start = location.facts.traced_at
        if start is None:
            known = ", ".join(each.value for each in ActivationLocationType if each.facts.traced_at is not None)
            raise InvalidRequest.of("activation_location_type", f"{location} cannot be traced; these can: {known}")
        node_type = location.node_type
        return cls(
            node_index=NodeIndex(
                node_type=node_type,
                tensor_indices=index.tensor_indices,
                layer_index=index.layer_index,
                pass_type=index.pass_type,
            ),
            pre_or_post_act=start,
            detach_layer_norm_scale=detach_layer_norm_scale,
            attention_trace_type=AttentionTraceType.QK if node_type is NodeType.ATTENTION_HEAD else None,
        )

    @property
    def pass_type(self) -> PassType:
        """The pass of the traced node."""
        return self.node_index.pass_type

    @property
    def depth(self) -> int:
        """Traces in the chain that begins here, this one included."""
        downstream = self.downstream_trace_config
        return 1 if downstream is None else 1 + downstream.depth

    def check_can_run(self) -> None:
        """Check rule 10, what a backward pass from this trace needs; raises InvalidRequest with all that is missing."""
        problems = Violations()
        node = self.node_index
        if node.layer_index is None:
            problems.add("node_index.layer_index", "is required: a trace starts at one layer")
        if NODES[node.node_type].component is None:
            problems.add(
                "node_index.node_type",
                f"must be {json_names(each for each, row in NODES.items() if row.component is not None)}, "
                f"not {json_name(node.node_type)}",
            )
        else:
            problems.check(
                node.ndim == 0,
                "node_index.tensor_indices",
                f"must name one node; {node.ndim} of its axes are open",
            )
        if node.node_type is NodeType.ATTENTION_HEAD and self.attention_trace_type is None:
            head, known = json_name(NodeType.ATTENTION_HEAD), json_names(AttentionTraceType)
            problems.add("attention_trace_type", f"is required for {head}: {known}")
        if self.downstream_trace_config is not None:
            try:
                self.downstream_trace_config.check_can_run()
            except InvalidRequest as error:
                problems.extend(error, "downstream_trace_config")
        problems.raise_if_any()
