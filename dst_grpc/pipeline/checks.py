"""Checks of indices against a model's sizes: that every position, layer and tap named by a request exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.taps import ERROR_LOCATION, LATENT_LOCATION, Ablation
from dst_grpc.errors import Reason
from dst_grpc.pipeline.sizes import Sizes, set_of
from dst_grpc.scalars.reads import INPUT_LOCATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.indices import NodeIndex, TensorIndices
    from dst_grpc.domain.interventions import AblationSpec
    from dst_grpc.domain.resolution import AutoencoderInfo
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.errors import Violations

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


def check_layer(problems: Violations, layer: int | None, path: str, n_layers: int) -> None:
    """Note a layer that the model does not have."""
    if layer is not None and layer >= n_layers:
        problems.add(path, f"must be below the number of layers {n_layers}, not {layer}")


def check_covered(problems: Violations, info: AutoencoderInfo, layer: int | None, path: str) -> None:
    """Note a layer that an autoencoder set has none for."""
    if layer is not None and layer not in info.layer_indices:
        problems.add(path, f"{info.name} does not cover layer {layer}")


def check_positions(
    problems: Violations, indices: TensorIndices, sizes: Sequence[tuple[Dimension, int]], path: str
) -> None:
    """Note every position outside its axis."""
    for i, (index, (dimension, size)) in enumerate(zip(indices, sizes, strict=False)):
        if index is not None and index >= size:
            problems.add(f"{path}[{i}]", f"must be below {size}, the size of {dimension}, not {index}")


def check_node(problems: Violations, node: NodeIndex, path: str, sizes: Sizes, sets: Sequence[AutoencoderInfo]) -> None:
    """Note what of a node does not exist in the model, prompt or autoencoder."""
    check_layer(problems, node.layer_index, f"{path}.layer_index", sizes.n_layers)
    latents = 2**32
    if node.node_type.is_autoencoder_latent and sets:
        info = set_of(sets, node.node_type)
        check_covered(problems, info, node.layer_index, f"{path}.layer_index")
        latents = info.n_latents
    axes = [(dimension, sizes.of(dimension, latents)) for dimension in _AXES_OF_NODE.get(node.node_type, ())]
    check_positions(problems, node.tensor_indices, axes, f"{path}.tensor_indices")
    if node.node_type is NodeType.ATTENTION_HEAD and None not in node.tensor_indices[:2]:
        t, u = (*node.tensor_indices, None, None)[:2]
        if t is not None and u is not None:
            _check_is_seen(problems, t, u, node.layer_index, f"{path}.tensor_indices[1]", sizes)


def _check_is_seen(problems: Violations, t: int, u: int, layer: int | None, path: str, sizes: Sizes) -> None:
    """Note a key token *u* that the query token *t* does not see."""
    if u > t:
        problems.add(path, f"must not lie after the query token {t}: attention is causal")
    window = sizes.architecture.window(layer) if layer is not None and layer < sizes.n_layers else None
    if window is not None and t - u >= window:
        description = f"must lie within {window} tokens of the query token {t}: layer {layer} sees no further"
        problems.add(path, description)


def check_trace_indices(
    problems: Violations, trace: TraceConfig, path: str, sizes: Sizes, sets: Sequence[AutoencoderInfo]
) -> None:
    """Note what of a trace's nodes does not exist."""
    check_node(problems, trace.node_index, f"{path}.node_index", sizes, sets)
    if trace.downstream_trace_config is not None:
        downstream = f"{path}.downstream_trace_config"
        check_trace_indices(problems, trace.downstream_trace_config, downstream, sizes, sets)


def check_ablation(
    problems: Violations,
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
        problems.check(
            generic is not None,
            f"{path}.index.activation_location_type",
            f"exists only while exactly one autoencoder is spliced in, not {len(spliced)}",
        )
    reason = sizes.architecture.why_without(location)
    if reason is not None:
        description = f"{location} does not exist in the model: {reason}"
        problems.add(f"{path}.index.activation_location_type", description, Reason.UNSUPPORTED_BY_MODEL)
    check_layer(problems, index.layer_index, f"{path}.index.layer_index", sizes.n_layers)
    of_splice = {*LATENT_LOCATION.values(), *ERROR_LOCATION.values()}
    owner = next((info for info in spliced if location in _taps_of_splice(info)), None)
    if location in of_splice and location is not _L.ONLINE_AUTOENCODER_LATENT:
        problems.check(
            owner is not None,
            f"{path}.index.activation_location_type",
            f"{location} exists only while an autoencoder that has it is named in autoencoders",
        )
    if owner is not None:
        check_covered(problems, owner, index.layer_index, f"{path}.index.layer_index")
    latents = owner.n_latents if owner is not None else 2**32
    axes = [(dimension, sizes.of(dimension, latents)) for dimension in location.dimensions]
    check_positions(problems, index.tensor_indices, axes, f"{path}.index.tensor_indices")
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
