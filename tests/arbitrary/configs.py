"""Indices of nodes and activations, and the traces and configs that hold them: all that the rules permit."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dst_grpc.domain.components import (
    AttentionTraceType,
    InferenceEngineType,
    NodeType,
    PassType,
    PreOrPostAct,
    TensorElementType,
)
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
)
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from tests.arbitrary.basic import ascii_characters, kept, layers, names, optional, own, tuples, uint32

L = ActivationLocationType
FLOATS = tuple(element_type for element_type in TensorElementType if element_type.is_float)
devices = st.sampled_from(["cpu", "cuda:0", "cuda:12", "mps"])
revisions = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True, alphabet=ascii_characters)
scalar_types = st.sampled_from(DerivedScalarType)
pass_types = st.sampled_from(PassType)
paths = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
one_path = st.tuples(st.none(), paths).map(lambda pair: (pair,))
path_per_layer = tuples(st.tuples(layers, paths), min_size=1, max_size=4, unique_by=lambda pair: pair[0])
handle_parts = st.tuples(revisions, st.sampled_from(FLOATS))

RANKS = {
    NodeType.ATTENTION_HEAD: 3,
    NodeType.MLP_NEURON: 2,
    NodeType.AUTOENCODER_LATENT: 2,
    NodeType.MLP_AUTOENCODER_LATENT: 2,
    NodeType.ATTENTION_AUTOENCODER_LATENT: 2,
    NodeType.RESIDUAL_STREAM_CHANNEL: 2,
}
TRACEABLE = tuple(node_type for node_type in RANKS if node_type is not NodeType.RESIDUAL_STREAM_CHANNEL)


@kept
def tensor_indices(rank: int) -> st.SearchStrategy[tuple[int | None, ...]]:
    return tuples(optional(uint32), max_size=rank)


@kept
@st.composite
def node_indices(
    draw: st.DrawFn,
    types: Any = NodeType,
    layer: st.SearchStrategy[int | None] | None = None,
    pass_type: st.SearchStrategy[PassType] = pass_types,
    *,
    single: bool = False,
) -> NodeIndex:
    node_type = draw(st.sampled_from(types))
    rank = RANKS.get(node_type, 4)
    one = tuples(uint32, min_size=rank, max_size=rank)
    indices: tuple[int | None, ...] = draw(one if single else tensor_indices(rank))
    kwargs: dict[str, Any] = {
        "node_type": node_type,
        "tensor_indices": indices,
        "layer_index": draw(optional(layers) if layer is None else layer),
        "pass_type": draw(pass_type),
    }
    if node_type is NodeType.ATTENTION_HEAD and draw(st.booleans()):
        return AttnSubNodeIndex(q_k_or_v=draw(st.sampled_from([L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE])), **kwargs)
    return NodeIndex(**kwargs)


@kept
@st.composite
def activation_indices(draw: st.DrawFn, location: ActivationLocationType | None = None) -> ActivationIndex:
    place = draw(st.sampled_from(L)) if location is None else location
    kwargs: dict[str, Any] = {
        "activation_location_type": place,
        "tensor_indices": draw(tensor_indices(len(place.dimensions))),
        "layer_index": draw(optional(layers)),
        "pass_type": draw(pass_types),
    }
    if place.node_type is NodeType.ATTENTION_HEAD and draw(st.booleans()):
        return AttnSubActivationIndex(q_or_k=draw(st.sampled_from([L.ATTN_QUERY, L.ATTN_KEY])), **kwargs)
    return ActivationIndex(**kwargs)


@kept
@st.composite
def derived_scalar_indices(draw: st.DrawFn) -> DerivedScalarIndex:
    dst = draw(scalar_types)
    return DerivedScalarIndex(
        dst=dst,
        tensor_indices=draw(tensor_indices(len(FACTS[dst].dimensions))),
        layer_index=draw(optional(layers)),
        pass_type=draw(pass_types),
    )


@kept
@st.composite
def trace_configs(
    draw: st.DrawFn,
    *,
    can_run: bool = False,
    needs_layer: bool = False,
    needs_forward: bool = False,
    max_depth: int = 4,
) -> TraceConfig:
    """Valid traces, at most *max_depth* in a chain; *can_run* for those that a backward pass can start from."""
    node = draw(
        node_indices(
            TRACEABLE if can_run else NodeType,
            layers if can_run or needs_layer else None,
            st.just(PassType.FORWARD) if needs_forward else pass_types,
            single=can_run,
        )
    )
    trace_type = None
    if node.node_type is NodeType.ATTENTION_HEAD:
        choices = st.sampled_from(AttentionTraceType)
        trace_type = draw(choices if can_run else optional(choices))
    downstream = None
    if trace_type is AttentionTraceType.V and max_depth > 1:
        downstream = draw(optional(trace_configs(can_run=can_run, max_depth=max_depth - 1)))
    return TraceConfig(
        node_index=node,
        pre_or_post_act=draw(st.sampled_from(PreOrPostAct)),
        detach_layer_norm_scale=draw(st.booleans()),
        attention_trace_type=trace_type,
        downstream_trace_config=downstream,
    )


@kept
@st.composite
def autoencoder_configs(draw: st.DrawFn) -> AutoencoderConfig:
    found = draw(path_per_layer if draw(st.booleans()) else one_path)
    return AutoencoderConfig(dst=draw(scalar_types), autoencoder_path_by_layer_index=found)


@st.composite
def dst_configs(draw: st.DrawFn) -> DstConfig:
    """Valid configs with every field, each of which may be absent."""
    device = draw(devices)

    def reference(name: str) -> str:
        handle = draw(optional(handle_parts))
        return name if handle is None else f"{name}@{handle[0]}:{handle[1]}:{device}"

    model = draw(names)
    autoencoder, several = draw(optional(names)), draw(optional(tuples(names)))
    attention_write = draw(optional(node_indices((NodeType.ATTENTION_HEAD,), layers)))
    return DstConfig(
        derive_gradients=draw(st.booleans()),
        model_name=reference(model) if draw(st.booleans()) else None,
        inference_engine_type=draw(st.sampled_from(InferenceEngineType)),
        layer_indices=draw(optional(tuples(layers, unique=True))),
        autoencoder_config=draw(optional(autoencoder_configs())),
        model_context=reference(model) if draw(st.booleans()) else None,
        autoencoder_context=None if autoencoder is None else reference(autoencoder),
        multi_autoencoder_context=None if several is None else tuple(map(reference, several)),
        trace_config=draw(optional(trace_configs(needs_layer=attention_write is not None, needs_forward=True))),
        node_index_for_attention_write=attention_write,
        device_for_raw_activations=device if draw(st.booleans()) else None,
        activation_index_for_fake_grad=draw(optional(activation_indices())),
        node_index_for_attribution=draw(optional(node_indices())),
        detach_layer_norm_scale_for_attribution=draw(st.booleans()),
    )


own(NodeIndex, node_indices())
own(ActivationIndex, activation_indices())
own(DerivedScalarIndex, derived_scalar_indices())
own(TraceConfig, trace_configs())
own(AutoencoderConfig, autoencoder_configs())
own(DstConfig, dst_configs())
