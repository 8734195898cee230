"""Splits answers into frames, on the server. Pure; no sockets, no threads.

The frames of a request to derive are a header, the chunks of each tensor in the header's order, and a trailer with a
CRC-32 of each. Those of TopK, Explain and of causal questions are their parts and a trailer that counts them; those of
Resolve are stages (`stages`). A failed item of a stream ends with an error instead. `envelope` packs all into messages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc._gen.dst.v1 import resolution_pb2
from dst_grpc.domain.attribute_answers import AttributePart, AttributePartKind
from dst_grpc.domain.circuit import CircuitPart, CircuitPartKind
from dst_grpc.domain.explanations import (
    ExplanationPart,
    NodeTable,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
)
from dst_grpc.domain.graph_answers import GraphHeader, GraphPart, GraphPaths
from dst_grpc.domain.graph_node_table import GraphNodeTable
from dst_grpc.domain.graph_probe_answers import GraphAttentionScore, GraphChanges, GraphProbePart
from dst_grpc.domain.patch_answers import PatchedCells, PatchPart, PatchPartKind
from dst_grpc.domain.resolution import Resolution
from dst_grpc.domain.results import (
    AnswerHeader,
    AnswerTrailer,
    DenseTensor,
    RunSummary,
    SparseTensor,
    TensorInfo,
    TensorRows,
)
from dst_grpc.errors import Internal
from dst_grpc.wire.checksums import crc32
from dst_grpc.wire.codec import codec_of
from dst_grpc.wire.envelope import CHUNK_BYTES, Buffers, Chunk
from dst_grpc.wire.errors import error_to_status
from dst_grpc.wire.pieces import split
from dst_grpc.wire.tensors import tensor_buffers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dst_grpc._gen.dst.v1 import explain_pb2
    from dst_grpc.errors import DstError


class ValuePart(Protocol):
    """A part of an answer: what kind of frame holds it, and a value of the domain."""

    @property
    def kind(self) -> str:
        """The arm of the frame."""

    @property
    def value(self) -> Any:
        """The value."""


Tensor = DenseTensor | TensorRows | SparseTensor
AnswerPart = AnswerHeader | Tensor | RunSummary
_MAX_WEIGHT = 5000
"""Values that are put into a message at once; it takes some milliseconds."""
_FEW = 100
"""Entries of a list that are cut faster than threads are changed."""


def is_light(part: object) -> bool:
    """Whether cutting *part* into frames, or into the first of them, takes about a millisecond at most."""
    match part:
        case AnswerHeader():
            return len(part.tensors) + len(part.token_ids) // 4 <= _FEW
        case Resolution():
            return len(part.scalars) <= _FEW
        case ExplanationPart(value=NodeTable() as table):
            return len(table.nodes) <= _FEW
        case ExplanationPart():
            return not isinstance(part.value, ScoredTokens | TokenPairs)
        case CircuitPart():
            return part.kind is CircuitPartKind.PROGRESS
        case PatchPart(value=PatchedCells() as cells):
            return len(cells.cells) + len(cells.logits) <= _FEW
        case PatchPart():
            return part.kind is PatchPartKind.PAIR
        case GraphPart() | GraphProbePart():
            return _is_light_of_graph(part.value)
        case AttributePart():
            return part.kind is not AttributePartKind.HEADER
    return True


def _is_light_of_graph(value: object) -> bool:
    match value:
        case GraphHeader():
            return len(value.token_ids) // 4 <= _FEW
        case GraphPaths():
            return len(value.paths) <= _FEW
        case GraphNodeTable():
            return len(value) <= 10 * _FEW
        case GraphChanges():
            return len(value.changes) <= _FEW
        case GraphAttentionScore():
            return len(value.pairs) <= _FEW
    return True


def error_frame(frame_class: type[pb.DeriveFrame | resolution_pb2.ResolveFrame], error: DstError) -> Buffers:
    """The frame that ends an item that failed."""
    return (frame_class(error=error_to_status(error)).SerializeToString(),)


def part_to_wire(frame_class: type[explain_pb2.TopKFrame | explain_pb2.ExplainFrame], part: ExplanationPart) -> Any:
    """The frame of a part of an answer, however large."""
    return frame_class(**_content(part.kind, part.value), run_index=part.run_index)


def _content(kind: str, value: Any) -> dict[str, Any]:
    return {kind: codec_of(type(value)).write(value)}


def frames_of(frame_class: Any, kind: str, value: Any, chunk_bytes: int, **fields: Any) -> Iterator[Buffers]:
    """The frames of *value*, of kind *kind*: one if it is small enough."""
    parts = list(_parts(codec_of(type(value)).write(value)))
    if len(parts) == 1:
        data = frame_class(**{kind: parts[0]}, **fields).SerializeToString()
        if len(data) <= chunk_bytes:
            yield (data,)
            return
    pieces = _pieces(frame_class, kind, parts, chunk_bytes)
    piece = next(pieces)
    for following in pieces:
        yield (frame_class(**{kind: piece}, **fields, partial=True).SerializeToString(),)
        piece = following
    yield (frame_class(**{kind: piece}, **fields).SerializeToString(),)


def _pieces(frame_class: Any, kind: str, parts: Iterable[Mapping[str, Any]], chunk_bytes: int) -> Iterator[Any]:
    """*parts* of the arguments of the message of *kind*, as messages of at most *chunk_bytes* that merge to it."""
    for part in parts:
        frame = frame_class(**{kind: part})
        if frame.ByteSize() <= chunk_bytes:
            yield getattr(frame, kind)
        else:
            yield from split(getattr(frame, kind), chunk_bytes)


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """*content* in parts whose lists are short: protobuf holds the interpreter while it makes a message."""
    lists = {name: values for name, values in content.items() if isinstance(values, list | tuple)}
    part = {name: value for name, value in content.items() if name not in lists}
    held = 0
    for name, values in lists.items():
        start = 0
        for i, value in enumerate(values):
            weight = _weight(value)
            if held and held + weight > _MAX_WEIGHT:
                part[name] = values[start:i]
                yield part
                part, start, held = {}, i, 0
            held += weight
        part[name] = values[start:]
    yield part


def _weight(value: Any) -> int:
    """About how many values *value* holds."""
    if not isinstance(value, dict):
        return 1
    return 1 + sum(len(each) if isinstance(each, list | tuple | dict) else 1 for each in value.values())


class ValueCutter:
    """Splits the parts of an answer into frames, and counts them."""

    def __init__(self, frame_class: Any, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Start an answer of frames of *frame_class*."""
        self._frame_class = frame_class
        self._chunk_bytes = chunk_bytes
        self._count = 0

    def cut(self, part: ValuePart | RunSummary) -> Iterator[Buffers]:
        """The frames of the next part; the summary is the last, and becomes the trailer."""
        if isinstance(part, RunSummary):
            trailer = RunsTrailer(frame_count=self._count + 1, statistics=part.statistics, provenance=part.provenance)
            frames = self._frames_of("trailer", trailer)
        else:
            frames = self._frames_of(part.kind, part.value, **self._place_of(part))
        for frame in frames:
            self._count += 1
            yield frame

    def _place_of(self, _part: Any) -> dict[str, Any]:
        """Fields of the frames of a part, beside its value."""
        return {}

    def _frames_of(self, kind: str, value: Any, **fields: Any) -> Iterator[Buffers]:
        """The frames of *value*, of kind *kind*."""
        return frames_of(self._frame_class, kind, value, self._chunk_bytes, **fields)


class PartCutter(ValueCutter):
    """The same of TopK or Explain, whose parts are each about one run."""

    def _place_of(self, part: ExplanationPart) -> dict[str, Any]:
        return {"run_index": part.run_index}

    def _frames_of(self, kind: str, value: Any, **fields: Any) -> Iterator[Buffers]:
        if not isinstance(value, ScalarSum) or value.values.nbytes <= self._chunk_bytes:
            yield from super()._frames_of(kind, value, **fields)
            return
        rows = max(1, self._chunk_bytes // (value.values.nbytes // len(value.values)))
        starts = range(0, len(value.values), rows)
        for start in starts:
            piece = ScalarSum(
                dst=value.dst, values=value.values[start : start + rows], first_token=value.first_token + start
            )
            frame = self._frame_class(**_content(kind, piece), **fields, partial=start != starts[-1])
            yield (frame.SerializeToString(),)


class FrameCutter:
    """Splits the parts of one answer of Derive into frames, with counts and checksums."""

    def __init__(self, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Start an answer, in chunks of at most *chunk_bytes*."""
        self._chunk_bytes = chunk_bytes
        self._expected: tuple[TensorInfo, ...] | None = None
        self._checksums: list[int] = []
        self._offset = self._checksum = 0
        """Bytes that were cut of the next tensor, and their checksum."""
        self._byte_count = 0
        self._is_finished = False

    def cut(self, part: AnswerPart) -> Iterator[Buffers]:
        """The frames of the next part of the answer; chunks are views of their tensor.

        The parts are a header, its tensors in its order, each whole or in rows, and a summary. Each part's frames must
        be consumed before the next part is cut.

        Raises:
            Internal: if the part is out of order, or not as the header declares.
        """
        if self._is_finished:
            raise Internal("the answer has its trailer already")
        if isinstance(part, AnswerHeader):
            yield from self._begin(part)
        elif isinstance(part, RunSummary):
            yield from self._finish(part)
        else:
            yield from self._chunks(part)

    def _begin(self, header: AnswerHeader) -> Iterator[Buffers]:
        if self._expected is not None:
            raise Internal("the answer has a header already")
        self._expected = header.tensors
        return frames_of(pb.DeriveFrame, "header", header, self._chunk_bytes)

    def _chunks(self, tensor: Tensor) -> Iterator[Buffers]:
        info = tensor.info
        position = len(self._checksums)
        expected = self._expected or ()
        if position >= len(expected) or expected[position] != info:
            raise Internal(f"tensor {info.tensor_id} ({info.dst}) is not what the header announces next")
        if isinstance(tensor, TensorRows):
            begun = tensor.first_row * math.prod(info.shape[1:]) * info.element_type.byte_width
        else:
            begun = 0
        if begun != self._offset:
            raise Internal(f"{self._offset} bytes of tensor {info.tensor_id} ({info.dst}) were cut, not {begun}")
        for buffer in tensor_buffers(tensor):
            for start in range(0, len(buffer), self._chunk_bytes):
                data = buffer[start : start + self._chunk_bytes]
                self._checksum = crc32(data, self._checksum)
                yield Chunk(info.tensor_id, self._offset, data).buffers
                self._offset += len(data)
        if self._offset < info.byte_length:
            return
        self._checksums.append(self._checksum)
        self._byte_count += self._offset
        self._offset = self._checksum = 0

    def _finish(self, summary: RunSummary) -> Iterator[Buffers]:
        if self._expected is None or len(self._checksums) < len(self._expected):
            raise Internal("the answer ends before all its tensors were cut")
        self._is_finished = True
        trailer = AnswerTrailer(
            tensor_count=len(self._checksums),
            byte_count=self._byte_count,
            checksums=tuple(self._checksums),
            statistics=summary.statistics,
            provenance=summary.provenance,
        )
        return frames_of(pb.DeriveFrame, "trailer", trailer, self._chunk_bytes)
