"""Explanations put together from their messages, and what the client says if messages are missing or do not fit."""

from __future__ import annotations

from collections.abc import Sequence
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
    RunHeader,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.explanations import explain_response_from_wire, explain_response_to_wire
from tests.rpc_fakes import SUMMARY

NODES = tuple(NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(i, i), layer_index=0) for i in range(3))
HEADER = RunHeader(model="m", token_ids=(1,), token_strings=("a",), loss=2.0)
TABLE = NodeTable(
    nodes=NODES, groups=(GroupValues(group_id="g", values=np.arange(3, dtype=np.float32), top=(2,), bottom=(0,)),)
)
WAY = ExplainPart.UPVOTED_OUTPUT_TOKENS


def part(kind: PartKind, value: Any, run_index: int = 0) -> ExplanationPart:
    return ExplanationPart(kind=kind, value=value, run_index=run_index, request_id="id")


def scored(*nodes: int, way: ExplainPart = WAY) -> ExplanationPart:
    score = TokenScore(1, "x", 0.5, 1.0)
    tokens = tuple(NodeTokens(node=node, top=(score,), bottom=()) for node in nodes)
    return part(PartKind.SCORED_TOKENS, ScoredTokens(part=way, nodes=tokens))


def trailer(count: int) -> ExplanationPart:
    value = RunsTrailer(frame_count=count, statistics=SUMMARY.statistics, provenance=SUMMARY.provenance)
    return part(PartKind.TRAILER, value)


def collected(parts: Sequence[ExplanationPart], n_runs: int = 1) -> Explanation | None:
    """What comes of *parts* after they have travelled."""
    collector = ExplanationCollector(n_runs, explain_response_from_wire)
    found = None
    for one in parts:
        sent = explain_response_to_wire(one).SerializeToString()
        found = collector.add(explain_pb2.ExplainResponse.FromString(sent))
    return found


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
    collector = ExplanationCollector(1, explain_response_from_wire)
    collector.take(part(PartKind.HEADER, HEADER))
    assert collector.add(explain_pb2.ExplainResponse(request_id="id")) is None
    assert collector.take(trailer(3)) is not None


@pytest.mark.parametrize(
    ("parts", "reason", "words"),
    [
        ([part(PartKind.HEADER, HEADER), trailer(3)], Reason.ANSWER_TRUNCATED, "2 of 3 messages"),
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


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.zeros(2, np.float32)},
        {"top": (3,)},
        {"bottom": (9,)},
    ],
)
def test_a_table_whose_groups_do_not_fit_its_nodes_is_data_loss(change: dict[str, Any]) -> None:
    whole = {"group_id": "g", "values": np.zeros(3, np.float32), "top": (), "bottom": ()}
    table = NodeTable(nodes=NODES, groups=(GroupValues(**(whole | change)),))
    with pytest.raises(DataLoss, match=r"groups\[0\]"):
        collected([part(PartKind.HEADER, HEADER), part(PartKind.NODE_TABLE, table)])
