"""Answers survive being cut into frames and put together; damaged ones are refused before harm is done."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc._gen.dst.v1 import tensor_pb2
from dst_grpc.domain.components import Dimension, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.results import (
    AnswerHeader,
    Axis,
    DenseTensor,
    Provenance,
    RunStatistics,
    RunSummary,
    SparseTensor,
    TensorInfo,
    TensorRows,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DataLoss, Exhausted, Internal, Reason
from dst_grpc.wire.assembly import Assembler, assemble
from dst_grpc.wire.envelope import CHUNK_BYTES
from dst_grpc.wire.frames import FrameCutter, error_frame
from tests.arbitrary import answers

Tensor = DenseTensor | SparseTensor
SUMMARY = RunSummary(
    statistics=RunStatistics(forward_passes=1, backward_passes=0),
    provenance=Provenance(model="m@1:float32:cpu", model_digest="ab"),
)


def info_of(tensor_id: int, shape: tuple[int, ...], **kwargs: Any) -> TensorInfo:
    return TensorInfo(
        tensor_id=tensor_id,
        dst=DerivedScalarType.MLP_POST_ACT,
        pass_type=PassType.FORWARD,
        layer_index=0,
        axes=tuple(Axis(Dimension.MLP_ACTS, size) for size in shape),
        **kwargs,
    )


def dense(tensor_id: int, values: Any) -> DenseTensor:
    array = np.asarray(values, np.float32)
    return DenseTensor(info_of(tensor_id, array.shape), array)


def header_of(tensors: tuple[Tensor, ...]) -> AnswerHeader:
    return AnswerHeader(
        model="m", token_ids=(1,), token_strings=("a",), tensors=tuple(tensor.info for tensor in tensors)
    )


def frames_of(*parts: Any, chunk_bytes: int = CHUNK_BYTES) -> list[pb.DeriveFrame]:
    """The frames of *parts*."""
    cutter = FrameCutter(chunk_bytes=chunk_bytes)
    return [pb.DeriveFrame.FromString(b"".join(frame)) for part in parts for frame in cutter.cut(part)]


def cut(tensors: tuple[Tensor, ...], chunk_bytes: int = 16) -> list[pb.DeriveFrame]:
    """All frames of an answer with *tensors*: small chunks between a header and a trailer in a frame each."""
    parts = (header_of(tuple(tensors)), *tensors)
    chunks = [frame for frame in frames_of(*parts, chunk_bytes=chunk_bytes) if frame.HasField("chunk")]
    whole = frames_of(*parts, SUMMARY)
    return [whole[0], *chunks, whole[-1]]


TENSORS = (dense(0, np.arange(12).reshape(3, 4)), dense(1, np.ones((0, 4))), dense(2, 7.5), dense(3, [1.0, 2.0]))


def reason_of(frames: list[pb.DeriveFrame]) -> Reason:
    with pytest.raises(DataLoss) as caught:
        assemble(frames)
    return caught.value.reason


@given(answers.answers(), st.integers(1, 40))
def test_what_is_cut_assembles_to_the_same_bits(answer: Any, chunk_bytes: int) -> None:
    header, tensors, summary = answer
    rebuilt = assemble(frames_of(header, *tensors, summary, chunk_bytes=chunk_bytes))
    assert rebuilt.header == header
    assert rebuilt.trailer.provenance == summary.provenance
    assert rebuilt.trailer.byte_count == sum(tensor.info.byte_length for tensor in tensors)
    for sent, got in zip(tensors, rebuilt.tensors, strict=True):
        assert got.info == sent.info
        expected = sent.values
        if sent.info.element_type is TensorElementType.BFLOAT16:
            expected = (expected.astype(np.uint32) << 16).view(np.float32)
        assert got.values.dtype == expected.dtype
        assert got.values.shape == expected.shape
        assert got.values.tobytes() == expected.tobytes()
        if isinstance(sent, SparseTensor):
            assert isinstance(got, SparseTensor)
            assert np.array_equal(got.coordinates, sent.coordinates)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 30))
def test_a_tensor_in_rows_assembles_like_the_whole(rows: int, at_once: int, chunk_bytes: int) -> None:
    before, whole, after = dense(0, [1.0]), dense(1, np.arange(rows * 3).reshape(rows, 3)), dense(2, [2.0])
    parts = [TensorRows(whole.info, whole.values[start : start + at_once], start) for start in range(0, rows, at_once)]
    frames = frames_of(header_of((before, whole, after)), before, *parts, after, SUMMARY, chunk_bytes=chunk_bytes)
    assert np.array_equal(assemble(frames).tensors[1].values, whole.values)
    assert assemble(frames).trailer.checksums == assemble(cut((before, whole, after))).trailer.checksums


def test_frames_come_in_the_documented_order() -> None:
    kinds = [frame.WhichOneof("frame") for frame in cut(TENSORS)]
    assert kinds == ["header", *["chunk"] * 5, "trailer"]
    chunks = [(f.chunk.tensor_id, f.chunk.offset, len(f.chunk.data)) for f in cut(TENSORS)[1:-1]]
    assert chunks == [(0, 0, 16), (0, 16, 16), (0, 32, 16), (2, 0, 4), (3, 0, 8)]


def test_a_chunk_has_at_most_a_mebibyte() -> None:
    tensor = dense(0, np.zeros(CHUNK_BYTES // 2))
    sizes = [len(frame.chunk.data) for frame in cut((tensor,), CHUNK_BYTES)[1:-1]]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES]
    assert CHUNK_BYTES <= 1 << 20


def test_a_header_that_is_too_large_comes_in_pieces() -> None:
    tensors = tuple(dense(i, [1.0]) for i in range(20))
    frames = frames_of(header_of(tensors), *tensors, SUMMARY, chunk_bytes=100)
    headers = [frame for frame in frames if frame.HasField("header")]
    assert len(headers) > 5
    assert [frame.partial for frame in headers] == [True] * (len(headers) - 1) + [False]
    assert all(frame.ByteSize() <= 110 for frame in headers)
    assert assemble(frames).header == header_of(tensors)
    for broken in (frames[: len(headers) - 1], [*headers[:-1], frames[len(headers)]], [*headers[:2], frames[-1]]):
        assert reason_of(broken) in {Reason.ANSWER_TRUNCATED, Reason.ANSWER_CORRUPT}
    headers[1].header.model = "another"
    assert reason_of(frames) is Reason.ANSWER_CORRUPT


def test_a_header_of_many_tensors_is_made_in_parts_and_merged() -> None:
    tensors = tuple(dense(i, []) for i in range(5000))
    frames = frames_of(header_of(tensors), *tensors, SUMMARY)
    headers = [frame for frame in frames if frame.HasField("header")]
    assert [frame.partial for frame in headers] == [True] * (len(headers) - 1) + [False]
    assert 1 < len(headers) < 50
    assert assemble(frames).header == header_of(tensors)


def test_values_in_another_order_in_memory_travel_row_by_row() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    transposed = DenseTensor(info_of(0, (4, 3)), values.T)
    (tensor,) = assemble(cut((transposed,))).tensors
    assert np.array_equal(tensor.values, values.T)


def test_infinities_and_the_bits_of_nan_survive() -> None:
    bits = np.array([0xFF800000, 0x7F800000, 0x7FC00001, 0xFFFFFFFF, 0x80000000, 1], np.uint32)
    (tensor,) = assemble(cut((dense(0, bits.view(np.float32)),))).tensors
    assert np.array_equal(tensor.values.view(np.uint32), bits)


def test_a_sparse_tensor_equals_its_dense_one() -> None:
    full = np.zeros((3, 5), np.float32)
    full[[0, 0, 2], [1, 4, 3]] = [1.5, -2.0, 3.0]
    coordinates = np.argwhere(full).astype(np.uint32)
    info = info_of(0, full.shape, encoding=TensorEncoding.SPARSE_LATENTS, nonzero_count=3)
    (tensor,) = assemble(cut((SparseTensor(info, full[tuple(coordinates.T)], coordinates),))).tensors
    assert isinstance(tensor, SparseTensor)
    rebuilt = np.zeros_like(full)
    rebuilt[tuple(tensor.coordinates.T)] = tensor.values
    assert np.array_equal(rebuilt, full)


@pytest.mark.parametrize(
    "coordinates", [[[0, 1], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [3, 0]], [[0, 0], [0, 2**32 - 1]]]
)
def test_coordinates_that_do_not_ascend_within_their_axes_are_refused(coordinates: list[list[int]]) -> None:
    info = info_of(0, (3, 5), encoding=TensorEncoding.SPARSE_LATENTS, nonzero_count=2)
    tensor = SparseTensor(info, np.ones(2, np.float32), np.array(coordinates, np.uint32))
    assert reason_of(cut((tensor,))) is Reason.ANSWER_CORRUPT


def test_bfloat16_arrives_widened() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    info = info_of(0, (3,), element_type=TensorElementType.BFLOAT16)
    (tensor,) = assemble(cut((DenseTensor(info, bits),))).tensors
    assert tensor.values.dtype == np.float32
    assert tensor.values.tolist() == [1.0, -2.0, np.inf]


def test_tensors_are_handed_out_as_soon_as_they_are_whole() -> None:
    assembler = Assembler()
    arrived = [[tensor.info.tensor_id for tensor in assembler.add(frame)] for frame in cut(TENSORS)]
    assert arrived == [[], [], [], [0, 1], [2], [3], []]
    assert len(assembler.finish().tensors) == 4


@pytest.mark.parametrize("length", range(len(cut(TENSORS))))
def test_an_answer_cut_off_anywhere_is_truncated(length: int) -> None:
    assert reason_of(cut(TENSORS)[:length]) is Reason.ANSWER_TRUNCATED


@pytest.mark.parametrize("which", range(5))
def test_a_changed_byte_in_any_chunk_is_noticed(which: int) -> None:
    frames = cut(TENSORS)
    data = bytearray(frames[1 + which].chunk.data)
    data[-1] ^= 1
    frames[1 + which].chunk.data = bytes(data)
    with pytest.raises(DataLoss, match="checksum") as caught:
        assemble(frames)
    assert caught.value.reason is Reason.ANSWER_CORRUPT


def test_any_two_frames_exchanged_are_noticed() -> None:
    count = len(cut(TENSORS))
    for i in range(count):
        for j in range(i + 1, count):
            frames = cut(TENSORS)
            frames[i], frames[j] = frames[j], frames[i]
            assert reason_of(frames) is Reason.ANSWER_CORRUPT


@pytest.mark.parametrize("which", range(7))
def test_any_frame_that_comes_twice_is_noticed(which: int) -> None:
    frames = cut(TENSORS)
    assert reason_of([*frames[: which + 1], *frames[which:]]) is Reason.ANSWER_CORRUPT


@pytest.mark.parametrize("which", range(1, 6))
def test_any_chunk_that_is_lost_is_noticed(which: int) -> None:
    frames = cut(TENSORS)
    assert reason_of([*frames[:which], *frames[which + 1 :]]) is Reason.ANSWER_CORRUPT


def changed(change: Any, which: int = 0) -> list[pb.DeriveFrame]:
    frames = cut(TENSORS)
    change(frames[which])
    return frames


@pytest.mark.parametrize(
    "frames",
    [
        changed(lambda frame: setattr(frame.trailer, "tensor_count", 9), -1),
        changed(lambda frame: setattr(frame.trailer, "byte_count", 9), -1),
        changed(lambda frame: frame.trailer.checksums.append(9), -1),
        changed(lambda frame: frame.trailer.ClearField("checksums"), -1),
        changed(lambda frame: frame.trailer.ClearField("provenance"), -1),
        changed(lambda frame: frame.chunk.ClearField("data"), 1),
        changed(lambda frame: setattr(frame.chunk, "data", bytes(64)), 1),
        changed(lambda frame: setattr(frame.chunk, "tensor_id", 77), 1),
        changed(lambda frame: setattr(frame.header.tensors[1], "tensor_id", 0)),
        changed(lambda frame: setattr(frame.header.tensors[0], "dst", 5000)),
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(frames: list[pb.DeriveFrame]) -> None:
    assert reason_of(frames) is Reason.ANSWER_CORRUPT


HOSTILE: list[dict[str, Any]] = [
    {"byte_length": 2**60},
    {"byte_length": 47},
    {"sizes": [2**60, 4]},
    {"sizes": [2**58, 4], "byte_length": 2**62},
    {"sizes": [2**63, 0], "byte_length": 0},
    {"sizes": [2**31, 2**30, 0], "byte_length": 0},
    {"sizes": [1] * 40, "byte_length": 4},
    {"nonzero_count": 3},
    {"encoding": 2},
    {"encoding": 2, "nonzero_count": 2**40, "byte_length": 12 * 2**40},
    {"encoding": 2, "nonzero_count": 2, "sizes": [], "byte_length": 8},
    {"element_type": 0},
    {"element_type": 99},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=str)
def test_a_hostile_header_allocates_nothing(fields: dict[str, Any]) -> None:
    header = cut(TENSORS)[0]
    info = header.header.tensors[0]
    for name, value in fields.items():
        if name == "sizes":
            info.ClearField("axes")
            info.axes.extend(tensor_pb2.Axis(dimension="DIMENSION_MLP_ACTS", size=size) for size in value)
        else:
            setattr(info, name, value)
    tracemalloc.start()
    try:
        with pytest.raises(DataLoss):
            Assembler().add(header)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_more_bytes_than_allowed_are_refused_with_the_header() -> None:
    with pytest.raises(DataLoss, match="more than the 59"):
        Assembler(max_bytes=59).add(cut(TENSORS)[0])
    Assembler(max_bytes=60).add(cut(TENSORS)[0])


def test_an_unknown_kind_of_frame_is_ignored() -> None:
    frames = cut(TENSORS)
    frames.insert(2, pb.DeriveFrame.FromString(b"\xba\x3e\x00"))
    assert len(assemble(frames).tensors) == 4


def test_the_error_of_an_item_is_raised_as_itself() -> None:
    error = Exhausted("full", retry_after_seconds=1.5)
    frame = pb.DeriveFrame.FromString(b"".join(error_frame(pb.DeriveFrame, error)))
    with pytest.raises(Exhausted, match="full") as caught:
        assemble([*cut(TENSORS)[:3], frame])
    assert caught.value.retry_after_seconds == 1.5


def test_an_answer_without_tensors_is_a_header_and_a_trailer() -> None:
    assert [frame.WhichOneof("frame") for frame in cut(())] == ["header", "trailer"]
    assert assemble(cut(())).tensors == ()


def draw(cutter: FrameCutter, *parts: Any) -> None:
    for part in parts:
        list(cutter.cut(part))


@pytest.mark.parametrize(
    "parts",
    [
        (TENSORS[0],),
        (SUMMARY,),
        (header_of(TENSORS), header_of(TENSORS)),
        (header_of(TENSORS), TENSORS[1]),
        (header_of(TENSORS), TENSORS[0], SUMMARY),
        (header_of(TENSORS), *TENSORS, TENSORS[3]),
        (header_of(TENSORS), *TENSORS, SUMMARY, SUMMARY),
        (header_of(TENSORS), DenseTensor(TENSORS[0].info, np.zeros((4, 3), np.float32))),
        (header_of(TENSORS), TensorRows(TENSORS[0].info, np.zeros((1, 4), np.float32), 1)),
        (header_of(TENSORS), TensorRows(TENSORS[0].info, np.zeros((1, 4), np.float32), 0), TENSORS[0]),
        (header_of(TENSORS), TensorRows(TENSORS[0].info, np.zeros((1, 4), np.float32), 0), TENSORS[1]),
        (header_of(TENSORS), TensorRows(TENSORS[0].info, np.zeros((1, 3), np.float32), 0)),
        (header_of(TENSORS), DenseTensor(TENSORS[0].info, np.zeros((3, 4), np.float64))),
    ],
)
def test_a_pipeline_that_breaks_the_order_is_a_fault_of_ours(parts: Any) -> None:
    with pytest.raises(Internal):
        draw(FrameCutter(), *parts)


def test_a_sparse_tensor_without_a_count_is_a_fault_of_ours() -> None:
    broken = dataclasses.replace(TENSORS[0].info, encoding=TensorEncoding.SPARSE_LATENTS)
    tensor = SparseTensor(broken, np.zeros(0, np.float32), np.zeros((0, 2), np.uint32))
    cutter = FrameCutter()
    with pytest.raises(Internal, match="nonzero_count"):
        draw(cutter, header_of((tensor,)), tensor)
