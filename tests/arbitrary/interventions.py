"""Interventions, and the values and directions that they hold: all that the rules permit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from tests.arbitrary.basic import built, finite_floats32, int32, layers, names, optional, own, texts, tuples, uint32
from tests.arbitrary.configs import pass_types


@st.composite
def ablation_specs(draw: st.DrawFn) -> AblationSpec:
    location = draw(st.sampled_from(ActivationLocationType))
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


def differences_of_means(runs: Sequence[str] = ()) -> st.SearchStrategy[DifferenceOfMeans]:
    several = tuples(st.sampled_from([UNCHANGED, *runs]), min_size=1)
    return st.builds(DifferenceOfMeans, runs=several, minus_runs=several, token_index=optional(int32))


unembedding_rows = st.builds(UnembeddingRow, token=texts) | st.builds(UnembeddingRow, token_id=uint32)
encoder_rows = built(EncoderRow, autoencoder=names)
decoder_rows = built(DecoderRow, autoencoder=names)
rows_of_weights = unembedding_rows | encoder_rows | decoder_rows


def directions(runs: Sequence[str] = ()) -> st.SearchStrategy[Direction]:
    return st.builds(
        Direction,
        direction=request_tensors | rows_of_weights | differences_of_means(runs),
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
    location = draw(st.sampled_from(ActivationLocationType))
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
