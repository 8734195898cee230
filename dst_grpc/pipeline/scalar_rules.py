"""The rules of derived scalar types: what each needs of the model, the autoencoders, the trace and the config.

Violations and missing fields are collected for the whole request; nothing here raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import accepted_inputs, traced_words
from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_facts import Backward, Direction
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.pipeline.checks import (
    check_covered,
    check_layer,
    check_node,
    check_positions,
    check_trace_can_run,
    check_trace_indices,
)
from dst_grpc.scalars.components import Vocabulary

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.asked_scalar import AskedScalar

_L = ActivationLocationType


def check_scalar(asked: AskedScalar) -> None:
    """Note everything that is wrong with *asked*, or missing, except its passes, layers and origin."""
    _check_model(asked)
    _check_autoencoder(asked)
    _check_trace(asked)
    _check_attribution_node(asked)
    _check_fake_grad(asked)


def _check_model(asked: AskedScalar) -> None:
    """Note a type that the model's architecture rules out."""
    reason = None if asked.facts.tap is None else asked.model.architecture.why_without(asked.facts.tap)
    if reason is not None:
        description = f"{asked.name} has no meaning in {asked.model.name!r}: {reason}"
        asked.findings.add(f"{asked.spec_path}.dst", description, Reason.UNSUPPORTED_BY_MODEL)


# Autoencoders


def _check_autoencoder(asked: AskedScalar) -> None:
    wanted, entry = asked.facts.autoencoder, asked.own_set
    if wanted is None:
        return
    allowed = accepted_inputs(asked.facts)
    of_stream = allowed is not None and all(kind.is_of_stream for kind in allowed)
    if entry is None or (of_stream and entry.input not in (allowed or ())):
        generic = wanted is NodeType.AUTOENCODER_LATENT and len(asked.sets) > 1
        has = f"has {', '.join(sorted(i.name for i in asked.sets))}" if asked.sets else "has none"
        hint = "; use the MLP_ or ATTENTION_ type instead" if generic else ""
        needs = "an autoencoder of the residual stream" if of_stream else NODES[wanted].autoencoder
        description = f"{asked.name} needs {needs}, and the request {has}{'' if of_stream else hint}"
        asked.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
        return
    if allowed is not None and entry.input not in allowed:
        names = " or ".join(kind.words for kind in allowed)
        description = f"{asked.name} needs an autoencoder that reads {names}, not {entry.input.words} ({entry.name})"
        asked.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
    if asked.facts.is_of_writes and not entry.input.writes_to_residual:
        description = f"{asked.name}: what {entry.name} reads, {entry.dst}, is not written to the residual stream"
        asked.findings.add("autoencoders", description, Reason.IMPOSSIBLE_COMBINATION)
    if asked.facts.direction is Direction.ALL_LATENT_READS:
        _check_reads_are_rows(asked, entry)
    if asked.facts.component.is_spliced:
        _check_is_spliced(asked, entry)


def _check_reads_are_rows(asked: AskedScalar, entry: AutoencoderEntry) -> None:
    """Note an autoencoder whose read directions are not the rows of its encoder."""
    if not entry.reads_rows_of_encoder:
        info = entry.info()
        has = f"{'/'.join(info.activations)}, with the normalization {'/'.join(info.normalizations)}"
        asked.findings.add("autoencoders", f"{asked.name} needs a ReLU autoencoder of raw inputs; {info.name} is {has}")


def _check_is_spliced(asked: AskedScalar, entry: AutoencoderEntry) -> None:
    if entry not in asked.spliced:
        description = f"{asked.name} reads latents in the run: name {entry.name!r} in autoencoders"
        asked.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)


# The trace


def _check_trace(asked: AskedScalar) -> None:
    facts, trace, own = asked.facts, asked.trace, asked.config.trace_config
    path = f"{asked.path}.trace_config" if own is not None else "trace_config"
    if facts.needs_trace and trace is None:
        asked.findings.lack(path if own else f"{asked.path}.trace_config", f"{asked.name} needs a traced node")
    if own is not None and own != asked.request.trace_config and _reads_origin(asked):
        description = f"differs from the request's origin, whose gradients {asked.name} reads"
        asked.findings.add(path, description, Reason.IMPOSSIBLE_COMBINATION)
    if trace is None:
        return
    if own is not None:
        check_trace_indices(asked.findings, own, path, asked.sizes, asked.sets)
    if facts.direction is Direction.LATENT_READ:
        _check_latent_read(asked, trace, path)
    elif facts.direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
        try:
            trace.check_can_run()
        except InvalidRequest as error:
            asked.findings.extend(error, path)
            return
    if facts.direction in {Direction.FINAL_ACTIVATION_RESIDUAL_GRAD, Direction.FINAL_RESIDUAL_GRAD}:
        check_trace_can_run(asked.findings, trace, path, asked.inputs, has_loss=asked.loss is not None)


def _reads_origin(asked: AskedScalar) -> bool:
    return asked.facts.requires_grad_for_forward_pass or (
        asked.config.derive_gradients and asked.facts.backward in {Backward.GRADIENT, Backward.RATIO}
    )


def _check_latent_read(asked: AskedScalar, trace: TraceConfig, path: str) -> None:
    """Rules 34 and 35."""
    node = trace.node_index
    asked.findings.check(
        NODES[node.node_type].is_autoencoder_latent,
        f"{path}.node_index.node_type",
        f"{asked.name} reads a latent, not a node of {json_name(node.node_type)}",
    )
    indices = node.tensor_indices
    asked.findings.check(
        len(indices) == 2 and indices[0] is None and indices[1] is not None,
        f"{path}.node_index.tensor_indices",
        f"{asked.name} needs all tokens and one latent",
    )
    entry = asked.own_set
    if entry is not None:
        # The latent is one of the type's own autoencoder, whatever the node's type of latent.
        axes = [(axis, asked.sizes.of(axis, entry.n_latents)) for axis in NODES[entry.node_type].axes]
        check_positions(asked.findings, indices, axes, f"{path}.node_index.tensor_indices")
    if asked.facts.single_layer and asked.config.layer_indices not in {None, (), (node.layer_index,)}:
        given = list(asked.config.layer_indices or ())
        description = f"must be the traced layer {node.layer_index}, not {given}"
        asked.findings.add(f"{asked.path}.layer_indices", description)


# The node at the end of an edge


def _check_attribution_node(asked: AskedScalar) -> None:
    """Rule 37."""
    if not asked.facts.needs_attribution_node:
        return
    node, path = asked.config.node_index_for_attribution, f"{asked.path}.node_index_for_attribution"
    if node is None:
        asked.findings.lack(path, f"{asked.name} needs the one node of the edges")
        return
    check_node(asked.findings, node, path, asked.sizes, asked.sets)
    asked.findings.check(
        node.pass_type is PassType.FORWARD, f"{path}.pass_type", f"must be {json_name(PassType.FORWARD)}"
    )
    asked.findings.check(node.layer_index is not None, f"{path}.layer_index", "is required")
    facts = NODES[node.node_type]
    if facts.component is None:
        names = json_names(each for each, row in NODES.items() if row.component is not None)
        asked.findings.add(f"{path}.node_type", f"must be {names}, not {json_name(node.node_type)}")
        return
    asked.findings.check(node.ndim == 0, f"{path}.tensor_indices", f"must name one node; {node.ndim} axes are open")
    _check_subnode(asked, node, path)
    if facts.is_autoencoder_latent:
        _check_node_autoencoder(asked, node)


def _check_subnode(asked: AskedScalar, node: NodeIndex, path: str) -> None:
    if asked.facts.direction is not Direction.SUBNODE_GRAD:
        return
    is_head = node.node_type is NodeType.ATTENTION_HEAD
    if is_head and not isinstance(node, AttnSubNodeIndex):
        asked.findings.lack(f"{path}.q_k_or_v", f"{asked.name} needs the query, key or value of a head")


def _check_node_autoencoder(asked: AskedScalar, node: NodeIndex) -> None:
    kind = asked.inputs.of(node.node_type)
    if kind is None or not kind.is_traced:
        reads = traced_words(node.node_type)
        description = f"{asked.name} needs {NODES[node.node_type].autoencoder} that reads {reads} for this node"
        asked.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
        return
    _check_is_spliced(asked, next(entry for entry in asked.sets if entry.input is kind))


# The node of VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION


def _check_fake_grad(asked: AskedScalar) -> None:
    """Rule 36."""
    if not asked.facts.needs_fake_grad_index:
        return
    index, path = asked.config.activation_index_for_fake_grad, f"{asked.path}.activation_index_for_fake_grad"
    if index is None:
        asked.findings.lack(path, f"{asked.name} needs the node that reads")
        return
    location = index.activation_location_type
    taps = [facts.tap for facts in NODES.values() if facts.may_read_one_token and facts.tap is not None]
    asked.findings.check(
        location in taps,
        f"{path}.activation_location_type",
        f"must be {json_names(taps)}, not {json_name(location)}",
    )
    asked.findings.check(index.layer_index is not None, f"{path}.layer_index", "is required")
    check_layer(asked.findings, index.layer_index, f"{path}.layer_index", asked.sizes.n_layers)
    position = index.tensor_indices[1] if len(index.tensor_indices) > 1 else None
    if position is None:
        asked.findings.add(f"{path}.tensor_indices", "must name the neuron or latent in its second place")
        return
    if location is _L.MLP_POST_ACT:
        width = asked.sizes.model.d_mlp
    else:
        kind = asked.inputs.of(Vocabulary(asked.topology, index).node_type)
        if kind is None or kind is asked.inputs.attention:
            reads = f"{NODES[NodeType.MLP_AUTOENCODER_LATENT].autoencoder} or of the residual stream"
            description = f"{asked.name} of a latent needs {reads}"
            asked.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
            return
        entry = next(entry for entry in asked.sets if entry.input is kind)
        check_covered(asked.findings, entry, index.layer_index, f"{path}.layer_index")
        width = entry.n_latents
    asked.findings.check(position < width, f"{path}.tensor_indices[1]", f"must be below {width}, not {position}")
