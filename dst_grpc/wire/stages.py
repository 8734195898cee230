"""The messages of Resolve's answers. An answer that is given again, as to programs that resolve before each request, is
written once."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING

from dst_grpc._gen.dst.v1 import resolution_pb2
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.results import MadeAnswer
from dst_grpc.wire.envelope import CHUNK_BYTES, packed_alone
from dst_grpc.wire.frames import frames_of, is_light

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.wire.envelope import Buffers

Stage = Validated | LoadProgress | Resolution
_ARMS: dict[type, str] = {Validated: "validated", LoadProgress: "loading", Resolution: "resolved"}
_KEPT_BYTES = 1 << 20
"""Of messages; what they were written from takes about ten times as much."""


def resolve_frames(stage: Stage, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Buffers]:
    """The frames of a stage of an answer."""
    return frames_of(resolution_pb2.ResolveFrame, _ARMS[type(stage)], stage, chunk_bytes)


class ResolutionWriter:
    """Writes answers without progress, unless they are so large that it takes a while. Used on the event loop only."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._kept: OrderedDict[int, tuple[Resolution, MadeAnswer]] = OrderedDict()
        """By the identity of what they were written from."""
        self._kept_bytes = 0

    def answer(self, resolution: Resolution) -> MadeAnswer | None:
        """The answer that *resolution* is; None if it is large."""
        kept = self._kept.get(id(resolution))
        if kept is not None:
            self._kept.move_to_end(id(resolution))
            return kept[1]
        if not is_light(resolution):
            return None
        frames = chain(resolve_frames(Validated()), resolve_frames(resolution))
        answer = MadeAnswer(tuple(packed_alone(frames)))
        self._keep(resolution, answer)
        return answer

    def _keep(self, resolution: Resolution, answer: MadeAnswer) -> None:
        """Keep *answer* with what it was written from, whose identity is then nobody else's."""
        self._kept[id(resolution)] = resolution, answer
        self._kept_bytes += answer.byte_count
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1].byte_count
