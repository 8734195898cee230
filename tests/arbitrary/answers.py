"""Answers and what the catalogue says: tensors, tables of nodes, statistics, models, contexts.

With this module every class of the domain has its values: `values_of` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dst_grpc.domain.architecture import Architecture
from dst_grpc.domain.components import Dimension, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.explanations import (
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    PartKind,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.resolution import AutoencoderInfo, ContextStatus, Resolution, ScalarResolution
from dst_grpc.domain.results import (
    AnswerHeader,
    Axis,
    DenseTensor,
    Provenance,
    RunHeader,
    RunSummary,
    SparseTensor,
    TensorInfo,
)
from dst_grpc.domain.type_info import DerivedScalarTypeInfo
from dst_grpc.errors import DstError
from tests.arbitrary import attributions, circuits, graphs, patching
from tests.arbitrary.basic import (
    built,
    counts,
    doubles,
    floats32,
    kept,
    layers,
    optional,
    own,
    pairs_by_key,
    texts,
    tuples,
    uint32,
    values_of,
)
from tests.arbitrary.configs import FLOATS, node_indices, pass_types, scalar_types

__all__ = [
    "answer_headers",
    "answers",
    "attributions",
    "circuits",
    "explanation_parts",
    "graphs",
    "patching",
    "values_of",
]

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


def answer_headers(infos: tuple[TensorInfo, ...] | None = None) -> st.SearchStrategy[AnswerHeader]:
    """With the given tensors, or any, which are numbered."""
    if infos is not None:
        return built(AnswerHeader, tensors=st.just(infos))
    numbered = st.integers(0, 3).flatmap(lambda n: st.tuples(*(tensor_infos(st.just(i)) for i in range(n))))
    return built(AnswerHeader, tensors=numbered)


@st.composite
def answers(draw: st.DrawFn) -> tuple[AnswerHeader, tuple[DenseTensor | SparseTensor, ...], RunSummary]:
    """The parts of an answer, as a pipeline yields them."""
    parts = tuple(draw(tensors(i)) for i in range(draw(st.integers(0, 4))))
    return draw(answer_headers(tuple(part.info for part in parts))), parts, draw(values_of(RunSummary))


@kept
def arrays32(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    size = int(np.prod(shape))
    values = st.lists(st.floats(width=32), min_size=size, max_size=size)
    return values.map(lambda found: np.array(found, np.float32).reshape(shape))


@st.composite
def scalar_sums(draw: st.DrawFn) -> ScalarSum:
    n_tokens = draw(st.integers(0, 3))
    shape = draw(st.sampled_from([(n_tokens,), (n_tokens, n_tokens)]))
    return ScalarSum(dst=draw(scalar_types), values=draw(arrays32(shape)), first_token=draw(uint32))


@kept
def group_values(n_nodes: int) -> st.SearchStrategy[GroupValues]:
    places = tuples(st.integers(0, n_nodes - 1)) if n_nodes else st.just(())
    return built(GroupValues, values=arrays32((n_nodes,)), top=places, bottom=places)


nodes_of_values = tuples(node_indices(pass_type=st.just(PassType.FORWARD)))


@st.composite
def node_tables(draw: st.DrawFn) -> NodeTable:
    nodes = draw(nodes_of_values)
    vocab_tokens = draw(tuples(texts, min_size=len(nodes), max_size=len(nodes)))
    return NodeTable(
        nodes=nodes,
        groups=tuple(draw(group_values(len(nodes))) for _ in range(draw(st.integers(0, 2)))),
        vocab_tokens=vocab_tokens if any(vocab_tokens) and draw(st.booleans()) else (),
        log_normalizer=draw(optional(doubles)),
    )


PART_VALUES: dict[PartKind, type] = {
    PartKind.HEADER: RunHeader,
    PartKind.NODE_TABLE: NodeTable,
    PartKind.COMPONENT_SUMS: NodeTable,
    PartKind.SCALAR_SUM: ScalarSum,
    PartKind.SCORED_TOKENS: ScoredTokens,
    PartKind.TOKEN_PAIRS: TokenPairs,
    PartKind.TOP_LOGITS: NodeTable,
    PartKind.TRAILER: RunsTrailer,
}
TOP_K_KINDS = (PartKind.HEADER, PartKind.NODE_TABLE, PartKind.SCALAR_SUM, PartKind.TRAILER)


@st.composite
def explanation_parts(draw: st.DrawFn, kinds: Sequence[PartKind] = tuple(PartKind)) -> ExplanationPart:
    kind = draw(st.sampled_from(kinds))
    return ExplanationPart(kind=kind, value=draw(values_of(PART_VALUES[kind])), run_index=draw(uint32))


own(DstError, st.nothing())  # no two are equal: `errors` has them, and tests of their own
own(Axis, st.builds(Axis, st.sampled_from(Dimension), st.integers(0, 5)))
own(TensorInfo, tensor_infos())
own(AnswerHeader, answer_headers())
own(Provenance, built(Provenance, autoencoder_digests=pairs_by_key, library_versions=pairs_by_key))
own(Architecture, built(Architecture, sliding_windows=tuples(optional(counts))))
own(DerivedScalarTypeInfo, scalar_types.map(DerivedScalarTypeInfo.of))
own(
    Resolution,
    built(
        Resolution,
        autoencoders=tuples(values_of(AutoencoderInfo), max_size=2),
        scalars=tuples(values_of(ScalarResolution), max_size=2),
        contexts=tuples(values_of(ContextStatus), max_size=2),
    ),
)
own(ScalarSum, scalar_sums())
own(NodeTable, node_tables())
own(TokenScore, built(TokenScore, score=floats32, normalized_score=floats32))
own(NodeTokenPairs, built(NodeTokenPairs, attended_tokens=tuples(st.tuples(uint32, floats32))))
