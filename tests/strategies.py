"""Hypothesis strategies for every kind of value that travels, and for arbitrary messages. Shared by all tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from dst_grpc import errors
from dst_grpc.domain.architecture import (
    ActivationFunction,
    Architecture,
    ModelDimensions,
    NormKind,
    PositionKind,
    UnsupportedType,
)
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    Dimension,
    InferenceEngineType,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
    TensorElementType,
    TensorEncoding,
)
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.entries import entries_are_nodes
from dst_grpc.domain.explain import (
    ExplainRequest,
    ExplainRun,
    NodeAblation,
    NodeScope,
    TopKGroup,
    TopKRequest,
    TopKSelection,
)
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
)
from dst_grpc.domain.interventions import AblationSpec, AddVector, DetachGradient, Intervention, ScaleValue, SetValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.put_tensors import PutTensor, TensorDescription
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import (
    CancelItem,
    DerivedScalarSpec,
    DeriveRequest,
    DeriveStreamRequest,
    Prompt,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextKind,
    ContextState,
    ContextStatus,
    CostEstimate,
    LayerCheck,
    LoadProgress,
    ModelInfo,
    RegistryChange,
    Resolution,
    ScalarResolution,
    TapUse,
    Validated,
)
from dst_grpc.domain.results import (
    AnswerHeader,
    AnswerTrailer,
    AttentionImplementation,
    Axis,
    DenseTensor,
    NotFinite,
    Provenance,
    RunHeader,
    RunStatistics,
    RunSummary,
    SparseTensor,
    TensorInfo,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from dst_grpc.domain.server_info import ServerInfo, ServerLimits
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.domain.type_info import DerivedScalarTypeInfo

L = ActivationLocationType
FLOATS = tuple(element_type for element_type in TensorElementType if element_type.is_float)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
layers = st.integers(0, 40) | uint32
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,12}", fullmatch=True)
devices = st.sampled_from(["cpu", "cuda:0", "cuda:12", "mps"])
revisions = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
doubles = st.floats(allow_nan=False)
seconds = st.integers(0, 10**12).map(lambda micros: micros / 10**6)
"""Times that are whole nanoseconds, as those that travel exactly are."""
scalar_types = st.sampled_from(DerivedScalarType)
pass_types = st.sampled_from(PassType)

RANKS = {
    NodeType.ATTENTION_HEAD: 3,
    NodeType.MLP_NEURON: 2,
    NodeType.AUTOENCODER_LATENT: 2,
    NodeType.MLP_AUTOENCODER_LATENT: 2,
    NodeType.ATTENTION_AUTOENCODER_LATENT: 2,
    NodeType.RESIDUAL_STREAM_CHANNEL: 2,
}
TRACEABLE = [node_type for node_type in RANKS if node_type is not NodeType.RESIDUAL_STREAM_CHANNEL]


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def tuples(values: st.SearchStrategy[Any], max_size: int = 3, **kwargs: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=max_size, **kwargs).map(tuple)


def tensor_indices(rank: int) -> st.SearchStrategy[tuple[int | None, ...]]:
    return tuples(optional(uint32), max_size=rank)


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
    one = st.lists(uint32, min_size=rank, max_size=rank).map(tuple)
    indices: tuple[int | None, ...] = draw(one) if single else draw(tensor_indices(rank))
    kwargs: dict[str, Any] = {
        "node_type": node_type,
        "tensor_indices": indices,
        "layer_index": draw(optional(layers) if layer is None else layer),
        "pass_type": draw(pass_type),
    }
    if node_type is NodeType.ATTENTION_HEAD and draw(st.booleans()):
        return AttnSubNodeIndex(q_k_or_v=draw(st.sampled_from([L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE])), **kwargs)
    return NodeIndex(**kwargs)


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


@st.composite
def derived_scalar_indices(draw: st.DrawFn) -> DerivedScalarIndex:
    dst = draw(scalar_types)
    return DerivedScalarIndex(
        dst=dst,
        tensor_indices=draw(tensor_indices(len(FACTS[dst].dimensions))),
        layer_index=draw(optional(layers)),
        pass_type=draw(pass_types),
    )


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


@st.composite
def autoencoder_configs(draw: st.DrawFn) -> AutoencoderConfig:
    paths = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    alone = st.tuples(st.none(), paths).map(lambda pair: (pair,))
    many = st.lists(st.tuples(layers, paths), min_size=1, max_size=4, unique_by=lambda pair: pair[0]).map(tuple)
    return AutoencoderConfig(dst=draw(scalar_types), autoencoder_path_by_layer_index=draw(alone | many))


@st.composite
def dst_configs(draw: st.DrawFn) -> DstConfig:
    """Valid configs with every field, each of which may be absent."""
    device = draw(devices)

    def reference(name: str) -> st.SearchStrategy[str]:
        element = st.sampled_from(FLOATS)
        handle = st.tuples(revisions, element).map(lambda pair: f"{name}@{pair[0]}:{pair[1]}:{device}")
        return st.just(name) | handle

    model = draw(names)
    attention_write = draw(optional(node_indices([NodeType.ATTENTION_HEAD], layers)))
    return DstConfig(
        derive_gradients=draw(st.booleans()),
        model_name=draw(optional(reference(model))),
        inference_engine_type=draw(st.sampled_from(InferenceEngineType)),
        layer_indices=draw(optional(tuples(layers, unique=True))),
        autoencoder_config=draw(optional(autoencoder_configs())),
        model_context=draw(optional(reference(model))),
        autoencoder_context=draw(optional(names.flatmap(reference))),
        multi_autoencoder_context=draw(optional(tuples(names.flatmap(reference)))),
        trace_config=draw(optional(trace_configs(needs_layer=attention_write is not None, needs_forward=True))),
        node_index_for_attention_write=attention_write,
        device_for_raw_activations=draw(optional(st.just(device))),
        activation_index_for_fake_grad=draw(optional(activation_indices())),
        node_index_for_attribution=draw(optional(node_indices())),
        detach_layer_norm_scale_for_attribution=draw(st.booleans()),
    )


@st.composite
def loss_fn_configs(draw: st.DrawFn) -> LossFnConfig:
    name = draw(st.sampled_from(LossFnName))
    has_distractors = name not in {LossFnName.LOGIT_MINUS_MEAN, LossFnName.PROBS}
    target_tokens = draw(tuples(texts))
    needs_ids = name is not LossFnName.ZERO and not target_tokens
    return LossFnConfig(
        name=name,
        target_tokens=target_tokens,
        distractor_tokens=draw(tuples(texts)) if has_distractors else (),
        target_token_ids=draw(tuples(uint32, min_size=1 if needs_ids else 0)),
        distractor_token_ids=draw(tuples(uint32)) if has_distractors else (),
    )


@st.composite
def ablation_specs(draw: st.DrawFn) -> AblationSpec:
    location = draw(st.sampled_from(L))
    rank = len(location.dimensions)
    index = ActivationIndex(
        activation_location_type=location,
        tensor_indices=draw(st.lists(optional(uint32), min_size=rank, max_size=rank).map(tuple)),
        layer_index=None if location.has_no_layers else draw(optional(layers)),
        pass_type=draw(pass_types),
    )
    value = draw(st.floats(width=32, allow_nan=False, allow_infinity=False))
    return AblationSpec(index=index, value=value)


request_tensors = st.builds(RequestTensor, handle=texts.filter(bool)) | st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6
).flatmap(
    lambda numbers: st.sampled_from([(6,), (2, 3), (1, 6, 1)]).map(
        lambda shape: RequestTensor(tensor=np.array(numbers, np.float32).reshape(shape))
    )
)


@st.composite
def axis_selections(draw: st.DrawFn) -> AxisSelection:
    start = draw(st.integers(0, 2**31))
    return draw(
        st.sampled_from(
            [
                None,
                start,
                PositionRange(start=start, stop=start + draw(st.integers(1, 9))),
                PositionList(positions=draw(tuples(uint32, min_size=1, unique=True))),
            ]
        )
    )


@st.composite
def interventions(draw: st.DrawFn) -> Intervention:
    location = draw(st.sampled_from(L))
    pass_type = draw(pass_types)
    at = TapSelection(
        activation_location_type=location,
        axes=tuple(draw(axis_selections()) for _ in range(draw(st.integers(0, len(location.dimensions))))),
        layer_index=None if location.has_no_layers else draw(optional(layers)),
        pass_type=pass_type,
    )
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    actions = [st.builds(SetValue, scalar=number), st.just(DetachGradient())]
    if pass_type is PassType.FORWARD:
        actions = [
            actions[0],
            st.builds(SetValue, tensor=request_tensors),
            st.builds(AddVector, vector=request_tensors, factor=number),
            st.builds(ScaleValue, factor=number),
        ]
    return Intervention(at=at, action=draw(st.one_of(actions)))


prompts = texts.filter(bool).map(lambda text: Prompt(text=text)) | tuples(uint32, min_size=1).map(
    lambda ids: Prompt(token_ids=ids)
)
derived_scalar_specs = st.builds(DerivedScalarSpec, dst=scalar_types, config=optional(dst_configs()))


@st.composite
def derive_requests(draw: st.DrawFn, *, prompt: st.SearchStrategy[Prompt | None] = prompts) -> DeriveRequest:
    return DeriveRequest(
        prompt=draw(prompt),
        derived_scalars=draw(tuples(derived_scalar_specs)),
        request_id=draw(texts),
        model=draw(optional(names)),
        loss_fn_config=draw(optional(loss_fn_configs())),
        trace_config=draw(optional(trace_configs(can_run=True))),
        ablation_specs=draw(tuples(ablation_specs())),
        autoencoders=draw(tuples(names, unique=True)),
        config=draw(dst_configs()),
        element_type=draw(st.sampled_from(FLOATS)),
        encoding=draw(st.sampled_from(TensorEncoding)),
        interventions=draw(tuples(interventions())),
        detach_final_layer_norm_scale=draw(optional(st.booleans())),
        max_chunk_bytes=draw(st.sampled_from([0, 1024, 2**20])),
    )


timeouts = st.integers(1, 10**15).map(lambda nanoseconds: nanoseconds / 10**9)
cancel_items = st.builds(CancelItem, request_id=texts)
derive_stream_requests = st.builds(
    DeriveStreamRequest, message=derive_requests(), timeout=optional(timeouts)
) | st.builds(DeriveStreamRequest, message=cancel_items)
resolve_requests = st.builds(ResolveRequest, request=derive_requests(prompt=optional(prompts)), load=st.booleans())

resolve_stream_requests = st.builds(ResolveStreamRequest, message=resolve_requests)

small_axes = tuples(st.builds(Axis, st.sampled_from(Dimension), st.integers(0, 5)))


@st.composite
def tensor_infos(
    draw: st.DrawFn,
    tensor_id: st.SearchStrategy[int] = uint32,
    element_types: Any = TensorElementType,
) -> TensorInfo:
    axes = draw(small_axes)
    elements = int(np.prod([axis.size for axis in axes], dtype=np.int64))
    is_sparse = bool(axes) and draw(st.booleans())
    return TensorInfo(
        tensor_id=draw(tensor_id),
        dst=draw(scalar_types),
        pass_type=draw(pass_types),
        layer_index=draw(optional(layers)),
        axes=axes,
        element_type=draw(st.sampled_from(element_types)),
        encoding=TensorEncoding.SPARSE_LATENTS if is_sparse else TensorEncoding.DENSE,
        nonzero_count=draw(st.integers(0, elements)) if is_sparse else None,
        spec_index=draw(uint32),
        zero_by_definition=draw(st.booleans()),
    )


STORED_AS = {
    TensorElementType.FLOAT32: "<f4",
    TensorElementType.FLOAT16: "<f2",
    TensorElementType.BFLOAT16: "<u2",
}


@st.composite
def tensors(draw: st.DrawFn, tensor_id: int) -> DenseTensor | SparseTensor:
    """Tensors as a server makes them, with any bits for values: NaN of every kind, infinities, subnormals."""
    info = draw(tensor_infos(st.just(tensor_id), FLOATS))
    dtype = np.dtype(STORED_AS[info.element_type])
    elements = int(np.prod(info.shape, dtype=np.int64))
    count = elements if info.nonzero_count is None else info.nonzero_count
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    values = np.frombuffer(raw, dtype)
    if info.nonzero_count is None:
        return DenseTensor(info, values.reshape(info.shape))
    places = sorted(draw(st.permutations(range(elements)))[:count])
    coordinates = np.array([np.unravel_index(place, info.shape) for place in places], np.uint32)
    return SparseTensor(info, values, coordinates.reshape(count, len(info.axes)))


pairs_by_key = st.dictionaries(texts, texts, max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))
run_statistics = st.builds(
    RunStatistics,
    forward_passes=uint32,
    backward_passes=uint32,
    queue_duration=seconds,
    pass_duration=seconds,
    derive_duration=seconds,
)
provenances = st.builds(
    Provenance,
    model=texts,
    model_digest=texts,
    autoencoder_digests=pairs_by_key,
    element_type=st.sampled_from(TensorElementType),
    device=texts,
    library_versions=pairs_by_key,
    config_digest=texts,
    attention=st.sampled_from(AttentionImplementation),
    batch_size=uint32,
)
run_summaries = st.builds(RunSummary, statistics=run_statistics, provenance=provenances)
answer_trailers = st.builds(
    AnswerTrailer,
    tensor_count=uint32,
    byte_count=uint64,
    checksums=tuples(uint32),
    statistics=run_statistics,
    provenance=provenances,
)


not_finites = st.builds(
    NotFinite,
    description=texts,
    activation_location_type=optional(st.sampled_from(ActivationLocationType)),
    layer_index=optional(layers),
    token_index=optional(uint32),
    pass_type=pass_types,
)


@st.composite
def answer_headers(draw: st.DrawFn, infos: tuple[TensorInfo, ...] | None = None) -> AnswerHeader:
    if infos is None:
        infos = tuple(draw(tensor_infos(st.just(i))) for i in range(draw(st.integers(0, 3))))
    return AnswerHeader(
        model=draw(texts),
        token_ids=draw(tuples(uint32)),
        token_strings=draw(tuples(texts)),
        tensors=infos,
        loss=draw(optional(doubles)),
        activation_value=draw(optional(doubles)),
        detach_final_layer_norm_scale=draw(st.booleans()),
        not_finite=draw(optional(not_finites)),
    )


@st.composite
def answers(draw: st.DrawFn) -> tuple[AnswerHeader, tuple[DenseTensor | SparseTensor, ...], RunSummary]:
    """The parts of an answer, as a pipeline yields them."""
    parts = tuple(draw(tensors(i)) for i in range(draw(st.integers(0, 4))))
    return draw(answer_headers(tuple(part.info for part in parts))), parts, draw(run_summaries)


model_dimensions = st.builds(ModelDimensions, **dict.fromkeys(ModelDimensions.__dataclass_fields__, uint32))
architectures = st.builds(
    Architecture,
    norm=st.sampled_from(NormKind),
    positions=st.sampled_from(PositionKind),
    layers_without_positions=tuples(uint32),
    activation=st.sampled_from(ActivationFunction),
    gated=st.booleans(),
    parallel=st.booleans(),
    post_norms=st.booleans(),
    qk_norm=st.booleans(),
    attn_softcap=optional(doubles),
    final_softcap=optional(doubles),
    sliding_windows=tuples(optional(st.integers(1, 2**32 - 1))),
)
unsupported_types = st.builds(UnsupportedType, dst=scalar_types, reason=texts)
model_infos = st.builds(
    ModelInfo,
    name=texts,
    handle=texts,
    family=texts,
    dimensions=model_dimensions,
    element_type=optional(st.sampled_from(TensorElementType)),
    device=texts,
    digest=texts,
    parameter_bytes=uint64,
    source=texts,
    default_model=st.booleans(),
    state=st.sampled_from(ContextState),
    autoencoders=tuples(texts),
    architecture=architectures,
    unsupported=tuples(unsupported_types),
    revision=texts,
    error=st.none(),
)
layer_checks = st.builds(
    LayerCheck,
    layer_index=uint32,
    l0=doubles,
    fraction_of_variance_unexplained=optional(doubles),
    dead_latents=optional(uint32),
    orientation=optional(doubles),
    reading=texts,
)
autoencoder_infos = st.builds(
    AutoencoderInfo,
    name=texts,
    handle=texts,
    model=texts,
    dst=optional(scalar_types),
    node_type=optional(st.sampled_from(NodeType)),
    layer_indices=tuples(uint32),
    n_latents=uint32,
    activations=tuples(st.sampled_from(AutoencoderActivation)),
    spliceable=st.booleans(),
    parameter_bytes=uint64,
    digest=texts,
    state=st.sampled_from(ContextState),
    declared=tuples(layer_checks),
    measured=tuples(layer_checks),
    formats=tuples(st.sampled_from(("native", "saelens", "gemma_scope"))),
    output=optional(scalar_types),
    normalizations=tuples(st.sampled_from(InputNormalization)),
    input_norms=tuples(st.sampled_from(ModelNorm)),
    folded=tuples(texts),
    source=texts,
    revision=texts,
    error=st.none(),
)
registry_changes = st.builds(RegistryChange, added=tuples(texts), removed=tuples(texts), changed=tuples(texts))
context_statuses = st.builds(
    ContextStatus,
    handle=texts,
    kind=st.sampled_from(ContextKind),
    state=st.sampled_from(ContextState),
    bytes_total=uint64,
    bytes_loaded=uint64,
    device=texts,
    pins=uint32,
    hits=uint64,
    idle_duration=seconds,
    error=st.none(),
    pinned=st.booleans(),
)
validateds = st.just(Validated())
load_progresses = st.builds(LoadProgress, context=texts, bytes_done=uint64, bytes_total=uint64)
scalar_resolutions = st.builds(
    ScalarResolution,
    dst=scalar_types,
    config=dst_configs(),
    requires_grad=st.booleans(),
    taps=tuples(st.builds(TapUse, location=st.sampled_from(L), pass_type=pass_types)),
    pass_types=tuples(pass_types),
    layer_indices=tuples(uint32),
    axes=small_axes,
    output_bytes=uint64,
)
cost_estimates = st.builds(
    CostEstimate,
    sequence_tokens=uint32,
    forward_passes=uint32,
    backward_passes=uint32,
    floating_point_operations=uint64,
    peak_bytes=uint64,
    output_bytes=uint64,
)
resolutions = st.builds(
    Resolution,
    config=dst_configs(),
    device=texts,
    model=model_infos,
    autoencoders=tuples(autoencoder_infos, max_size=2),
    scalars=tuples(scalar_resolutions, max_size=2),
    cost=cost_estimates,
    contexts=tuples(context_statuses, max_size=2),
)


floats32 = st.floats(width=32, allow_nan=False)
CHOOSABLE = [dst for dst, facts in FACTS.items() if entries_are_nodes(facts)]
counts = st.integers(1, 2**32 - 1)


@st.composite
def top_k_groups(draw: st.DrawFn, group_id: st.SearchStrategy[str] | None = None) -> TopKGroup:
    dsts = st.lists(st.sampled_from(CHOOSABLE), min_size=1, max_size=4, unique_by=lambda dst: FACTS[dst].node_type)
    return TopKGroup(
        group_id=draw(texts.filter(bool) if group_id is None else group_id),
        dsts=tuple(draw(dsts)),
        k=draw(optional(counts)),
        selection=draw(st.sampled_from(TopKSelection)),
    )


def several_groups(min_size: int) -> st.SearchStrategy[tuple[TopKGroup, ...]]:
    return tuples(top_k_groups(), min_size=min_size, unique_by=lambda group: group.group_id)


@st.composite
def top_k_requests(draw: st.DrawFn) -> TopKRequest:
    runs = draw(tuples(derive_requests(), max_size=2, min_size=1))
    plain = tuple(replace(run, derived_scalars=(), config=replace(run.config, derive_gradients=False)) for run in runs)
    return TopKRequest(
        runs=plain,
        groups=draw(several_groups(1)),
        request_id=draw(texts),
        k=draw(counts),
        token_index=draw(optional(st.integers(-(2**31) + 1, 2**31 - 1))),
        node_scope=draw(optional(st.sampled_from(NodeScope))),
        with_sums=draw(st.booleans()),
    )


@st.composite
def node_ablations(draw: st.DrawFn) -> NodeAblation:
    node_type = draw(st.sampled_from([facts.type for facts in NODES.values() if facts.ablated_tap is not None]))
    first, *middle = draw(st.lists(uint32, min_size=RANKS[node_type] - 1, max_size=RANKS[node_type] - 1))
    node = NodeIndex(
        node_type=node_type,
        tensor_indices=(first, *(draw(optional(st.just(index))) for index in middle), draw(uint32)),
        layer_index=draw(layers),
    )
    return NodeAblation(node_index=node, value=draw(st.floats(width=32, allow_nan=False, allow_infinity=False)))


explain_runs = st.builds(
    ExplainRun,
    prompt=prompts,
    loss_fn_config=optional(loss_fn_configs()),
    trace_config=optional(trace_configs(can_run=True)),
    node_ablations=tuples(node_ablations()),
    ablation_specs=tuples(ablation_specs()),
    detach_final_layer_norm_scale=optional(st.booleans()),
    interventions=tuples(interventions()),
)


@st.composite
def explain_requests(draw: st.DrawFn) -> ExplainRequest:
    return ExplainRequest(
        runs=draw(tuples(explain_runs, min_size=1)),
        request_id=draw(texts),
        model=draw(optional(names)),
        autoencoders=draw(tuples(names, unique=True)),
        component_type_for_mlp=draw(st.sampled_from(ComponentTypeForMlp)),
        component_type_for_attention=draw(st.sampled_from(ComponentTypeForAttention)),
        groups=draw(several_groups(0)),
        k=draw(counts),
        parts=draw(tuples(st.sampled_from(ExplainPart), unique=True)),
        scored_token_count=draw(st.integers(1, 1000)),
        token_pair_count=draw(st.integers(1, 1000)),
        top_logit_count=draw(st.integers(1, 10_000)),
        node_scope=draw(optional(st.sampled_from(NodeScope))),
        unit_length_embeddings=draw(optional(st.booleans())),
    )


run_headers = st.builds(
    RunHeader,
    model=texts,
    token_ids=tuples(uint32),
    token_strings=tuples(texts),
    loss=optional(doubles),
    activation_value=optional(doubles),
    detach_final_layer_norm_scale=st.booleans(),
)


@st.composite
def arrays32(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape))
    values = draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    return np.array(values, np.float32).reshape(shape)


@st.composite
def scalar_sums(draw: st.DrawFn) -> ScalarSum:
    n_tokens = draw(st.integers(0, 3))
    shape = draw(st.sampled_from([(n_tokens,), (n_tokens, n_tokens)]))
    return ScalarSum(dst=draw(scalar_types), values=draw(arrays32(shape)), first_token=draw(uint32))


completenesses = st.builds(
    Completeness,
    listed=doubles,
    total=doubles,
    target=optional(doubles),
    reconstruction_error=optional(doubles),
    uncovered_layers=optional(doubles),
)


@st.composite
def group_values(draw: st.DrawFn, n_nodes: int) -> GroupValues:
    places = tuples(st.integers(0, n_nodes - 1)) if n_nodes else st.just(())
    return GroupValues(
        group_id=draw(texts),
        values=draw(arrays32((n_nodes,))),
        top=draw(places),
        bottom=draw(places),
        completeness=draw(optional(completenesses)),
    )


@st.composite
def node_tables(draw: st.DrawFn) -> NodeTable:
    nodes = draw(tuples(node_indices(pass_type=st.just(PassType.FORWARD))))
    vocab_tokens = draw(st.lists(texts, min_size=len(nodes), max_size=len(nodes)).map(tuple))
    return NodeTable(
        nodes=nodes,
        groups=tuple(draw(group_values(len(nodes))) for _ in range(draw(st.integers(0, 2)))),
        vocab_tokens=vocab_tokens if any(vocab_tokens) and draw(st.booleans()) else (),
        log_normalizer=draw(optional(doubles)),
    )


token_scores = st.builds(TokenScore, token_id=uint32, token=texts, score=floats32, normalized_score=floats32)
node_tokens = st.builds(NodeTokens, node=uint32, top=tuples(token_scores), bottom=tuples(token_scores))
scored_tokens = st.builds(ScoredTokens, part=st.sampled_from(ExplainPart), nodes=tuples(node_tokens))
node_token_pairs = st.builds(NodeTokenPairs, node=uint32, attended_tokens=tuples(st.tuples(uint32, floats32)))
token_pairs = st.builds(TokenPairs, nodes=tuples(node_token_pairs))
runs_trailers = st.builds(RunsTrailer, frame_count=uint32, statistics=run_statistics, provenance=provenances)
PART_VALUES: dict[PartKind, st.SearchStrategy[Any]] = {
    PartKind.HEADER: run_headers,
    PartKind.NODE_TABLE: node_tables(),
    PartKind.COMPONENT_SUMS: node_tables(),
    PartKind.SCALAR_SUM: scalar_sums(),
    PartKind.SCORED_TOKENS: scored_tokens,
    PartKind.TOKEN_PAIRS: token_pairs,
    PartKind.TOP_LOGITS: node_tables(),
    PartKind.TRAILER: runs_trailers,
}
TOP_K_KINDS = (PartKind.HEADER, PartKind.NODE_TABLE, PartKind.SCALAR_SUM, PartKind.TRAILER)


@st.composite
def explanation_parts(draw: st.DrawFn, kinds: Sequence[PartKind] = tuple(PartKind)) -> ExplanationPart:
    kind = draw(st.sampled_from(kinds))
    return ExplanationPart(kind=kind, value=draw(PART_VALUES[kind]), run_index=draw(uint32))


server_limits = st.builds(
    ServerLimits,
    max_request_bytes=uint64,
    max_response_bytes=uint64,
    max_queued_requests=uint32,
    max_items_in_flight_per_stream=uint32,
    max_items_per_stream=uint32,
    max_run_bytes=uint64,
    max_put_tensor_bytes=uint64,
    max_put_tensor_ttl=seconds,
)
server_infos = st.builds(
    ServerInfo, version=texts, protocol_version=uint32, limits=server_limits, features=tuples(texts)
)
tensor_descriptions = st.builds(
    TensorDescription,
    element_type=st.sampled_from(FLOATS),
    sizes=tuples(st.integers(1, 2**12)),
    ttl=optional(timeouts),
    checksum=optional(uint32),
)
put_tensors = st.builds(
    PutTensor,
    handle=texts,
    byte_count=uint64,
    expire_time=st.integers(0, 10**16).map(
        lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    ),
)
type_infos = scalar_types.map(DerivedScalarTypeInfo.of)


@st.composite
def dst_errors(draw: st.DrawFn, max_size: int = 12, max_violations: int = 3) -> errors.DstError:
    """Errors of every class, as the package raises them."""
    words = st.text(max_size=max_size)
    cls = draw(st.sampled_from(CONCRETE_ERRORS))
    common: dict[str, Any] = {"metadata": draw(st.dictionaries(words, words, max_size=3))}
    if cls is errors.Internal:
        return errors.Internal(draw(words), error_id=draw(words))
    common["reason"] = draw(st.sampled_from(errors.Reason))
    if cls in {errors.InvalidRequest, errors.PreconditionFailed}:
        violations = st.builds(errors.FieldViolation, words, words.map(lambda text: text + "."))
        found = draw(st.lists(violations, min_size=1, max_size=max_violations))
        return cls(found, **common)
    if cls is errors.NotFound:
        common |= {"resource_type": draw(words), "resource_name": draw(words), "nearest": draw(tuples(words))}
    if cls in {errors.Exhausted, errors.Unavailable}:
        common["retry_after_seconds"] = draw(optional(seconds))
    return cls(draw(words).strip() + ".", **common)


CONCRETE_ERRORS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, errors.DstError)
    and not cls.__name__.startswith("_")
    and cls is not errors.DstError
]

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 5) | uint32,
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 5) | uint64,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


@st.composite
def messages(draw: st.DrawFn, message_type: type[Message], depth: int = 6) -> Any:
    """Any message of a type: every field may be absent, enums may hold numbers that nobody knows."""
    message = message_type()
    _fill(draw, message, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        if (is_message and depth == 0) or not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update(draw(st.dictionaries(texts, texts, max_size=2)))
        elif field.is_repeated:
            for _ in range(draw(st.integers(1, 3))):
                if is_message:
                    _fill(draw, getattr(message, field.name).add(), depth - 1)
                else:
                    getattr(message, field.name).append(draw(_scalar(field)))
        elif is_message:
            child = getattr(message, field.name)
            child.SetInParent()
            _fill(draw, child, depth - 1)
        else:
            setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        known = st.sampled_from([value.number for value in field.enum_type.values])
        return known | known | st.integers(-(2**31), 2**31 - 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=8) if field.type == FieldDescriptor.TYPE_BYTES else texts | names
    return _SCALARS[field.cpp_type]
