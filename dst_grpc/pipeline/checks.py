"""Checks of indices against a model's sizes: that every position, layer and tap named by a request exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import AttentionTraceType, Dimension, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.taps import ERROR_LOCATION, LATENT_LOCATION, Ablation
from dst_grpc.errors import Reason
from dst_grpc.pipeline.sizes import Sizes, set_of
from dst_grpc.scalars.reads import INPUT_LOCATION, TRACED_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.indices import NodeIndex, TensorIndices
    from dst_grpc.domain.interventions import AblationSpec
    from dst_grpc.domain.resolution import AutoencoderInfo
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.scalars.topology import AutoencoderInputs

_L = ActivationLocationType
_T, _U = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_AXES_OF_NODE = {
    NodeType.ATTENTION_HEAD: (_T, _U, Dimension.ATTN_HEADS),
    NodeType.MLP_NEURON: (_T, Dimension.MLP_ACTS),
    NodeType.AUTOENCODER_LATENT: (_T, Dimension.AUTOENCODER_LATENTS),
    NodeType.MLP_AUTOENCODER_LATENT: (_T, Dimension.AUTOENCODER_LATENTS),
    NodeType.ATTENTION_AUTOENCODER_LATENT: (_T, Dimension.AUTOENCODER_LATENTS),
    NodeType.RESIDUAL_STREAM_CHANNEL: (_T, Dimension.RESIDUAL_STREAM_CHANNELS),
}

NEEDED_SETS = {
    NodeType.AUTOENCODER_LATENT: "exactly one autoencoder",
    NodeType.MLP_AUTOENCODER_LATENT: "an autoencoder of the MLPs",
    NodeType.ATTENTION_AUTOENCODER_LATENT: "an autoencoder of attention",
}
"""The autoencoder that latents of a type need, in words."""


def check_layer(findings: Findings, layer: int | None, path: str, n_layers: int) -> None:
    """Note a layer that the model does not have."""
    if layer is not None and layer >= n_layers:
        findings.add(path, f"must be below the number of layers {n_layers}, not {layer}")


def check_covered(findings: Findings, info: AutoencoderInfo, layer: int | None, path: str) -> None:
    """Note a layer that an autoencoder set has none for."""
    if layer is not None and layer not in info.layer_indices:
        findings.add(path, f"{info.name} does not cover layer {layer}")


def check_positions(
    findings: Findings, indices: TensorIndices, sizes: Sequence[tuple[Dimension, int]], path: str
) -> None:
    """Note every position outside its axis."""
    for i, (index, (dimension, size)) in enumerate(zip(indices, sizes, strict=False)):
        if index is not None and index >= size:
            findings.add(f"{path}[{i}]", f"must be below {size}, the size of {dimension}, not {index}")


def check_node(findings: Findings, node: NodeIndex, path: str, sizes: Sizes, sets: Sequence[AutoencoderInfo]) -> None:
    """Note what of a node does not exist in the model, prompt or autoencoder."""
    check_layer(findings, node.layer_index, f"{path}.layer_index", sizes.n_layers)
    latents = 2**32
    if node.node_type.is_autoencoder_latent and sets:
        info = set_of(sets, node.node_type)
        check_covered(findings, info, node.layer_index, f"{path}.layer_index")
        latents = info.n_latents
    axes = [(dimension, sizes.of(dimension, latents)) for dimension in _AXES_OF_NODE.get(node.node_type, ())]
    check_positions(findings, node.tensor_indices, axes, f"{path}.tensor_indices")
    if node.node_type is NodeType.ATTENTION_HEAD and None not in node.tensor_indices[:2]:
        t, u = (*node.tensor_indices, None, None)[:2]
        if t is not None and u is not None:
            _check_is_seen(findings, t, u, node.layer_index, f"{path}.tensor_indices[1]", sizes)


def _check_is_seen(findings: Findings, t: int, u: int, layer: int | None, path: str, sizes: Sizes) -> None:
    """Note a key token *u* that the query token *t* does not see."""
    if u > t:
        findings.add(path, f"must not lie after the query token {t}: attention is causal")
    window = sizes.architecture.window(layer) if layer is not None and layer < sizes.n_layers else None
    if window is not None and t - u >= window:
        description = f"must lie within {window} tokens of the query token {t}: layer {layer} sees no further"
        findings.add(path, description)


def check_trace_indices(
    findings: Findings, trace: TraceConfig, path: str, sizes: Sizes, sets: Sequence[AutoencoderInfo]
) -> None:
    """Note what of a trace's nodes does not exist."""
    check_node(findings, trace.node_index, f"{path}.node_index", sizes, sets)
    if trace.downstream_trace_config is not None:
        downstream = f"{path}.downstream_trace_config"
        check_trace_indices(findings, trace.downstream_trace_config, downstream, sizes, sets)


def check_trace_can_run(
    findings: Findings, trace: TraceConfig, path: str, inputs: AutoencoderInputs, *, has_loss: bool
) -> None:
    """Note what running *trace* lacks: the autoencoder of a latent, the loss that a V trace reads."""
    node_type = trace.node_index.node_type
    if node_type.is_autoencoder_latent and inputs.of(node_type) not in TRACED_KINDS:
        reads = " or ".join(kind.value for kind in TRACED_KINDS)
        needed = NEEDED_SETS[node_type]
        description = f"a trace from {node_type} needs {needed} that reads {reads}: name it in autoencoders"
        findings.lack(f"{path}.node_index.node_type", description, Reason.AUTOENCODER_REQUIRED)
    if trace.downstream_trace_config is not None:
        downstream = f"{path}.downstream_trace_config"
        check_trace_can_run(findings, trace.downstream_trace_config, downstream, inputs, has_loss=has_loss)
    elif trace.attention_trace_type is AttentionTraceType.V and not has_loss:
        description = "a trace through V reads the gradient of a loss: give loss_fn_config or a downstream_trace_config"
        findings.lack("loss_fn_config", description, Reason.ORIGIN_REQUIRED)


def check_ablation(
    findings: Findings,
    spec: AblationSpec,
    path: str,
    sizes: Sizes,
    spliced: Sequence[AutoencoderInfo],
    *,
    generic: ActivationLocationType | None,
) -> Ablation:
    """Note what of an ablation does not exist in the graph; *generic*: what generic latents are."""
    index = spec.index
    location = index.activation_location_type
    if location is _L.ONLINE_AUTOENCODER_LATENT:
        location = generic or location
        findings.check(
            generic is not None,
            f"{path}.index.activation_location_type",
            f"exists only while exactly one autoencoder is spliced in, not {len(spliced)}",
        )
    reason = sizes.architecture.why_without(location)
    if reason is not None:
        description = f"{location} does not exist in the model: {reason}"
        findings.add(f"{path}.index.activation_location_type", description, Reason.UNSUPPORTED_BY_MODEL)
    check_layer(findings, index.layer_index, f"{path}.index.layer_index", sizes.n_layers)
    of_splice = {*LATENT_LOCATION.values(), *ERROR_LOCATION.values()}
    owner = next((info for info in spliced if location in _taps_of_splice(info)), None)
    if location in of_splice and location is not _L.ONLINE_AUTOENCODER_LATENT:
        findings.check(
            owner is not None,
            f"{path}.index.activation_location_type",
            f"{location} exists only while an autoencoder that has it is named in autoencoders",
        )
    if owner is not None:
        check_covered(findings, owner, index.layer_index, f"{path}.index.layer_index")
    latents = owner.n_latents if owner is not None else 2**32
    axes = [(dimension, sizes.of(dimension, latents)) for dimension in location.dimensions]
    check_positions(findings, index.tensor_indices, axes, f"{path}.index.tensor_indices")
    return Ablation(
        row=0,
        location=location,
        layer=index.layer_index,
        indices=index.tensor_indices,
        value=spec.value,
        pass_type=index.pass_type,
    )


def _taps_of_splice(info: AutoencoderInfo) -> set[ActivationLocationType]:
    if info.dst not in INPUT_LOCATION:
        return set()
    site = INPUT_LOCATION[info.dst]
    return {LATENT_LOCATION[site], *([ERROR_LOCATION[site]] if site in ERROR_LOCATION else [])}
