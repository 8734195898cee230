"""Interventions, and the values and directions that they hold: all that the rules permit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dst_grpc.domain.components import Dimension, PassType
from dst_grpc.domain.indices import ActivationIndex
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
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from tests.arbitrary.basic import (
    built,
    finite_floats32,
    int32,
    kept,
    layers,
    names,
    optional,
    own,
    texts,
    tuples,
    uint32,
)
from tests.arbitrary.configs import pass_types


@st.composite
def ablation_specs(draw: st.DrawFn) -> AblationSpec:
    location = draw(st.sampled_from(ActivationLocationType))
    rank = len(location.dimensions)
    index = ActivationIndex(
        activation_location_type=location,
        tensor_indices=draw(tuples(optional(uint32), min_size=rank, max_size=rank)),
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


def ranges(first: int) -> st.SearchStrategy[PositionRange]:
    """Of positions from *first* on."""
    pairs = st.tuples(st.integers(first, 2**31), st.integers(1, 9))
    return pairs.map(lambda pair: PositionRange(start=pair[0], stop=sum(pair)))


position_lists = built(PositionList, positions=tuples(uint32, min_size=1, unique=True))
position_ranges = ranges(0)
axis_selections: st.SearchStrategy[AxisSelection] = st.none() | st.integers(0, 2**31) | position_ranges | position_lists
set_values = st.builds(SetValue, scalar=finite_floats32) | st.builds(SetValue, tensor=request_tensors)
add_vectors = st.builds(AddVector, vector=request_tensors, factor=finite_floats32)
scale_values = st.builds(ScaleValue, factor=finite_floats32)


@kept
def differences_of_means(runs: tuple[str, ...] = ()) -> st.SearchStrategy[DifferenceOfMeans]:
    several = tuples(st.sampled_from([UNCHANGED, *runs]), min_size=1)
    return st.builds(DifferenceOfMeans, runs=several, minus_runs=several, token_index=optional(int32))


unembedding_rows = st.builds(UnembeddingRow, token=texts) | st.builds(UnembeddingRow, token_id=uint32)
encoder_rows = built(EncoderRow, autoencoder=names)
decoder_rows = built(DecoderRow, autoencoder=names)
rows_of_weights = unembedding_rows | encoder_rows | decoder_rows


@kept
def directions(runs: tuple[str, ...] = ()) -> st.SearchStrategy[Direction]:
    return st.builds(
        Direction,
        direction=request_tensors | rows_of_weights | differences_of_means(runs),
        normalize=st.booleans(),
    )


@kept
def limits(direction: st.SearchStrategy[Direction | None]) -> st.SearchStrategy[ClampValue]:
    ends = st.tuples(finite_floats32, finite_floats32).map(sorted)
    kinds = st.sampled_from([(True, True), (True, False), (False, True)])

    def clamp(direction: Direction | None, ends: list[float], has: tuple[bool, bool]) -> ClampValue:
        low, high = (end if there else None for end, there in zip(ends, has, strict=True))
        return ClampValue(direction=direction, minimum=low, maximum=high)

    return st.builds(clamp, direction, ends, kinds)


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


@kept
def actions_along_directions(runs: tuple[str, ...]) -> st.SearchStrategy[Action]:
    return Along(directions(runs)).any


@kept
def reading_actions(runs: tuple[str, ...], *, over_positions: bool) -> st.SearchStrategy[Action]:
    """Actions that read the unchanged run, or *runs*; their means may be *over_positions*."""
    run = st.sampled_from([UNCHANGED, *runs])
    over = st.booleans() if over_positions else st.just(False)
    return st.builds(CopyFromRun, run=run) | st.builds(MeanOverRuns, runs=tuples(run, min_size=1), over_positions=over)


@kept
def copies_in_subspaces(runs: tuple[str, ...]) -> st.SearchStrategy[Action]:
    return st.builds(CopyFromRun, run=st.sampled_from([UNCHANGED, *runs]), subspace=request_tensors)


actions_on_values = set_values | add_vectors | scale_values | limits(st.none()) | st.just(HoldValue())
actions_on_gradients = st.builds(SetValue, scalar=finite_floats32) | st.just(DetachGradient())


@kept
@st.composite
def interventions(draw: st.DrawFn, runs: tuple[str, ...] = (), passes: Any = pass_types) -> Intervention:
    """Interventions that may read *runs*."""
    location = draw(st.sampled_from(ActivationLocationType))
    pass_type = draw(passes)
    at = TapSelection(
        activation_location_type=location,
        axes=draw(tuples(axis_selections, max_size=len(location.dimensions))),
        layer_index=None if location.has_no_layers else draw(optional(layers)),
        pass_type=pass_type,
    )
    if pass_type is PassType.BACKWARD:
        return Intervention(at=at, action=draw(actions_on_gradients))
    reading = partial(reading_actions, over_positions=not location.facts.is_attention_matrix)
    kinds: list[Callable[[tuple[str, ...]], st.SearchStrategy[Action]]] = [lambda _: actions_on_values, reading]
    has_vectors = location.dimensions[-1] not in {Dimension.ATTN_HEADS, Dimension.SINGLETON}
    if has_vectors and at.all_axes[-1] is None:
        kinds += [actions_along_directions, copies_in_subspaces]
    return Intervention(at=at, action=draw(draw(st.sampled_from(kinds))(runs)))


own(AblationSpec, ablation_specs())
own(RequestTensor, request_tensors)
own(PositionList, position_lists)
own(PositionRange, position_ranges)
own(SetValue, set_values)
own(AddVector, add_vectors | Along(directions()).add)
own(ScaleValue, scale_values)
own(UnembeddingRow, unembedding_rows)
own(EncoderRow, encoder_rows)
own(DecoderRow, decoder_rows)
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
