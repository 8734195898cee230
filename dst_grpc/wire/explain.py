"""explain.proto, what clients send: groups, runs, and the requests of TopK and Explain."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import explain_pb2 as pb
from dst_grpc.domain.components import ComponentTypeForAttention, ComponentTypeForMlp, NodeType
from dst_grpc.domain.explain import (
    DEFAULT_K,
    ExplainRequest,
    ExplainRun,
    NodeAblation,
    TopKGroup,
    TopKRequest,
    TopKSelection,
)
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.requests import Prompt
from dst_grpc.wire._reader import Reader
from dst_grpc.wire.config import (
    ablation_spec_from_wire,
    ablation_spec_to_wire,
    loss_fn_config_from_wire,
    loss_fn_config_to_wire,
)
from dst_grpc.wire.enums import (
    COMPONENT_TYPE_FOR_ATTENTION,
    COMPONENT_TYPE_FOR_MLP,
    DERIVED_SCALAR_TYPE,
    EXPLAIN_PART,
    NODE_SCOPE,
    TOP_K_SELECTION,
)
from dst_grpc.wire.indices import node_index_from_wire, node_index_to_wire
from dst_grpc.wire.requests import (
    derive_request_from_wire,
    derive_request_to_wire,
    prompt_from_wire,
    prompt_to_wire,
)
from dst_grpc.wire.trace import trace_config_from_wire, trace_config_to_wire

# Stand-ins about which no rule complains.
_ANY_PROMPT = Prompt(token_ids=(0,))
_ANY_ABLATED = NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(0, 0), layer_index=0)


def top_k_group_to_wire(group: TopKGroup) -> pb.TopKGroup:
    """The message of a group."""
    return pb.TopKGroup(
        group_id=group.group_id,
        dsts=map(DERIVED_SCALAR_TYPE.to_wire, group.dsts),
        k=group.k,
        selection=TOP_K_SELECTION.to_wire(group.selection),
    )


def top_k_group_from_wire(message: pb.TopKGroup) -> TopKGroup:
    """The group. Raises InvalidRequest."""
    reader = Reader(message)
    dsts = reader.enums("dsts", DERIVED_SCALAR_TYPE)
    selection = reader.enum("selection", TOP_K_SELECTION, TopKSelection.BOTH)
    return reader.finish(
        lambda: TopKGroup(group_id=message.group_id, dsts=dsts, k=reader.present("k"), selection=selection)
    )


def top_k_request_to_wire(request: TopKRequest) -> pb.TopKRequest:
    """The message of a request for the largest and smallest entries."""
    message = pb.TopKRequest(
        request_id=request.request_id,
        runs=map(derive_request_to_wire, request.runs),
        groups=map(top_k_group_to_wire, request.groups),
        k=request.k,
        token_index=request.token_index,
        with_sums=request.with_sums,
    )
    if request.node_scope is not None:
        message.node_scope = NODE_SCOPE.to_wire(request.node_scope)
    return message


def top_k_request_from_wire(message: pb.TopKRequest) -> TopKRequest:
    """The request for the largest and smallest entries. Raises InvalidRequest."""
    reader = Reader(message)
    runs = reader.children("runs", derive_request_from_wire)
    groups = reader.children("groups", top_k_group_from_wire)
    node_scope = reader.enum("node_scope", NODE_SCOPE, None)
    return reader.finish(
        lambda: TopKRequest(
            runs=runs,
            groups=groups,
            request_id=message.request_id,
            k=message.k if message.HasField("k") else DEFAULT_K,
            token_index=reader.present("token_index"),
            node_scope=node_scope,
            with_sums=message.with_sums,
        )
    )


def node_ablation_to_wire(ablation: NodeAblation) -> pb.NodeAblation:
    """The message of a node to set; its value travels as binary32."""
    return pb.NodeAblation(node_index=node_index_to_wire(ablation.node_index), value=ablation.value)


def node_ablation_from_wire(message: pb.NodeAblation) -> NodeAblation:
    """The node to set. Raises InvalidRequest."""
    reader = Reader(message)
    node = reader.required_child("node_index", node_index_from_wire, _ANY_ABLATED)
    return reader.finish(lambda: NodeAblation(node_index=node, value=message.value))


def explain_run_to_wire(run: ExplainRun) -> pb.ExplainRun:
    """The message of one run to explain."""
    message = pb.ExplainRun(
        prompt=prompt_to_wire(run.prompt),
        node_ablations=map(node_ablation_to_wire, run.node_ablations),
        ablation_specs=map(ablation_spec_to_wire, run.ablation_specs),
        attach_final_layer_norm_scale=run.detach_final_layer_norm_scale is False,
    )
    if run.loss_fn_config is not None:
        message.loss_fn_config.CopyFrom(loss_fn_config_to_wire(run.loss_fn_config))
    if run.trace_config is not None:
        message.trace_config.CopyFrom(trace_config_to_wire(run.trace_config))
    return message


def explain_run_from_wire(message: pb.ExplainRun) -> ExplainRun:
    """One run to explain. Raises InvalidRequest."""
    reader = Reader(message)
    prompt = reader.required_child("prompt", prompt_from_wire, _ANY_PROMPT)
    loss_fn_config = reader.child("loss_fn_config", loss_fn_config_from_wire)
    trace_config = reader.child("trace_config", trace_config_from_wire)
    node_ablations = reader.children("node_ablations", node_ablation_from_wire)
    ablation_specs = reader.children("ablation_specs", ablation_spec_from_wire)
    return reader.finish(
        lambda: ExplainRun(
            prompt=prompt,
            loss_fn_config=loss_fn_config,
            trace_config=trace_config,
            node_ablations=node_ablations,
            ablation_specs=ablation_specs,
            detach_final_layer_norm_scale=False if message.attach_final_layer_norm_scale else None,
        )
    )


def explain_request_to_wire(request: ExplainRequest) -> pb.ExplainRequest:
    """The message of a request to explain."""
    message = pb.ExplainRequest(
        request_id=request.request_id,
        model=request.model,
        runs=map(explain_run_to_wire, request.runs),
        autoencoders=request.autoencoders,
        component_type_for_mlp=COMPONENT_TYPE_FOR_MLP.to_wire(request.component_type_for_mlp),
        component_type_for_attention=COMPONENT_TYPE_FOR_ATTENTION.to_wire(request.component_type_for_attention),
        groups=map(top_k_group_to_wire, request.groups),
        k=request.k,
        parts=map(EXPLAIN_PART.to_wire, request.parts),
        scored_token_count=request.scored_token_count,
        token_pair_count=request.token_pair_count,
        top_logit_count=request.top_logit_count,
    )
    if request.node_scope is not None:
        message.node_scope = NODE_SCOPE.to_wire(request.node_scope)
    return message


def explain_request_from_wire(message: pb.ExplainRequest) -> ExplainRequest:
    """The request to explain. Raises InvalidRequest."""
    reader = Reader(message)
    runs = reader.children("runs", explain_run_from_wire)
    mlp = reader.enum("component_type_for_mlp", COMPONENT_TYPE_FOR_MLP, ComponentTypeForMlp.NEURON)
    attention = reader.enum(
        "component_type_for_attention", COMPONENT_TYPE_FOR_ATTENTION, ComponentTypeForAttention.ATTENTION_HEAD
    )
    groups = reader.children("groups", top_k_group_from_wire)
    parts = reader.enums("parts", EXPLAIN_PART)
    node_scope = reader.enum("node_scope", NODE_SCOPE, None)
    # What is unset has the default of the value's own field.
    counts = ("k", "scored_token_count", "token_pair_count", "top_logit_count")
    given = {field: getattr(message, field) for field in counts if message.HasField(field)}
    return reader.finish(
        lambda: ExplainRequest(
            runs=runs,
            request_id=message.request_id,
            model=reader.present("model"),
            autoencoders=tuple(message.autoencoders),
            component_type_for_mlp=mlp,
            component_type_for_attention=attention,
            groups=groups,
            parts=parts,
            node_scope=node_scope,
            **given,
        )
    )
