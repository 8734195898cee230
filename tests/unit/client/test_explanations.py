"""Explanations put together from their messages, and what the client says if messages are missing or do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import explain_pb2
from dst_grpc.client._explanations import ExplanationCollector
from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explanations import (
    ExplainPart,
    Explanation,
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
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.results import RunHeader
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.envelope import Envelope
from dst_grpc.wire.frames import PartCutter, part_to_wire
from tests.comparing import same
from tests.fake_answers import SUMMARY

NODES = tuple(NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(i, i), layer_index=0) for i in range(3))
HEADER = RunHeader(model="m", token_ids=(1,), token_strings=("a",), loss=2.0)
TABLE = NodeTable(
    nodes=NODES, groups=(GroupValues(group_id="g", values=np.arange(3, dtype=np.float32), top=(2,), bottom=(0,)),)
)
WAY = ExplainPart.UPVOTED_OUTPUT_TOKENS


def part(kind: PartKind, value: Any, run_index: int = 0) -> ExplanationPart:
    return ExplanationPart(kind=kind, value=value, run_index=run_index)


def scored(*nodes: int, way: ExplainPart = WAY) -> ExplanationPart:
    score = TokenScore(1, "x", 0.5, 1.0)
    tokens = tuple(NodeTokens(node=node, top=(score,), bottom=()) for node in nodes)
    return part(PartKind.SCORED_TOKENS, ScoredTokens(part=way, nodes=tokens))


def trailer(count: int) -> ExplanationPart:
    value = RunsTrailer(frame_count=count, statistics=SUMMARY.statistics, provenance=SUMMARY.provenance)
    return part(PartKind.TRAILER, value)


def collected(parts: Sequence[ExplanationPart], n_runs: int = 1) -> Explanation | None:
    """What comes of *parts* after they have travelled."""
    collector = ExplanationCollector("id", n_runs)
    found = None
    for one in parts:
        found = collector.add(sent(one))
    return found


def sent(*parts: ExplanationPart) -> explain_pb2.ExplainResponse:
    """A message of *parts*."""
    frames = [part_to_wire(explain_pb2.ExplainFrame, one) for one in parts]
    return explain_pb2.ExplainResponse.FromString(explain_pb2.ExplainResponse(frames=frames).SerializeToString())


def test_parts_become_an_explanation() -> None:
    table, component = part(PartKind.NODE_TABLE, TABLE), part(PartKind.COMPONENT_SUMS, TABLE)
    pairs = TokenPairs(nodes=(NodeTokenPairs(node=1, attended_tokens=((0, 0.5),)),))
    total = ScalarSum(dst=T.MLP_POST_ACT, values=np.ones(1, np.float32))
    found = collected(
        [
            part(PartKind.HEADER, HEADER, 1),
            part(PartKind.HEADER, HEADER),
            table,
            component,
            part(PartKind.SCALAR_SUM, total),
            scored(0, 1),
            scored(way=ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP),
            scored(2),
            part(PartKind.TOKEN_PAIRS, pairs),
            part(PartKind.TOKEN_PAIRS, TokenPairs(nodes=())),
            part(PartKind.TOP_LOGITS, TABLE),
            trailer(12),
        ],
        n_runs=2,
    )
    assert found is not None
    assert found.request_id == "id"
    first, second = found.runs
    assert (second.header, second.node_table, second.token_pairs, second.sums) == (HEADER, None, None, ())
    assert first.node_table is not None
    assert first.node_table.nodes == NODES
    assert first.component_sums is not None
    assert first.top_logits is not None
    assert first.token_pairs == pairs
    assert first.sum_of(T.MLP_POST_ACT).tolist() == [1.0]
    with pytest.raises(KeyError, match="mlp_post_act"):
        first.sum_of(T.LOGITS)
    upvoted, empty = first.scored_tokens
    assert first.tokens_of(WAY) is upvoted
    assert [tokens.node for tokens in upvoted.nodes] == [0, 1, 2]
    assert empty.nodes == ()
    assert first.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q) is None


def test_parts_of_kinds_that_are_not_known_are_counted_and_left_out() -> None:
    collector = ExplanationCollector("id", 1)
    assert collector.add(sent(part(PartKind.HEADER, HEADER))) is None
    unknown = explain_pb2.ExplainResponse(frames=[explain_pb2.ExplainFrame(run_index=0)])
    assert collector.add(unknown) is None
    assert collector.add(sent(trailer(3))) is not None


def test_several_parts_may_come_in_one_message() -> None:
    found = ExplanationCollector("id", 1).add(sent(part(PartKind.HEADER, HEADER), scored(), trailer(3)))
    assert found is not None
    assert found.runs[0].header == HEADER


def test_a_table_that_comes_in_pieces_is_joined() -> None:
    cutter = PartCutter(explain_pb2.ExplainFrame, chunk_bytes=20)
    sums = ScalarSum(dst=T.MLP_POST_ACT, values=np.arange(30, dtype=np.float32))
    parts: list[Any] = [part(PartKind.HEADER, HEADER), part(PartKind.NODE_TABLE, TABLE)]
    parts += [part(PartKind.SCALAR_SUM, sums), SUMMARY]
    messages = [message for one in parts for frame in cutter.cut(one) for message in Envelope("id").pack([frame])]
    assert len(messages) > 8
    collector = ExplanationCollector("id", 1)
    *nothing, found = (collector.add(explain_pb2.ExplainResponse.FromString(data)) for data in messages)
    assert not any(nothing)
    assert found is not None
    assert same(found.runs[0].node_table, TABLE)
    assert found.runs[0].sum_of(T.MLP_POST_ACT).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("parts", "reason", "words"),
    [
        ([part(PartKind.HEADER, HEADER), trailer(3)], Reason.ANSWER_TRUNCATED, "2 of 3 frames"),
        ([trailer(1)], Reason.ANSWER_TRUNCATED, "truncated"),
        ([part(PartKind.HEADER, HEADER)] * 2, Reason.ANSWER_CORRUPT, "two headers"),
        ([part(PartKind.HEADER, HEADER, 1)], Reason.ANSWER_CORRUPT, "there are 1 runs"),
        ([part(PartKind.NODE_TABLE, TABLE)], Reason.ANSWER_CORRUPT, "before its header"),
        (
            [part(PartKind.HEADER, HEADER), *[part(PartKind.NODE_TABLE, TABLE)] * 2],
            Reason.ANSWER_CORRUPT,
            "two parts node_table",
        ),
        ([part(PartKind.HEADER, HEADER), scored(0)], Reason.ANSWER_CORRUPT, "beyond the 0"),
        (
            [part(PartKind.HEADER, HEADER), part(PartKind.NODE_TABLE, TABLE), scored(3)],
            Reason.ANSWER_CORRUPT,
            "beyond the 3",
        ),
        (
            [
                part(PartKind.HEADER, HEADER),
                part(PartKind.TOKEN_PAIRS, TokenPairs(nodes=(NodeTokenPairs(node=0, attended_tokens=()),))),
            ],
            Reason.ANSWER_CORRUPT,
            "beyond the 0",
        ),
    ],
)
def test_what_does_not_fit_together_is_data_loss(parts: list[ExplanationPart], reason: Reason, words: str) -> None:
    with pytest.raises(DataLoss, match=words) as caught:
        collected(parts)
    assert caught.value.reason is reason


def test_pieces_that_contradict_one_another_are_data_loss() -> None:
    whole = sent(part(PartKind.HEADER, HEADER)).frames[0]
    first, other, second = (explain_pb2.ExplainFrame() for _ in range(3))
    first.CopyFrom(whole)
    first.partial = True
    other.header.model = "another"
    second.header.token_ids.append(2)
    for frames, words in (
        ([first, other], "differ in model"),
        ([first, sent(trailer(2)).frames[0]], "a trailer came where the rest of a header was due"),
        ([first, explain_pb2.ExplainFrame(run_index=1, header=second.header)], "where the rest of a header"),
    ):
        with pytest.raises(DataLoss, match=words):
            ExplanationCollector("id", 2).add(explain_pb2.ExplainResponse(frames=frames))
    collector = ExplanationCollector("id", 1)
    assert collector.add(explain_pb2.ExplainResponse(frames=[first, second])) is None
    found = collector.add(sent(trailer(3)))
    assert found is not None
    assert found.runs[0].header == replace(HEADER, token_ids=(1, 2))


def test_pieces_of_a_sum_that_do_not_follow_one_another_are_data_loss() -> None:
    sums = [ScalarSum(dst=T.MLP_POST_ACT, values=np.zeros(2, np.float32), first_token=start) for start in (0, 3)]
    first, second = sent(*(part(PartKind.SCALAR_SUM, one) for one in sums)).frames
    first.partial = True
    with pytest.raises(DataLoss, match="do not follow one another at token 3"):
        ExplanationCollector("id", 1).add(explain_pb2.ExplainResponse(frames=[first, second]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.nodes[1].values.append(0.5), r"nodes\[1\]\.values: holds 2 values for 1 groups"),
        (lambda table: table.nodes[0].ClearField("values"), r"nodes\[0\]\.values: holds 0"),
        (lambda table: table.groups[0].top.append(3), r"groups\[0\]\.top: names a node beyond the 3"),
        (lambda table: table.groups[0].bottom.append(9), r"groups\[0\]\.bottom"),
        (lambda table: table.nodes[2].node.ClearField("node_type"), r"nodes\[2\]\.node\.node_type: is required"),
    ],
)
def test_a_table_whose_rows_do_not_fit_its_groups_is_data_loss(change: Callable[[Any], None], words: str) -> None:
    message = sent(part(PartKind.HEADER, HEADER), part(PartKind.NODE_TABLE, TABLE))
    change(message.frames[1].node_table)
    with pytest.raises(DataLoss, match=words):
        ExplanationCollector("id", 1).add(message)
