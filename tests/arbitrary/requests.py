"""Requests, and the indices, traces, configs and interventions that they hold: all that the rules permit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from dst_grpc.domain.components import (
    AttentionTraceType,
    Dimension,
    InferenceEngineType,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
    TensorElementType,
)
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.entries import entries_are_nodes
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKGroup, TopKRequest, TopKSelection
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
)
from dst_grpc.domain.interventions import (
    UNCHANGED,
    AblationSpec,
    Action,
    AddNormScaled,
    AddVector,
    ClampValue,
    CopyFromRun,
    DecoderRow,
    DetachGradient,
    DifferenceOfMeans,
    Direction,
    EncoderRow,
    HoldValue,
    Intervention,
    MeanOverRuns,
    ProjectOut,
    ScaleValue,
    SetValue,
    SwapDirections,
    UnembeddingRow,
)
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.origins import LossFnConfig, TapSum
from dst_grpc.domain.put_tensors import TensorDescription
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import (
    CancelItem,
    DeriveRequest,
    DeriveStreamRequest,
    Prompt,
    ResolveRequest,
    ResolveStreamRequest,
    SourceRun,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from dst_grpc.domain.trace import TraceConfig
from tests.arbitrary.basic import (
    built,
    counts,
    finite_floats32,
    layers,
    names,
    optional,
    own,
    texts,
    timeouts,
    tuples,
    uint32,
    values_of,
)

V = TypeVar("V")
L = ActivationLocationType
FLOATS = tuple(element_type for element_type in TensorElementType if element_type.is_float)
devices = st.sampled_from(["cpu", "cuda:0", "cuda:12", "mps"])
revisions = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
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


int32 = st.integers(-(2**31) + 1, 2**31 - 1)


@st.composite
def loss_fn_configs(draw: st.DrawFn, runs: Sequence[str] = ()) -> LossFnConfig:
    """Losses that may be compared with the unchanged run, or *runs*."""
    name = draw(st.sampled_from(LossFnName))
    has_targets = name.needs_targets or name is LossFnName.ZERO
    target_tokens = draw(tuples(texts)) if has_targets else ()
    needs_ids = name.needs_targets and not target_tokens
    is_divergence = name is LossFnName.KL_DIVERGENCE
    spans = st.tuples(st.integers(1, 2**31), st.integers(1, 9)).map(
        lambda pair: PositionRange(start=pair[0], stop=sum(pair))
    )
    return LossFnConfig(
        name=name,
        target_tokens=target_tokens,
        distractor_tokens=draw(tuples(texts)) if name.may_have_distractors else (),
        target_token_ids=draw(tuples(uint32, min_size=1 if needs_ids else 0)) if has_targets else (),
        distractor_token_ids=draw(tuples(uint32)) if name.may_have_distractors else (),
        token_index=draw(optional(int32)) if name.has_position else None,
        reference_run=draw(optional(st.sampled_from([UNCHANGED, *runs]))) if is_divergence else None,
        span=draw(optional(spans)) if name is LossFnName.CROSS_ENTROPY else None,
        tap=draw(tap_sums()) if name is LossFnName.TAP else None,
    )


@st.composite
def tap_sums(draw: st.DrawFn) -> TapSum:
    location = draw(st.sampled_from([tap for tap in L if tap.dimensions[-1] is not Dimension.ATTN_HEADS]))
    rank = len(location.dimensions)
    has_vectors = location.dimensions[-1] is not Dimension.SINGLETON and draw(st.booleans())
    at = TapSelection(
        activation_location_type=location,
        axes=draw(tuples(axis_selections, max_size=rank - 1 if has_vectors else rank)),
        layer_index=None if location.has_no_layers else draw(layers),
    )
    numbers = request_tensors.filter(lambda tensor: tensor.handle is None)
    of_weights = built(EncoderRow, autoencoder=names) | built(DecoderRow, autoencoder=names) | unembedding_rows
    direction = st.builds(Direction, direction=numbers | of_weights, normalize=st.booleans())
    return TapSum(at=at, direction=draw(optional(direction)) if has_vectors else None)


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
    value = draw(finite_floats32)
    return AblationSpec(index=index, value=value)


request_tensors = st.builds(RequestTensor, handle=texts.filter(bool)) | st.lists(
    finite_floats32, min_size=6, max_size=6
).flatmap(
    lambda numbers: st.sampled_from([(6,), (2, 3), (1, 6, 1)]).map(
        lambda shape: RequestTensor(tensor=np.array(numbers, np.float32).reshape(shape))
    )
)


position_lists = built(PositionList, positions=tuples(uint32, min_size=1, unique=True))
position_ranges = st.tuples(st.integers(0, 2**31), st.integers(1, 9)).map(
    lambda pair: PositionRange(start=pair[0], stop=sum(pair))
)
axis_selections: st.SearchStrategy[AxisSelection] = st.none() | st.integers(0, 2**31) | position_ranges | position_lists
set_values = st.builds(SetValue, scalar=finite_floats32) | st.builds(SetValue, tensor=request_tensors)
add_vectors = st.builds(AddVector, vector=request_tensors, factor=finite_floats32)
scale_values = st.builds(ScaleValue, factor=finite_floats32)


def differences_of_means(runs: Sequence[str] = ()) -> st.SearchStrategy[DifferenceOfMeans]:
    several = tuples(st.sampled_from([UNCHANGED, *runs]), min_size=1)
    token = optional(st.integers(-(2**31) + 1, 2**31 - 1))
    return st.builds(DifferenceOfMeans, runs=several, minus_runs=several, token_index=token)


unembedding_rows = st.builds(UnembeddingRow, token=texts) | st.builds(UnembeddingRow, token_id=uint32)


def directions(runs: Sequence[str] = ()) -> st.SearchStrategy[Direction]:
    latents = built(EncoderRow, autoencoder=names) | built(DecoderRow, autoencoder=names)
    return st.builds(
        Direction,
        direction=request_tensors | unembedding_rows | latents | differences_of_means(runs),
        normalize=st.booleans(),
    )


def limits(direction: st.SearchStrategy[Direction | None]) -> st.SearchStrategy[ClampValue]:
    pairs = st.tuples(finite_floats32, finite_floats32).map(sorted)
    return pairs.flatmap(
        lambda pair: st.sampled_from([(pair[0], None), (None, pair[1]), tuple(pair)]).flatmap(
            lambda ends: st.builds(ClampValue, direction=direction, minimum=st.just(ends[0]), maximum=st.just(ends[1]))
        )
    )


@dataclass(frozen=True)
class Along:
    """Actions along directions."""

    direction: st.SearchStrategy[Direction]

    @property
    def add(self) -> st.SearchStrategy[AddVector]:
        return st.builds(AddVector, direction=self.direction, factor=finite_floats32)

    @property
    def project_out(self) -> st.SearchStrategy[ProjectOut]:
        return st.builds(ProjectOut, direction=self.direction, factor=finite_floats32)

    @property
    def add_norm_scaled(self) -> st.SearchStrategy[AddNormScaled]:
        cap = optional(finite_floats32.map(abs))
        return st.builds(AddNormScaled, direction=self.direction, factor=finite_floats32, cap=cap)

    @property
    def swap(self) -> st.SearchStrategy[SwapDirections]:
        return st.builds(SwapDirections, direction=self.direction, target=self.direction)

    @property
    def any(self) -> st.SearchStrategy[Action]:
        return self.add | self.project_out | self.add_norm_scaled | self.swap | limits(self.direction)


def reading_actions(location: ActivationLocationType, names: Sequence[str]) -> st.SearchStrategy[Action]:
    """Actions at a tap that read the unchanged run, or those of *names*."""
    run = st.sampled_from([UNCHANGED, *names])
    over_positions = st.just(False) if location.facts.is_attention_matrix else st.booleans()
    means = st.builds(MeanOverRuns, runs=tuples(run, min_size=1), over_positions=over_positions)
    return st.builds(CopyFromRun, run=run) | st.just(HoldValue()) | means


def copies_in_subspaces(names: Sequence[str]) -> st.SearchStrategy[Action]:
    return st.builds(CopyFromRun, run=st.sampled_from([UNCHANGED, *names]), subspace=request_tensors)


@st.composite
def interventions(draw: st.DrawFn, runs: Sequence[str] = (), passes: Any = pass_types) -> Intervention:
    """Interventions that may read *runs*."""
    location = draw(st.sampled_from(L))
    pass_type = draw(passes)
    at = TapSelection(
        activation_location_type=location,
        axes=draw(tuples(axis_selections, max_size=len(location.dimensions))),
        layer_index=None if location.has_no_layers else draw(optional(layers)),
        pass_type=pass_type,
    )
    on_values = set_values | add_vectors | scale_values | limits(st.none()) | reading_actions(location, runs)
    has_vectors = location.dimensions[-1] not in {Dimension.ATTN_HEADS, Dimension.SINGLETON}
    if pass_type is PassType.FORWARD and has_vectors and at.all_axes[-1] is None:
        on_values |= Along(directions(runs)).any | copies_in_subspaces(runs)
    on_gradients = st.builds(SetValue, scalar=finite_floats32) | st.just(DetachGradient())
    return Intervention(at=at, action=draw(on_values if pass_type is PassType.FORWARD else on_gradients))


prompts = texts.filter(bool).map(lambda text: Prompt(text=text)) | tuples(uint32, min_size=1).map(
    lambda ids: Prompt(token_ids=ids)
)


@st.composite
def source_runs(draw: st.DrawFn) -> tuple[SourceRun, ...]:
    """Runs that read only those before them."""
    found: list[SourceRun] = []
    for name in draw(st.lists(texts.filter(lambda text: text not in {"", UNCHANGED}), max_size=3, unique=True)):
        read = [source.name for source in found]
        changes = draw(tuples(interventions(read, st.just(PassType.FORWARD)), max_size=2))
        found.append(SourceRun(name=name, prompt=draw(optional(prompts)), interventions=changes))
    return tuple(found)


def reading(cls: type[V], **fields: Any) -> st.SearchStrategy[V]:
    """*cls* with source runs, and interventions that may read them."""

    def read(sources: tuple[SourceRun, ...]) -> st.SearchStrategy[V]:
        runs = [source.name for source in sources]
        loss = optional(loss_fn_configs(runs))
        own = tuples(interventions(runs))
        return built(cls, source_runs=st.just(sources), interventions=own, loss_fn_config=loss, **fields)

    return source_runs().flatmap(read)


def derive_requests(prompt: st.SearchStrategy[Prompt | None] = prompts) -> st.SearchStrategy[DeriveRequest]:
    return reading(
        DeriveRequest,
        prompt=prompt,
        model=optional(names),
        trace_config=optional(trace_configs(can_run=True)),
        autoencoders=tuples(names, unique=True),
        element_type=st.sampled_from(FLOATS),
        max_chunk_bytes=st.sampled_from([0, 1024, 2**20]),
    )


CHOOSABLE = [dst for dst, facts in FACTS.items() if entries_are_nodes(facts)]


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
    token_indices = optional(st.integers(-(2**31) + 1, 2**31 - 1))
    fields = {"runs": st.just(plain), "groups": several_groups(1), "k": counts, "token_index": token_indices}
    return draw(built(TopKRequest, **fields))


@st.composite
def node_ablations(draw: st.DrawFn) -> NodeAblation:
    node_type = draw(st.sampled_from([facts.type for facts in NODES.values() if facts.ablated_tap is not None]))
    first, *middle = draw(st.lists(uint32, min_size=RANKS[node_type] - 1, max_size=RANKS[node_type] - 1))
    node = NodeIndex(
        node_type=node_type,
        tensor_indices=(first, *(draw(optional(st.just(index))) for index in middle), draw(uint32)),
        layer_index=draw(layers),
    )
    return NodeAblation(node_index=node, value=draw(finite_floats32))


def explain_requests() -> st.SearchStrategy[ExplainRequest]:
    return built(
        ExplainRequest,
        runs=tuples(values_of(ExplainRun), min_size=1),
        model=optional(names),
        autoencoders=tuples(names, unique=True),
        groups=several_groups(0),
        k=counts,
        parts=tuples(st.sampled_from(ExplainPart), unique=True),
        scored_token_count=st.integers(1, 1000),
        token_pair_count=st.integers(1, 1000),
        top_logit_count=st.integers(1, 10_000),
    )


own(NodeIndex, node_indices())
own(ActivationIndex, activation_indices())
own(DerivedScalarIndex, derived_scalar_indices())
own(TraceConfig, trace_configs())
own(AutoencoderConfig, autoencoder_configs())
own(DstConfig, dst_configs())
own(LossFnConfig, loss_fn_configs())
own(TapSum, tap_sums())
own(AblationSpec, ablation_specs())
own(RequestTensor, request_tensors)
own(PositionList, position_lists)
own(PositionRange, position_ranges)
own(SetValue, set_values)
own(AddVector, add_vectors | Along(directions()).add)
own(ScaleValue, scale_values)
own(UnembeddingRow, unembedding_rows)
own(EncoderRow, built(EncoderRow, autoencoder=names))
own(DecoderRow, built(DecoderRow, autoencoder=names))
own(DifferenceOfMeans, differences_of_means())
own(Direction, directions())
own(ClampValue, limits(optional(directions())))
own(ProjectOut, Along(directions()).project_out)
own(AddNormScaled, Along(directions()).add_norm_scaled)
own(SwapDirections, Along(directions()).swap)
own(CopyFromRun, built(CopyFromRun, run=texts.filter(bool)))
own(MeanOverRuns, built(MeanOverRuns, runs=tuples(texts.filter(bool), min_size=1)))
own(TapSelection, interventions().map(lambda intervention: intervention.at))
own(Intervention, interventions())
own(Prompt, prompts)
own(DeriveRequest, derive_requests())
own(NodeAblation, node_ablations())
own(TopKGroup, top_k_groups())
own(TopKRequest, top_k_requests())
own(SourceRun, built(SourceRun, name=texts.filter(lambda text: text not in {"", UNCHANGED}), prompt=optional(prompts)))
own(ExplainRun, reading(ExplainRun, prompt=prompts, trace_config=optional(trace_configs(can_run=True))))
own(ExplainRequest, explain_requests())
own(ResolveRequest, built(ResolveRequest, request=derive_requests(optional(prompts))))
own(ResolveStreamRequest, built(ResolveStreamRequest, message=values_of(ResolveRequest)))
own(
    DeriveStreamRequest,
    built(DeriveStreamRequest, message=derive_requests(), timeout=optional(timeouts))
    | st.builds(DeriveStreamRequest, message=values_of(CancelItem)),
)
own(
    TensorDescription,
    built(
        TensorDescription,
        element_type=st.sampled_from(FLOATS),
        sizes=tuples(st.integers(1, 2**12)),
        ttl=optional(timeouts),
    ),
)
