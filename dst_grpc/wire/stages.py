"""The messages of Resolve's answers. An answer that is given again, as to programs that resolve before each request, is
written once."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING

from dst_grpc._gen.dst.v1 import resolution_pb2
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.wire.envelope import CHUNK_BYTES
from dst_grpc.wire.frames import frames_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.wire.envelope import Buffers, Envelope

Stage = Validated | LoadProgress | Resolution
_ARMS: dict[type, str] = {Validated: "validated", LoadProgress: "loading", Resolution: "resolved"}
_KEPT_BYTES = 1 << 20
"""Of frames; what they were written from takes about ten times as much."""


def resolve_frames(stage: Stage, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Buffers]:
    """The frames of a stage of an answer."""
    return frames_of(resolution_pb2.ResolveFrame, _ARMS[type(stage)], stage, chunk_bytes)


class ResolutionWriter:
    """Writes answers without progress. Used on the event loop only."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._kept: OrderedDict[int, tuple[Resolution, tuple[Buffers, ...]]] = OrderedDict()
        """Frames, by the identity of what they were written from."""
        self._kept_bytes = 0

    def messages(self, resolution: Resolution, envelope: Envelope) -> list[bytes]:
        """The messages of an answer."""
        kept = self._kept.get(id(resolution))
        if kept is None:
            frames = tuple(chain(resolve_frames(Validated()), resolve_frames(resolution)))
            self._keep(resolution, frames)
        else:
            self._kept.move_to_end(id(resolution))
            _, frames = kept
        return list(envelope.pack(frames))

    def _keep(self, resolution: Resolution, frames: tuple[Buffers, ...]) -> None:
        """Keep *frames* with what they were written from, whose identity is then nobody else's."""
        self._kept[id(resolution)] = resolution, frames
        self._kept_bytes += _size(frames)
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1][1])


def _size(frames: tuple[Buffers, ...]) -> int:
    return sum(len(buffer) for frame in frames for buffer in frame)
