"""The messages of streamed answers: frames that were ready together, with the id of their request.

DeriveResponse, ResolveResponse, TopKResponse and ExplainResponse have the same layout, as do those of the two streams,
which number their item too. They are serialized and parsed by hand here, because a message that holds a chunk of a
tensor is nearly all data, which the message classes copy three times on each side: here it is copied once when it is
written, and not at all when it is read. A message with any other layout is left to the message classes; a test compares
both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dst_grpc._gen.dst.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dst_grpc.domain.results import MadeAnswer

MESSAGE_BYTES = 1 << 20
"""Most bytes of a message, unless a single element is larger: where loopback throughput levels off."""
ENVELOPE_BYTES = 2048
"""Upper bound of a message's bytes besides the content of its frames; a request's id has at most 1024 bytes."""
CHUNK_BYTES = MESSAGE_BYTES - ENVELOPE_BYTES
"""Most bytes of a chunk, or of another frame's content."""

# Tags of length-delimited fields (number << 3 | 2) and of varints (number << 3).
_REQUEST_ID, _FRAME, _ITEM_INDEX = 0x0A, 0x12, 0x18
_CHUNK, _TENSOR_ID, _OFFSET, _DATA = 0x12, 0x08, 0x10, 0x1A
_MORE = 0x80
"""The bit that is set in every byte of a varint but its last."""

Buffers = tuple[bytes | bytearray | memoryview, ...]
"""The bytes of a frame, in pieces."""


class Chunk(NamedTuple):
    """A piece of a tensor."""

    tensor_id: int
    """Which tensor."""
    offset: int
    """Where in its bytes the piece begins."""
    data: memoryview
    """The piece."""

    @property
    def buffers(self) -> Buffers:
        """The bytes of the DeriveFrame that holds it."""
        inner = bytearray()
        if self.tensor_id:
            inner += _field(_TENSOR_ID, self.tensor_id)
        if self.offset:
            inner += _field(_OFFSET, self.offset)
        inner += _field(_DATA, len(self.data))
        return _field(_CHUNK, len(inner) + len(self.data)) + inner, self.data


class Envelope:
    """The common fields of the messages of one answer."""

    def __init__(self, request_id: str, *, item_index: int = 0, max_chunk_bytes: int = 0) -> None:
        """Describe an answer.

        Args:
            request_id: Id of the request.
            item_index: Number of the item on a stream; 0 elsewhere.
            max_chunk_bytes: The request's `max_chunk_bytes`; 0 for the largest.
        """
        text = request_id.encode()
        self._prefix = _field(_REQUEST_ID, len(text)) + text if text else b""
        self._prefix += _field(_ITEM_INDEX, item_index) if item_index else b""
        self.chunk_bytes = min(max_chunk_bytes or CHUNK_BYTES, CHUNK_BYTES)
        """Most bytes of a chunk, or of another frame's content."""

    def pack(self, frames: Iterable[Buffers]) -> Iterator[bytes]:
        """Messages of *frames*, as many in each as fit."""
        return _packed(frames, self._prefix, self.chunk_bytes + ENVELOPE_BYTES)

    def all_around(self, answer: MadeAnswer) -> list[bytes]:
        """The messages of *answer*, which are `packed_alone`, with the common fields."""
        return [self._prefix + message for message in answer.messages]


def packed_alone(frames: Iterable[Buffers]) -> Iterator[bytes]:
    """Messages of *frames* without common fields, for which they have room."""
    return _packed(frames, b"", CHUNK_BYTES)


def _packed(frames: Iterable[Buffers], prefix: bytes, most_bytes: int) -> Iterator[bytes]:
    message: list[bytes | bytearray | memoryview] = []
    held = len(prefix)
    for frame in frames:
        size = sum(map(len, frame))
        tag = _field(_FRAME, size)
        if message and held + len(tag) + size > most_bytes:
            yield b"".join((prefix, *message))
            message, held = [], len(prefix)
        message += (tag, *frame)
        held += len(tag) + size
    if message:
        yield b"".join((prefix, *message))


class Received(NamedTuple):
    """A message of an answer of Derive or DeriveStream."""

    request_id: str
    """Id of the request."""
    item_index: int
    """Number of the item on a stream."""
    frames: Sequence[pb.DeriveFrame | Chunk]
    """Its frames."""


def received(data: bytes) -> Received:
    """The message whose bytes are *data*; raises DecodeError if they are not a message."""
    try:
        found = _chunk_in(data)
    except (IndexError, UnicodeDecodeError):
        found = None
    if found is not None:
        return found
    message = pb.DeriveStreamResponse.FromString(data)
    return Received(message.request_id, message.item_index, message.frames)


def _chunk_in(data: bytes) -> Received | None:
    """The chunk in *data*, if it holds just one and has the layout written here: its last fields reach to the end."""
    request_id, item_index, at = "", 0, 0
    if data[at] == _REQUEST_ID:
        size, at = _varint_at(data, at + 1)
        request_id = data[at : at + size].decode()
        at += size
    if data[at] == _ITEM_INDEX:
        item_index, at = _varint_at(data, at + 1)
    for tag in (_FRAME, _CHUNK):
        if not _reaches_end(data, at, tag):
            return None
        _, at = _varint_at(data, at + 1)
    tensor_id = offset = 0
    if data[at] == _TENSOR_ID:
        tensor_id, at = _varint_at(data, at + 1)
    if data[at] == _OFFSET:
        offset, at = _varint_at(data, at + 1)
    if not _reaches_end(data, at, _DATA):
        return None
    _, at = _varint_at(data, at + 1)
    return Received(request_id, item_index, (Chunk(tensor_id, offset, memoryview(data)[at:]),))


def _reaches_end(data: bytes, at: int, tag: int) -> bool:
    """Whether the field at *at* is *tag* and the last of *data*."""
    if data[at] != tag:
        return False
    size, at = _varint_at(data, at + 1)
    return at + size == len(data)


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and the position after it."""
    value = shift = 0
    while data[at] & _MORE:
        value |= (data[at] & ~_MORE) << shift
        shift += 7
        at += 1
    return value | data[at] << shift, at + 1


@lru_cache(1024)
def _field(tag: int, value: int) -> bytes:
    """A tag followed by a varint. Even large answers repeat few: chunks have one size, and offsets its multiples."""
    parts = bytearray((tag,))
    while value >= _MORE:
        parts.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    parts.append(value)
    return bytes(parts)
