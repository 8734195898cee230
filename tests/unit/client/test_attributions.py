"""Answers of `attribute`: arrays with named axes, put together from frames that must be whole and in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dst_grpc._gen.dst.v1.attribute_pb2 import AttributeFrame, AttributeResponse
from dst_grpc.client import AttributionAnswer, Scores, make_attribute_request
from dst_grpc.client._attributions import AttributionCollector
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.attribute_answers import (
    AttributeHeader,
    AttributePart,
    AttributePartKind,
    ScoredKind,
    ScoresInfo,
    ScoreValues,
)
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.results import Axis
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from dst_grpc.wire.frames import ValueCutter
from tests.fake_causal import attribute_parts


def collected(parts: Sequence[Any]) -> AttributionAnswer | None:
    collector, cutter = AttributionCollector("id"), ValueCutter(AttributeFrame)
    frames = [AttributeFrame.FromString(b"".join(frame)) for part in parts for frame in cutter.cut(part)]
    return collector.add(AttributeResponse(frames=frames))


def whole(parts: Sequence[Any]) -> AttributionAnswer:
    answer = collected(parts)
    assert answer is not None
    return answer


def values(tensor_id: int, first: int, numbers: Sequence[float]) -> AttributePart:
    piece = ScoreValues(tensor_id, np.array(numbers, np.float32), first)
    return AttributePart(kind=AttributePartKind.VALUES, value=piece)


def test_an_answer_is_found_by_name() -> None:
    answer = whole(attribute_parts(2))
    assert answer["mlp_out"].shape == (2,)
    assert answer["mlp_out"].axes == (Dimension.LAYERS,)
    assert answer["mlp_out"][1] == np.float32(-0.25)
    assert [str(entry) for entry in answer["mlp_out"].top(1)] == ["+0.5 0"]
    with pytest.raises(InvalidRequest, match="k: must be 0 or more, not -1"):
        answer["mlp_out"].top(-1)
    assert len(answer.pairs) == 2
    assert list(answer) == list(answer.scores)
    with pytest.raises(KeyError, match="has no head; it has mlp_out"):
        answer["head"]
    with pytest.raises(KeyError, match="no scores of edges"):
        _ = answer.edges


def edges() -> Scores:
    axes = (Axis(Dimension.GRAPH_SOURCES, 2), Axis(Dimension.GRAPH_READERS, 2))
    info = ScoresInfo(tensor_id=0, kind=ScoredKind.EDGES, axes=axes)
    return Scores(info, np.array([[1, -3], [0, 2]], np.float32), (("input", "m0"), ("m0", "logits")))


def test_edges_are_found_by_name() -> None:
    found = edges()
    assert found["input->logits"] == -3
    assert [entry.labels for entry in found.top(2)] == [("input", "logits"), ("m0", "logits")]
    np.testing.assert_array_equal(np.asarray(found), found.values)
    assert "edges [graph_sources: 2, graph_readers: 2]" in repr(found)
    with pytest.raises(KeyError, match="no edge a0"):
        found["a0.h0->m1"]
    with pytest.raises(ValueError, match="not the name of an edge"):
        found["input"]


def test_places_tell_positions_with_the_same_token_apart() -> None:
    axes = (Axis(Dimension.LAYERS, 2), Axis(Dimension.SEQUENCE_TOKENS, 2))
    info = ScoresInfo(tensor_id=0, kind=ScoredKind.NODES, node=AttributedNode.MLP_OUT, axes=axes, layer_indices=(0, 1))
    found = Scores(info, np.array([[1, -3], [0, 2]], np.float32), (("0", "1"), (" John", " John")))
    assert found.places(3) == ((0, 1), (1, 1), (0, 0))
    assert [found.values[place] for place in found.places(2)] == [-3, 2]
    assert [entry.labels for entry in found.top(2)] == [("0", "1 ' John'"), ("1", "1 ' John'")]


def test_the_one_score_of_an_array_without_axes_is_its_largest() -> None:
    """Of the embedding, with all positions at once."""
    info = ScoresInfo(tensor_id=0, kind=ScoredKind.NODES, node=AttributedNode.INPUT, axes=())
    found = Scores(info, np.array(-2.5, np.float32), ())
    assert found.places() == ((),)
    assert [str(entry) for entry in found.top()] == ["-2.5"]


def with_scores(*sizes: int) -> list[Any]:
    """The parts of an answer with arrays of MLPs of these sizes, without their values."""
    header, _, pairs, _, summary = attribute_parts()
    assert isinstance(header, AttributePart)
    infos = tuple(
        ScoresInfo(
            tensor_id=i,
            kind=ScoredKind.NODES,
            axes=(Axis(Dimension.LAYERS, size),),
            node=AttributedNode.MLP_OUT,
            layer_indices=tuple(range(size)),
        )
        for i, size in enumerate(sizes)
    )
    assert isinstance(header.value, AttributeHeader)
    changed = replace(header, value=replace(header.value, scores=infos))
    return [changed, pairs, summary]


def test_arrays_come_in_pieces() -> None:
    header, pairs, summary = with_scores(3, 2)
    pieces = [values(0, 0, [1, 2]), values(0, 2, [3]), values(1, 0, [4, 5])]
    answer = whole([header, pairs, *pieces, summary])
    assert [scores.values.tolist() for scores in answer] == [[1, 2, 3], [4, 5]]
    with pytest.raises(KeyError, match="several"):
        answer["mlp_out"]


@pytest.mark.parametrize(
    "pieces",
    [
        [values(0, 1, [1, 2])],
        [values(1, 0, [1, 2])],
        [values(0, 0, [1, 2, 3, 4])],
        [values(0, 0, [1, 2]), values(1, 0, [4, 5])],
        [values(0, 0, [1, 2, 3]), values(1, 0, [4, 5]), values(2, 0, [6])],
    ],
)
def test_pieces_that_were_not_due_are_a_corrupt_answer(pieces: list[AttributePart]) -> None:
    header, pairs, summary = with_scores(3, 2)
    with pytest.raises(DataLoss) as caught:
        collected([header, pairs, *pieces, summary])
    assert caught.value.reason is Reason.ANSWER_CORRUPT


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_answer_without_a_part_is_truncated(missing: int) -> None:
    header, pairs, summary = with_scores(3, 2)
    parts = [header, pairs, values(0, 0, [1, 2, 3]), values(1, 0, [4, 5]), summary]
    del parts[missing]
    with pytest.raises(DataLoss) as caught:
        collected(parts)
    assert caught.value.reason in {Reason.ANSWER_TRUNCATED, Reason.ANSWER_CORRUPT}


def test_names_that_are_nearly_right_are_suggested() -> None:
    with pytest.raises(InvalidRequest, match="integrated_inputs"):
        make_attribute_request("a", "b", target="c", method="integrated_input")
    with pytest.raises(InvalidRequest, match="mlp_out"):
        make_attribute_request("a", "b", target="c", nodes=["head", "mlp_outs"])
