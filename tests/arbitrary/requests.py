"""Requests, and the losses and runs that they hold: all that the rules permit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import strategies as st

from dst_grpc.domain.components import Dimension, LossFnName, PassType
from dst_grpc.domain.entries import entries_are_nodes
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKGroup, TopKRequest
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.interventions import UNCHANGED, Direction
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.origins import LossFnConfig, TapSum
from dst_grpc.domain.put_tensors import TensorDescription
from dst_grpc.domain.requests import (
    CancelItem,
    DeriveRequest,
    DeriveStreamRequest,
    Prompt,
    ResolveRequest,
    ResolveStreamRequest,
    SourceRun,
)
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.selections import TapSelection
from tests.arbitrary.basic import (
    built,
    counts,
    finite_floats32,
    int32,
    kept,
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
from tests.arbitrary.configs import FLOATS, RANKS, trace_configs
from tests.arbitrary.interventions import axis_selections, interventions, ranges, request_tensors, rows_of_weights

V = TypeVar("V")


@kept
@st.composite
def loss_fn_configs(draw: st.DrawFn, runs: tuple[str, ...] = ()) -> LossFnConfig:
    """Losses that may be compared with the unchanged run, or *runs*."""
    name = draw(st.sampled_from(LossFnName))
    has_targets = name.needs_targets or name is LossFnName.ZERO
    target_tokens = draw(tuples(texts)) if has_targets else ()
    needs_ids = name.needs_targets and not target_tokens
    is_divergence = name is LossFnName.KL_DIVERGENCE
    return LossFnConfig(
        name=name,
        target_tokens=target_tokens,
        distractor_tokens=draw(tuples(texts)) if name.may_have_distractors else (),
        target_token_ids=draw(tuples(uint32, min_size=1 if needs_ids else 0)) if has_targets else (),
        distractor_token_ids=draw(tuples(uint32)) if name.may_have_distractors else (),
        token_index=draw(optional(int32)) if name.has_position else None,
        reference_run=draw(optional(st.sampled_from([UNCHANGED, *runs]))) if is_divergence else None,
        span=draw(optional(ranges(1))) if name is LossFnName.CROSS_ENTROPY else None,
        tap=draw(tap_sums()) if name is LossFnName.TAP else None,
    )


summed_taps = st.sampled_from([tap for tap in ActivationLocationType if tap.dimensions[-1] is not Dimension.ATTN_HEADS])
summed_directions = st.builds(
    Direction,
    direction=request_tensors.filter(lambda tensor: tensor.handle is None) | rows_of_weights,
    normalize=st.booleans(),
)


@kept
@st.composite
def tap_sums(draw: st.DrawFn) -> TapSum:
    location = draw(summed_taps)
    rank = len(location.dimensions)
    has_vectors = location.dimensions[-1] is not Dimension.SINGLETON and draw(st.booleans())
    at = TapSelection(
        activation_location_type=location,
        axes=draw(tuples(axis_selections, max_size=rank - 1 if has_vectors else rank)),
        layer_index=None if location.has_no_layers else draw(layers),
    )
    return TapSum(at=at, direction=draw(optional(summed_directions)) if has_vectors else None)


names_of_runs = texts.filter(lambda text: text not in {"", UNCHANGED})
forward = st.just(PassType.FORWARD)
prompts = texts.filter(bool).map(lambda text: Prompt(text=text)) | tuples(uint32, min_size=1).map(
    lambda ids: Prompt(token_ids=ids)
)


@st.composite
def source_runs(draw: st.DrawFn) -> tuple[SourceRun, ...]:
    """Runs that read only those before them."""
    found: list[SourceRun] = []
    for name in draw(tuples(names_of_runs, unique=True)):
        change = interventions(tuple(source.name for source in found), forward)
        changes = tuple(draw(change) for _ in range(draw(st.integers(0, 2))))
        found.append(SourceRun(name=name, prompt=draw(optional(prompts)), interventions=changes))
    return tuple(found)


def reading(cls: type[V], **fields: Any) -> st.SearchStrategy[V]:
    """*cls* with source runs, and interventions that may read them."""
    none = st.just(())
    alone = built(cls, source_runs=none, interventions=none, loss_fn_config=st.none(), **fields)

    @st.composite
    def read(draw: st.DrawFn) -> V:
        sources = draw(source_runs())
        runs = tuple(source.name for source in sources)
        changed: V = replace(
            draw(alone),  # type: ignore[type-var]  # a dataclass
            source_runs=sources,
            interventions=tuple(draw(interventions(runs)) for _ in range(draw(st.integers(0, 3)))),
            loss_fn_config=draw(loss_fn_configs(runs)) if draw(st.booleans()) else None,
        )
        return changed

    return read()


@kept
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


top_k_groups = built(
    TopKGroup,
    group_id=texts.filter(bool),
    dsts=tuples(st.sampled_from(CHOOSABLE), min_size=1, max_size=4, unique_by=lambda dst: FACTS[dst].node_type),
    k=optional(counts),
)


def several_groups(min_size: int) -> st.SearchStrategy[tuple[TopKGroup, ...]]:
    return tuples(top_k_groups, min_size=min_size, unique_by=lambda group: group.group_id)


def of_forward_values(run: DeriveRequest) -> DeriveRequest:
    """*run*, as one of top k."""
    return replace(run, derived_scalars=(), config=replace(run.config, derive_gradients=False))


def top_k_requests() -> st.SearchStrategy[TopKRequest]:
    return built(
        TopKRequest,
        runs=tuples(derive_requests().map(of_forward_values), max_size=2, min_size=1),
        groups=several_groups(1),
        k=counts,
        token_index=optional(int32),
    )


@st.composite
def node_ablations(draw: st.DrawFn) -> NodeAblation:
    node_type = draw(st.sampled_from([facts.type for facts in NODES.values() if facts.ablated_tap is not None]))
    middle = (draw(optional(uint32)) for _ in range(RANKS[node_type] - 2))
    node = NodeIndex(
        node_type=node_type,
        tensor_indices=(draw(uint32), *middle, draw(uint32)),
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


own(LossFnConfig, loss_fn_configs())
own(TapSum, tap_sums())
own(Prompt, prompts)
own(DeriveRequest, derive_requests())
own(NodeAblation, node_ablations())
own(TopKGroup, top_k_groups)
own(TopKRequest, top_k_requests())
own(SourceRun, built(SourceRun, name=names_of_runs, prompt=optional(prompts)))
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
