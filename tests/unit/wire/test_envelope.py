"""Messages of frames: written and read by hand as the classes do it, and never larger than promised."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import explain_pb2, resolution_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc._gen.dst.v1.catalog_service_pb2 import TokenizeResponse
from dst_grpc.domain.explanations import ExplanationPart, PartKind, ScalarSum
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.results import MadeAnswer, RunHeader
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire.assembly import PartReader, StageReader
from dst_grpc.wire.envelope import CHUNK_BYTES, MESSAGE_BYTES, Chunk, Envelope, packed_alone, received
from dst_grpc.wire.frames import FrameCutter, PartCutter, part_to_wire
from dst_grpc.wire.pieces import split, split_text
from dst_grpc.wire.stages import ResolutionWriter, resolve_frames
from tests.arbitrary import answers, messages
from tests.arbitrary.answers import values_of
from tests.comparing import same
from tests.unit.wire.test_frames import SUMMARY, dense, header_of


def messages_of(*parts: Any, request_id: str = "id", item_index: int = 0, max_chunk_bytes: int = 0) -> list[bytes]:
    """The messages of an answer of Derive, all of it ready at once."""
    envelope = Envelope(request_id, item_index=item_index, max_chunk_bytes=max_chunk_bytes)
    cutter = FrameCutter(chunk_bytes=envelope.chunk_bytes)
    return list(envelope.pack(chain.from_iterable(map(cutter.cut, parts))))


def as_frame(one: pb.DeriveFrame | Chunk) -> pb.DeriveFrame:
    return pb.DeriveFrame.FromString(b"".join(one.buffers)) if isinstance(one, Chunk) else one


@pytest.mark.parametrize(
    "answer",
    [
        pb.DeriveResponse,
        pb.DeriveStreamResponse,
        resolution_pb2.ResolveResponse,
        resolution_pb2.ResolveStreamResponse,
        explain_pb2.TopKResponse,
        explain_pb2.ExplainResponse,
    ],
)
def test_every_streamed_answer_has_one_envelope(answer: Any) -> None:
    numbers = {field.name: field.number for field in answer.DESCRIPTOR.fields}
    assert numbers == {"request_id": 1, "frames": 2} | ({"item_index": 3} if "Stream" in answer.__name__ else {})
    assert answer().frames.add().DESCRIPTOR.fields_by_name["partial"].number == 15


@given(
    request_id=st.text(max_size=200),
    item_index=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 700), max_size=3),
)
def test_messages_written_by_hand_are_those_of_the_classes(request_id: str, item_index: int, sizes: list[int]) -> None:
    tensors = [dense(i, np.arange(size, dtype=np.float32)) for i, size in enumerate(sizes)]
    parts: list[Any] = [header_of(tuple(tensors)), *tensors, SUMMARY]
    cutter = FrameCutter(chunk_bytes=1024)
    expected = [pb.DeriveFrame.FromString(b"".join(frame)) for part in parts for frame in cutter.cut(part)]
    written = messages_of(*parts, request_id=request_id, item_index=item_index, max_chunk_bytes=1024)
    read = [pb.DeriveStreamResponse.FromString(data) for data in written]
    assert {(message.request_id, message.item_index) for message in read} == {(request_id, item_index)}
    assert [frame for message in read for frame in message.frames] == expected
    for data, message in zip(written, map(received, written), strict=True):
        assert (message.request_id, message.item_index) == (request_id, item_index)
        assert list(map(as_frame, message.frames)) == list(pb.DeriveStreamResponse.FromString(data).frames)


def test_a_chunk_alone_is_read_as_a_view() -> None:
    (data,) = Envelope("id", item_index=7).pack([Chunk(3, 300, memoryview(b"x" * 200)).buffers])
    found = received(data)
    assert (found.request_id, found.item_index) == ("id", 7)
    (chunk,) = found.frames
    assert isinstance(chunk, Chunk)
    assert (chunk.tensor_id, chunk.offset, bytes(chunk.data)) == (3, 300, b"x" * 200)
    assert chunk.data.obj is data


@given(st.binary(max_size=60), st.data())
def test_reading_by_hand_never_differs_from_the_classes(noise: bytes, data: st.DataObject) -> None:
    (whole,) = Envelope("id", item_index=300).pack([Chunk(3, 300, memoryview(b"x" * 200)).buffers])
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (noise, whole[:cut] + noise + whole[cut:], whole[:cut], whole + noise):
        try:
            expected = pb.DeriveStreamResponse.FromString(damaged)
        except DecodeError:
            with pytest.raises(DecodeError):
                received(damaged)
            continue
        found = received(damaged)
        assert (found.request_id, found.item_index) == (expected.request_id, expected.item_index)
        assert list(map(as_frame, found.frames)) == list(expected.frames)


def test_no_message_is_larger_than_a_mebibyte() -> None:
    tensors = [dense(i, np.zeros(size, np.float32)) for i, size in enumerate([600_000, 10, 262_144, 1])]
    sizes = [len(data) for data in messages_of(header_of(tuple(tensors)), *tensors, SUMMARY, request_id="x" * 256)]
    assert max(sizes) <= MESSAGE_BYTES
    assert sum(size > MESSAGE_BYTES // 2 for size in sizes) == 3


def test_a_small_answer_is_a_single_message() -> None:
    tensors = (dense(0, [1.0]), dense(1, [2.0]))
    assert len(messages_of(header_of(tensors), *tensors, SUMMARY)) == 1


@pytest.mark.parametrize(("wanted", "largest"), [(0, CHUNK_BYTES), (1024, 1024), (1 << 30, CHUNK_BYTES)])
def test_a_client_may_want_smaller_chunks(wanted: int, largest: int) -> None:
    tensor = dense(0, np.zeros(600_000, np.float32))
    messages = map(pb.DeriveResponse.FromString, messages_of(header_of((tensor,)), tensor, max_chunk_bytes=wanted))
    assert max(len(frame.chunk.data) for message in messages for frame in message.frames) == largest


# Pieces


@given(answers.explanation_parts(), st.integers(1, 60))
def test_parts_that_were_cut_are_read_as_they_were(part: ExplanationPart, chunk_bytes: int) -> None:
    cutter, reader = PartCutter(explain_pb2.ExplainFrame, chunk_bytes=chunk_bytes), PartReader()
    frames = [explain_pb2.ExplainFrame.FromString(b"".join(frame)) for frame in cutter.cut(part)]
    *nothing, found = map(reader.read, frames)
    assert not any(nothing)
    assert same(found, part)
    assert reader.count == len(frames)


def test_sums_of_pairs_are_cut_between_tokens() -> None:
    values = np.arange(600 * 600, dtype=np.float32).reshape(600, 600)
    part = ExplanationPart(
        kind=PartKind.SCALAR_SUM, value=ScalarSum(dst=DerivedScalarType.ATTN_WRITE_NORM, values=values), run_index=2
    )
    frames = [b"".join(frame) for frame in PartCutter(explain_pb2.TopKFrame).cut(part)]
    assert max(map(len, frames)) <= CHUNK_BYTES + 100
    pieces = list(map(explain_pb2.TopKFrame.FromString, frames))
    assert [frame.scalar_sum.first_token for frame in pieces] == [0, CHUNK_BYTES // (600 * 4)]
    assert {frame.run_index for frame in pieces} == {2}
    reader = PartReader()
    assert [reader.read(frame) is None for frame in pieces] == [True, False]


@given(messages.messages(TokenizeResponse), st.integers(1, 40))
def test_pieces_merge_to_the_whole(message: Any, max_bytes: int) -> None:
    whole = TokenizeResponse()
    pieces = list(split(message, max_bytes))
    for piece in pieces:
        assert piece.ByteSize() <= max_bytes or len(piece.token_ids) + len(piece.token_strings) == 1
        whole.MergeFrom(piece)
    assert whole == message


@given(st.text(max_size=60), st.integers(1, 30))
def test_pieces_of_a_text_join_to_it(text: str, max_bytes: int) -> None:
    pieces = list(split_text(text, max_bytes))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= max(4, max_bytes) for piece in pieces)
    assert pieces


@given(values_of(Resolution), st.integers(1, 200))
def test_stages_are_read_as_they_were(resolution: Any, chunk_bytes: int) -> None:
    reader = StageReader()
    stages = [Validated(), LoadProgress(context="m", bytes_done=1, bytes_total=2), resolution]
    found = [
        reader.read(resolution_pb2.ResolveFrame.FromString(b"".join(frame)))
        for stage in stages
        for frame in resolve_frames(stage, chunk_bytes)
    ]
    # Errors are equal in content, but other objects.
    assert [type(stage) for stage in found if stage is not None] == [type(stage) for stage in stages]
    assert found[1] == stages[1]


def test_kinds_that_are_not_known_are_no_parts() -> None:
    assert PartReader().read(explain_pb2.ExplainFrame(run_index=1)) is None
    assert StageReader().read(resolution_pb2.ResolveFrame()) is None
    part = ExplanationPart(kind=PartKind.HEADER, value=RunHeader(model="m", token_ids=(), token_strings=()))
    assert same(PartReader().read(part_to_wire(explain_pb2.TopKFrame, part)), part)


@given(st.lists(values_of(Resolution), min_size=1, max_size=4))
def test_an_answer_that_is_given_again_is_the_same(resolutions: list[Any]) -> None:
    writer, envelope = ResolutionWriter(), Envelope("id", item_index=3)
    for one in [*resolutions, *resolutions]:
        frames = [frame for stage in (Validated(), one) for frame in resolve_frames(stage)]
        answer = writer.answer(one)
        assert answer is not None
        assert envelope.all_around(answer) == list(envelope.pack(frames))


def test_frames_that_are_packed_alone_have_room_for_the_common_fields() -> None:
    frames = [Chunk(0, 0, memoryview(bytes(CHUNK_BYTES // 3))).buffers] * 5
    envelope = Envelope("x" * 256, item_index=2**31)
    messages = envelope.all_around(MadeAnswer(tuple(packed_alone(frames))))
    assert max(map(len, messages)) <= MESSAGE_BYTES
    found = [pb.DeriveStreamResponse.FromString(message) for message in messages]
    assert {(one.request_id, one.item_index) for one in found} == {("x" * 256, 2**31)}
    assert sum(len(one.frames) for one in found) == 5
