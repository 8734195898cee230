"""explain.proto, what a server answers: tables of nodes, scored tokens, and the messages that carry them.

Reading is done by clients, so what cannot be read is DataLoss; see `_reader.read_answer` about newer servers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc._gen.dst.v1 import explain_pb2 as pb
from dst_grpc._gen.dst.v1 import tensor_pb2
from dst_grpc.domain.components import Dimension, TensorElementType
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    RunHeader,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.results import Axis, Provenance, RunStatistics
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._reader import Reader, read_answer
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, EXPLAIN_PART, TENSOR_ELEMENT_TYPE
from dst_grpc.wire.indices import node_index_from_wire, node_index_to_wire
from dst_grpc.wire.results import (
    provenance_from_wire,
    provenance_to_wire,
    statistics_from_wire,
    statistics_to_wire,
)
from dst_grpc.wire.tensors import axis_from_wire, axis_to_wire

if TYPE_CHECKING:
    from collections.abc import Callable

_SUM_AXES = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
_FLOAT32 = np.dtype("<f4")
_MAX_TOKENS = 2**24
"""More than any prompt has, so that arithmetic on sizes cannot overflow."""
_ANY_STATISTICS = RunStatistics(forward_passes=0, backward_passes=0)
_ANY_PROVENANCE = Provenance(model="", model_digest="")


def run_header_to_wire(header: RunHeader) -> pb.RunHeader:
    """The message of what a run is about."""
    return pb.RunHeader(
        model=header.model,
        token_ids=header.token_ids,
        token_strings=header.token_strings,
        loss=header.loss,
        activation_value=header.activation_value,
    )


def run_header_from_wire(message: pb.RunHeader) -> RunHeader:
    """What a run is about. Every message is valid."""
    reader = Reader(message)
    return RunHeader(
        model=message.model,
        token_ids=tuple(message.token_ids),
        token_strings=tuple(message.token_strings),
        loss=reader.present("loss"),
        activation_value=reader.present("activation_value"),
    )


def scalar_sum_to_wire(found: ScalarSum) -> pb.ScalarSum:
    """The message of a sum."""
    axes = [axis_to_wire(Axis(d, n)) for d, n in zip(_SUM_AXES, found.values.shape, strict=False)]
    data = np.ascontiguousarray(found.values, _FLOAT32).tobytes()
    element_type = TENSOR_ELEMENT_TYPE.to_wire(TensorElementType.FLOAT32)
    tensor = tensor_pb2.Tensor(element_type=element_type, axes=axes, data=data)
    return pb.ScalarSum(dst=DERIVED_SCALAR_TYPE.to_wire(found.dst), values=tensor)


def scalar_sum_from_wire(message: pb.ScalarSum) -> ScalarSum:
    """The sum. Raises DataLoss."""
    return read_answer(_scalar_sum, message)


def _scalar_sum(message: pb.ScalarSum) -> ScalarSum:
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    values = reader.required_child("values", _sum_values, np.zeros(0, _FLOAT32))
    return reader.finish(lambda: ScalarSum(dst=dst, values=values))


def _sum_values(message: tensor_pb2.Tensor) -> np.ndarray[Any, Any]:
    reader = Reader(message)
    element_type = reader.required_enum("element_type", TENSOR_ELEMENT_TYPE, TensorElementType.FLOAT32)
    axes = reader.children("axes", axis_from_wire)
    if element_type is not TensorElementType.FLOAT32:
        reader.note("element_type", f"must be float32, not {element_type}")
    if tuple(axis.dimension for axis in axes) not in {_SUM_AXES[:1], _SUM_AXES}:
        reader.note("axes", "must be those of the tokens, or of pairs of tokens")
    shape = [axis.size for axis in axes]
    if any(size > _MAX_TOKENS for size in shape):
        reader.note("axes", "are longer than any prompt")
    expected = _FLOAT32.itemsize * math.prod(shape)
    if len(message.data) != expected:
        reader.note("data", f"has {len(message.data)} bytes, but the axes make it {expected}")
    if reader.failed("axes") or reader.failed("data"):
        return reader.finish(lambda: np.zeros(0, _FLOAT32))
    return reader.finish(lambda: np.frombuffer(message.data, _FLOAT32).reshape(shape))


def completeness_to_wire(found: Completeness) -> pb.Completeness:
    """The message of what the listed nodes account for."""
    return pb.Completeness(listed=found.listed, total=found.total, target=found.target)


def completeness_from_wire(message: pb.Completeness) -> Completeness:
    """What the listed nodes account for. Every message is valid."""
    return Completeness(listed=message.listed, total=message.total, target=Reader(message).present("target"))


def group_values_to_wire(group: GroupValues) -> pb.GroupValues:
    """The message of the nodes as one group sees them."""
    message = pb.GroupValues(group_id=group.group_id, values=group.values.tolist(), top=group.top, bottom=group.bottom)
    if group.completeness is not None:
        message.completeness.CopyFrom(completeness_to_wire(group.completeness))
    return message


def group_values_from_wire(message: pb.GroupValues) -> GroupValues:
    """The nodes as one group sees them. Every message is valid; a table checks the positions."""
    completeness = Reader(message).child("completeness", completeness_from_wire)
    return GroupValues(
        group_id=message.group_id,
        values=np.array(message.values, _FLOAT32),
        top=tuple(message.top),
        bottom=tuple(message.bottom),
        completeness=completeness,
    )


def node_table_to_wire(table: NodeTable) -> pb.NodeTable:
    """The message of a table."""
    return pb.NodeTable(
        nodes=map(node_index_to_wire, table.nodes),
        vocab_tokens=table.vocab_tokens,
        groups=map(group_values_to_wire, table.groups),
    )


def node_table_from_wire(message: pb.NodeTable) -> NodeTable:
    """The table. Raises DataLoss, also if a group's lists do not fit its nodes."""
    return read_answer(_node_table, message)


def _node_table(message: pb.NodeTable) -> NodeTable:
    reader = Reader(message)
    nodes = reader.children("nodes", node_index_from_wire)
    groups = reader.children("groups", group_values_from_wire)
    n_nodes = len(message.nodes)
    if len(message.vocab_tokens) not in {0, n_nodes}:
        reader.note("vocab_tokens", f"holds {len(message.vocab_tokens)} texts of {n_nodes} nodes")
    for i, group in enumerate(groups):
        if len(group.values) != n_nodes:
            reader.note(f"groups[{i}].values", f"holds {len(group.values)} values of {n_nodes} nodes")
        for end, positions in (("top", group.top), ("bottom", group.bottom)):
            if any(position >= n_nodes for position in positions):
                reader.note(f"groups[{i}].{end}", f"names a node beyond the {n_nodes}")
    return reader.finish(lambda: NodeTable(nodes=nodes, groups=groups, vocab_tokens=tuple(message.vocab_tokens)))


def token_score_to_wire(score: TokenScore) -> pb.TokenScore:
    """The message of a token's score; both numbers travel as binary32."""
    return pb.TokenScore(
        token_id=score.token_id, token=score.token, score=score.score, normalized_score=score.normalized_score
    )


def token_score_from_wire(message: pb.TokenScore) -> TokenScore:
    """A token's score. Every message is valid."""
    return TokenScore(message.token_id, message.token, message.score, message.normalized_score)


def node_tokens_to_wire(tokens: NodeTokens) -> pb.NodeTokens:
    """The message of one node's scored tokens."""
    return pb.NodeTokens(
        node=tokens.node,
        top=map(token_score_to_wire, tokens.top),
        bottom=map(token_score_to_wire, tokens.bottom),
    )


def node_tokens_from_wire(message: pb.NodeTokens) -> NodeTokens:
    """One node's scored tokens. Every message is valid."""
    return NodeTokens(
        node=message.node,
        top=tuple(map(token_score_from_wire, message.top)),
        bottom=tuple(map(token_score_from_wire, message.bottom)),
    )


def scored_tokens_to_wire(scored: ScoredTokens) -> pb.ScoredTokens:
    """The message of scored tokens."""
    return pb.ScoredTokens(part=EXPLAIN_PART.to_wire(scored.part), nodes=map(node_tokens_to_wire, scored.nodes))


def scored_tokens_from_wire(message: pb.ScoredTokens) -> ScoredTokens:
    """Scored tokens. Raises DataLoss."""
    return read_answer(_scored_tokens, message)


def _scored_tokens(message: pb.ScoredTokens) -> ScoredTokens:
    reader = Reader(message)
    part = reader.required_enum("part", EXPLAIN_PART, ExplainPart.UPVOTED_OUTPUT_TOKENS)
    nodes = reader.children("nodes", node_tokens_from_wire)
    return reader.finish(lambda: ScoredTokens(part=part, nodes=nodes))


def node_token_pairs_to_wire(pairs: NodeTokenPairs) -> pb.NodeTokenPairs:
    """The message of the tokens that one latent gets most from; attributions travel as binary32."""
    return pb.NodeTokenPairs(
        node=pairs.node,
        attended_tokens=[pb.AttendedToken(token_index=u, attribution=x) for u, x in pairs.attended_tokens],
    )


def node_token_pairs_from_wire(message: pb.NodeTokenPairs) -> NodeTokenPairs:
    """The tokens that one latent gets most from. Every message is valid."""
    return NodeTokenPairs(
        node=message.node,
        attended_tokens=tuple((token.token_index, token.attribution) for token in message.attended_tokens),
    )


def token_pairs_to_wire(pairs: TokenPairs) -> pb.TokenPairs:
    """The message of token pairs."""
    return pb.TokenPairs(nodes=map(node_token_pairs_to_wire, pairs.nodes))


def token_pairs_from_wire(message: pb.TokenPairs) -> TokenPairs:
    """Token pairs. Every message is valid."""
    return TokenPairs(nodes=tuple(map(node_token_pairs_from_wire, message.nodes)))


def runs_trailer_to_wire(trailer: RunsTrailer) -> pb.RunsTrailer:
    """The message of the end of an answer."""
    return pb.RunsTrailer(
        message_count=trailer.message_count,
        statistics=statistics_to_wire(trailer.statistics),
        provenance=provenance_to_wire(trailer.provenance),
    )


def runs_trailer_from_wire(message: pb.RunsTrailer) -> RunsTrailer:
    """The end of an answer. Raises DataLoss."""
    return read_answer(_runs_trailer, message)


def _runs_trailer(message: pb.RunsTrailer) -> RunsTrailer:
    reader = Reader(message)
    statistics = reader.required_child("statistics", statistics_from_wire, _ANY_STATISTICS)
    provenance = reader.required_child("provenance", provenance_from_wire, _ANY_PROVENANCE)
    return reader.finish(
        lambda: RunsTrailer(message_count=message.message_count, statistics=statistics, provenance=provenance)
    )


_TO_WIRE: dict[PartKind, Callable[[Any], Any]] = {
    PartKind.HEADER: run_header_to_wire,
    PartKind.NODE_TABLE: node_table_to_wire,
    PartKind.COMPONENT_SUMS: node_table_to_wire,
    PartKind.SCALAR_SUM: scalar_sum_to_wire,
    PartKind.SCORED_TOKENS: scored_tokens_to_wire,
    PartKind.TOKEN_PAIRS: token_pairs_to_wire,
    PartKind.TOP_LOGITS: node_table_to_wire,
    PartKind.TRAILER: runs_trailer_to_wire,
}
_FROM_WIRE: dict[PartKind, Callable[[Any], Any]] = {
    PartKind.HEADER: run_header_from_wire,
    PartKind.NODE_TABLE: node_table_from_wire,
    PartKind.COMPONENT_SUMS: node_table_from_wire,
    PartKind.SCALAR_SUM: scalar_sum_from_wire,
    PartKind.SCORED_TOKENS: scored_tokens_from_wire,
    PartKind.TOKEN_PAIRS: token_pairs_from_wire,
    PartKind.TOP_LOGITS: node_table_from_wire,
    PartKind.TRAILER: runs_trailer_from_wire,
}


def top_k_response_to_wire(part: ExplanationPart) -> pb.TopKResponse:
    """The message of a part of TopK's answer, which has no parts but headers, tables, sums and the trailer."""
    message = pb.TopKResponse(request_id=part.request_id, run_index=part.run_index)
    getattr(message, part.kind).CopyFrom(_TO_WIRE[part.kind](part.value))
    return message


def top_k_response_from_wire(message: pb.TopKResponse) -> ExplanationPart | None:
    """The part of TopK's answer; None for a kind that is not known here. Raises DataLoss."""
    return _response(message)


def explain_response_to_wire(part: ExplanationPart) -> pb.ExplainResponse:
    """The message of a part of Explain's answer."""
    message = pb.ExplainResponse(request_id=part.request_id, run_index=part.run_index)
    getattr(message, part.kind).CopyFrom(_TO_WIRE[part.kind](part.value))
    return message


def explain_response_from_wire(message: pb.ExplainResponse) -> ExplanationPart | None:
    """The part of Explain's answer; None for a kind that is not known here. Raises DataLoss."""
    return _response(message)


def _response(message: pb.TopKResponse | pb.ExplainResponse) -> ExplanationPart | None:
    arm = message.WhichOneof("part")
    if arm is None:
        return None
    return ExplanationPart(
        kind=PartKind(arm),
        value=_FROM_WIRE[PartKind(arm)](getattr(message, arm)),
        run_index=message.run_index,
        request_id=message.request_id,
    )
