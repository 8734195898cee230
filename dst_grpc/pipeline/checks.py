"""Checks of indices against a model's sizes: that every position, layer and tap named by a request exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import traced_words
from dst_grpc.domain.components import AttentionTraceType, Dimension, NodeType
from dst_grpc.domain.nodes import NODES
from dst_grpc.errors import Reason
from dst_grpc.pipeline.sizes import Sizes, set_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.indices import NodeIndex, TensorIndices
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.scalars.topology import AutoencoderInputs


def check_layer(
    findings: Findings, layer: int | None, path: str, n_layers: int, entry: AutoencoderEntry | None = None
) -> None:
    """Note a layer that the model does not have or, if it is one of an autoencoder set, that *entry* does not cover."""
    if layer is not None and layer >= n_layers:
        findings.add(path, f"must be below the number of layers {n_layers}, not {layer}")
    elif entry is not None:
        check_covered(findings, entry, layer, path)


def check_covered(findings: Findings, entry: AutoencoderEntry, layer: int | None, path: str) -> None:
    """Note a layer that an autoencoder set does not cover."""
    if layer is not None and layer not in entry.layer_indices:
        findings.add(path, f"{entry.name} does not cover layer {layer}")


def check_positions(
    findings: Findings, indices: TensorIndices, sizes: Sequence[tuple[Dimension, int | None]], path: str
) -> None:
    """Note every position outside its axis; a size None is not known."""
    for i, (index, (dimension, size)) in enumerate(zip(indices, sizes, strict=False)):
        if index is not None and size is not None and index >= size:
            findings.add(f"{path}[{i}]", f"must be below {size}, the size of {dimension}, not {index}")


def check_node(findings: Findings, node: NodeIndex, path: str, sizes: Sizes, sets: Sequence[AutoencoderEntry]) -> None:
    """Note indices of a node that do not exist in the model, prompt or autoencoder."""
    facts = NODES[node.node_type]
    entry = set_of(sets, node.node_type) if facts.is_autoencoder_latent and sets else None
    check_layer(findings, node.layer_index, f"{path}.layer_index", sizes.n_layers, entry)
    axes = sized(facts.axes, sizes, None if entry is None else entry.n_latents)
    check_positions(findings, node.tensor_indices, axes, f"{path}.tensor_indices")
    if node.node_type is NodeType.ATTENTION_HEAD and None not in node.tensor_indices[:2]:
        t, u = (*node.tensor_indices, None, None)[:2]
        if t is not None and u is not None:
            _check_is_seen(findings, t, u, node.layer_index, f"{path}.tensor_indices[1]", sizes)


def _check_is_seen(findings: Findings, t: int, u: int, layer: int | None, path: str, sizes: Sizes) -> None:
    """Note a key token *u* that the query token *t* does not attend to."""
    if u > t:
        findings.add(path, f"must not lie after the query token {t}: attention is causal")
    window = sizes.architecture.window(layer) if layer is not None and layer < sizes.n_layers else None
    if window is not None and t - u >= window:
        description = f"must lie within {window} tokens of the query token {t}: layer {layer} sees no further"
        findings.add(path, description)


def check_trace_indices(
    findings: Findings, trace: TraceConfig, path: str, sizes: Sizes, sets: Sequence[AutoencoderEntry]
) -> None:
    """Note indices of a trace's nodes that do not exist."""
    check_node(findings, trace.node_index, f"{path}.node_index", sizes, sets)
    if trace.downstream_trace_config is not None:
        downstream = f"{path}.downstream_trace_config"
        check_trace_indices(findings, trace.downstream_trace_config, downstream, sizes, sets)


def check_trace_can_run(
    findings: Findings, trace: TraceConfig, path: str, inputs: AutoencoderInputs, *, has_loss: bool
) -> None:
    """Note what running *trace* lacks: the autoencoder of a latent, the loss that a trace through V uses."""
    node_type = trace.node_index.node_type
    facts, kind = NODES[node_type], inputs.of(node_type)
    if facts.is_autoencoder_latent and (kind is None or not kind.is_traced):
        reads = traced_words(node_type)
        description = f"a trace from {node_type} needs {facts.autoencoder} that reads {reads}: name it in autoencoders"
        findings.lack(f"{path}.node_index.node_type", description, Reason.AUTOENCODER_REQUIRED)
    if trace.downstream_trace_config is not None:
        downstream = f"{path}.downstream_trace_config"
        check_trace_can_run(findings, trace.downstream_trace_config, downstream, inputs, has_loss=has_loss)
    elif trace.attention_trace_type is AttentionTraceType.V and not has_loss:
        description = "a trace through V reads the gradient of a loss: give loss_fn_config or a downstream_trace_config"
        findings.lack("loss_fn_config", description, Reason.ORIGIN_REQUIRED)


def sized(axes: Sequence[Dimension], sizes: Sizes, n_latents: int | None) -> list[tuple[Dimension, int | None]]:
    """*axes* with their sizes; that of latents is None if *n_latents* is, which means that it is not known."""
    return [(axis, n_latents if axis.is_parameterized_dimension else sizes.of(axis)) for axis in axes]
