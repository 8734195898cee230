"""Collectors: assemble one request's answer from its messages, of a call or of an item of a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dst_grpc._gen.dst.v1 import resolution_pb2
from dst_grpc.client._answer import Answer
from dst_grpc.domain.resolution import LoadProgress, Resolution
from dst_grpc.wire.assembly import Assembler, StageReader
from dst_grpc.wire.envelope import Received


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """How much of an answer has arrived."""

    bytes_done: int
    """Bytes of whole tensors so far."""
    bytes_total: int
    """Bytes of all tensors."""


class AnswerCollector:
    """From frames to an Answer."""

    def __init__(self, request_id: str, on_progress: Callable[[TransferProgress], None] | None = None) -> None:
        self._assembler = Assembler(request_id)
        self._on_progress = on_progress
        self._bytes_done = 0

    def add(self, message: Received) -> Answer | None:
        """Take the next message; see Collector."""
        for frame in message.frames:
            self._bytes_done += sum(tensor.info.byte_length for tensor in self._assembler.add(frame))
        header = self._assembler.header
        if self._on_progress is not None and header is not None:
            total = sum(info.byte_length for info in header.tensors)
            self._on_progress(TransferProgress(bytes_done=self._bytes_done, bytes_total=total))
        return None if self._assembler.trailer is None else Answer(self._assembler.finish())


class ResolutionCollector:
    """From stages to a Resolution."""

    def __init__(self, on_progress: Callable[[LoadProgress], None] | None = None) -> None:
        self._reader = StageReader()
        self._on_progress = on_progress

    def add(self, message: resolution_pb2.ResolveResponse | resolution_pb2.ResolveStreamResponse) -> Resolution | None:
        """Take the next message; see Collector."""
        for frame in message.frames:
            stage = self._reader.read(frame)
            if isinstance(stage, Resolution):
                return stage
            if isinstance(stage, LoadProgress) and self._on_progress is not None:
                self._on_progress(stage)
        return None
