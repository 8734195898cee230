"""Reassembles and checks answers on the client: an inconsistent answer is DataLoss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.explanations import (
    ExplanationPart,
    NodeTable,
    PartKind,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
)
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.results import (
    AnswerHeader,
    AnswerTrailer,
    AssembledAnswer,
    DenseTensor,
    RunHeader,
    SparseTensor,
    TensorInfo,
)
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.checksums import crc32
from dst_grpc.wire.codec import read_answer
from dst_grpc.wire.envelope import Chunk
from dst_grpc.wire.errors import error_from_status
from dst_grpc.wire.pieces import Pieces, corrupt
from dst_grpc.wire.tensors import Array, tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dst_grpc._gen.dst.v1 import explain_pb2, resolution_pb2
    from dst_grpc._gen.dst.v1 import inference_pb2 as pb

MAX_ANSWER_BYTES = 8 << 30
"""Most bytes of tensors that an Assembler allocates unless told otherwise."""

Tensor = DenseTensor | SparseTensor


class Assembler:
    """Reassembles the answer to one request from its frames.

    Tensors are returned as soon as they are complete; their checksums are checked with the trailer. float32 and float16
    arrive as such, bfloat16 widened to float32. Each tensor is allocated once, and only after its declared length was
    compared with its axes.
    """

    def __init__(self, request_id: str = "", *, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        """Start the answer to *request_id*."""
        self._request_id = request_id
        self._max_bytes = max_bytes
        self._pieces: Pieces[pb.DeriveFrame] = Pieces()
        self._tensors: list[Tensor] = []
        self._checksums: list[int] = []
        self._byte_count = 0
        self._data: Array = np.empty(0, np.uint8)
        self._filled = 0
        self._checksum = 0
        self.header: AnswerHeader | None = None
        """The header, once it arrived."""
        self.trailer: AnswerTrailer | None = None
        """The trailer, once it arrived."""

    def add(self, frame: pb.DeriveFrame | Chunk) -> tuple[Tensor, ...]:
        """Take the next frame; returns the tensors that it completes, empty ones included.

        Raises:
            DataLoss: with reason ANSWER_CORRUPT, if the frame contradicts earlier ones, the header declares more than
                may be allocated, or counts or checksums are wrong.
            DstError: the server's own, if the frame holds the error that ended the item.
        """
        if isinstance(frame, Chunk):
            return self._take(self._begun("chunk"), frame)
        kind = frame.WhichOneof("frame")
        if kind is None:
            return ()  # a kind that a later version added
        if self.trailer is not None:
            raise corrupt(f"a {kind} came after the trailer")
        if kind == "error":
            raise error_from_status(frame.error)
        whole = self._pieces.whole(frame, kind)
        if whole is None:
            return ()
        if kind == "header":
            return self._begin(whole.header)
        header = self._begun(kind)
        if kind == "chunk":
            return self._take(header, whole.chunk)
        self._check_trailer(header, read_answer(AnswerTrailer, whole.trailer))
        return ()

    def _begun(self, kind: str) -> AnswerHeader:
        if self.trailer is not None:
            raise corrupt(f"a {kind} came after the trailer")
        if self.header is None:
            raise corrupt(f"a {kind} came before the header")
        return self.header

    def finish(self) -> AssembledAnswer:
        """The whole answer. Raises DataLoss with reason ANSWER_TRUNCATED if there was no trailer."""
        if self.header is None or self.trailer is None:
            count = len(self._checksums)
            raise DataLoss(
                f"the answer is truncated: it ended after {count} tensors, without a trailer",
                reason=Reason.ANSWER_TRUNCATED,
            )
        return AssembledAnswer(
            request_id=self._request_id, header=self.header, trailer=self.trailer, tensors=tuple(self._tensors)
        )

    def _begin(self, message: pb.Header) -> tuple[Tensor, ...]:
        if self.header is not None:
            raise corrupt("a second header came")
        header = read_answer(AnswerHeader, message)
        total = sum(info.byte_length for info in header.tensors)
        if total > self._max_bytes:
            raise corrupt(f"the header announces {total} bytes, more than the {self._max_bytes} that are allowed")
        self.header = header
        return self._next_tensors(header)

    def _next_tensors(self, header: AnswerHeader) -> tuple[Tensor, ...]:
        """Return the tensors that are empty, up to the next one that has bytes, and allocate that."""
        done: list[Tensor] = []
        while len(self._checksums) < len(header.tensors):
            info = header.tensors[len(self._checksums)]
            self._data = np.empty(info.byte_length, np.uint8)
            self._filled = self._checksum = 0
            if info.byte_length:
                break
            done.append(self._complete(info))
        return tuple(done)

    def _take(self, header: AnswerHeader, chunk: pb.TensorChunk | Chunk) -> tuple[Tensor, ...]:
        position = len(self._checksums)
        if position >= len(header.tensors) or chunk.tensor_id != position:
            awaited = f"tensor {position}" if position < len(header.tensors) else "the trailer"
            raise corrupt(f"a chunk of tensor {chunk.tensor_id} came where {awaited} was due")
        if chunk.offset != self._filled:
            raise corrupt(f"a chunk of tensor {position} begins at byte {chunk.offset}, not at {self._filled}")
        data = chunk.data  # of a message, each reading makes a copy
        info = header.tensors[position]
        end = self._filled + len(data)
        if not data or end > info.byte_length:
            raise corrupt(f"a chunk of {len(data)} bytes at {self._filled} of tensor {position} ({info.byte_length})")
        self._data[self._filled : end] = np.frombuffer(data, np.uint8)
        self._checksum = crc32(data, self._checksum)
        self._filled = end
        if end < info.byte_length:
            return ()
        return (self._complete(info), *self._next_tensors(header))

    def _complete(self, info: TensorInfo) -> Tensor:
        tensor = tensor_of(info, self._data)
        self._checksums.append(self._checksum)
        self._byte_count += info.byte_length
        self._tensors.append(tensor)
        return tensor

    def _check_trailer(self, header: AnswerHeader, trailer: AnswerTrailer) -> None:
        count = len(self._checksums)
        if count < len(header.tensors):
            raise corrupt(f"the trailer came after {count} of {len(header.tensors)} tensors")
        if (trailer.tensor_count, trailer.byte_count) != (count, self._byte_count):
            raise corrupt(
                f"{count} tensors of {self._byte_count} bytes came, but the trailer counts "
                f"{trailer.tensor_count} of {trailer.byte_count}"
            )
        if trailer.checksums != tuple(self._checksums):
            pairs = zip(self._checksums, trailer.checksums, strict=False)
            bad = [str(i) for i, (ours, theirs) in enumerate(pairs) if ours != theirs]
            raise corrupt(f"the checksums of tensors {', '.join(bad) or 'are too few or too many'} differ")
        self.trailer = trailer


def assemble(frames: Iterable[pb.DeriveFrame | Chunk], *, max_bytes: int = MAX_ANSWER_BYTES) -> AssembledAnswer:
    """The answer in *frames*; raises as Assembler does."""
    assembler = Assembler(max_bytes=max_bytes)
    for frame in frames:
        assembler.add(frame)
    return assembler.finish()


class ValueReader:
    """Reads the frames of an answer as values, and counts them."""

    def __init__(self, classes: Iterable[type]) -> None:
        """Start an answer whose frames hold values of *classes*, which have the names of their messages."""
        self._classes = {cls.__name__: cls for cls in classes}
        self._pieces: Pieces[Any] = Pieces()
        self.count = 0
        """Frames so far."""

    def read(self, frame: Any) -> tuple[str, Any] | None:
        """The kind and value that *frame* completes; None while it is partial, and for unknown kinds.

        Raises:
            DataLoss: with reason ANSWER_CORRUPT, if the frame cannot be read, or contradicts earlier ones.
        """
        self.count += 1
        kind = frame.WhichOneof("frame")
        whole = None if kind is None else self._pieces.whole(frame, kind)
        if kind is None or whole is None:
            return None
        content = getattr(whole, kind)
        return kind, read_answer(self._classes[content.DESCRIPTOR.name], content)


class PartReader:
    """Reads the frames of an answer of TopK or Explain as parts, and counts them."""

    def __init__(self) -> None:
        """Start an answer."""
        self._values = ValueReader((RunHeader, NodeTable, ScalarSum, ScoredTokens, TokenPairs, RunsTrailer))

    @property
    def count(self) -> int:
        """Frames so far."""
        return self._values.count

    def read(self, frame: explain_pb2.TopKFrame | explain_pb2.ExplainFrame) -> ExplanationPart | None:
        """The part that *frame* completes; None while it is partial, and for unknown kinds. Raises as ValueReader."""
        found = self._values.read(frame)
        if found is None:
            return None
        kind, value = found
        return ExplanationPart(kind=PartKind(kind), value=value, run_index=frame.run_index)


class StageReader:
    """Reads the frames of an answer of Resolve as stages."""

    def __init__(self) -> None:
        """Start an answer."""
        self._pieces: Pieces[resolution_pb2.ResolveFrame] = Pieces()

    def read(self, frame: resolution_pb2.ResolveFrame) -> Validated | LoadProgress | Resolution | None:
        """The stage that *frame* completes; None while it is partial, and for unknown kinds.

        Raises:
            DataLoss: with reason ANSWER_CORRUPT, if the frame cannot be read, or contradicts earlier ones.
            DstError: the server's own, if the frame holds the error that ended the item.
        """
        kind = frame.WhichOneof("frame")
        if kind == "error":
            raise error_from_status(frame.error)
        whole = None if kind is None else self._pieces.whole(frame, kind)
        if kind is None or whole is None:
            return None
        cls: type[Validated | LoadProgress | Resolution] = _STAGES[kind]
        return read_answer(cls, getattr(whole, kind))


_STAGES: dict[str, Any] = {"validated": Validated, "loading": LoadProgress, "resolved": Resolution}
