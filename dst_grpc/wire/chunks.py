"""Chunks of tensors on the wire, written and read around their bytes.

A DeriveResponse or DeriveStreamResponse that holds a chunk is nearly all data, and the message classes copy that three
times on each side. Here it is copied once when it is written, and not at all when it is read: a chunk is a view of the
message. Whatever is not laid out as expected is left to the classes, which know every form. A test holds both against
each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dst_grpc._gen.dst.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tags of length-delimited fields (number << 3 | 2) and of varints (number << 3).
_RESPONSE_FRAME, _FRAME_REQUEST_ID, _FRAME_CHUNK, _CHUNK_DATA = 0x0A, 0x0A, 0x1A, 0x1A
_CHUNK_TENSOR_ID, _CHUNK_OFFSET = 0x08, 0x10
_MORE = 0x80
"""Set in every byte of a varint but its last."""


class Chunk(NamedTuple):
    """A frame that holds a piece of a tensor."""

    request_id: str
    """Whose answer it belongs to."""
    tensor_id: int
    """Which tensor."""
    offset: int
    """Where in its bytes the piece begins."""
    data: memoryview
    """The piece."""

    def to_frame(self) -> pb.Frame:
        """The same as a message."""
        chunk = pb.TensorChunk(tensor_id=self.tensor_id, offset=self.offset, data=bytes(self.data))
        return pb.Frame(request_id=self.request_id, chunk=chunk)


def serialised(frame: pb.Frame | Chunk) -> bytes:
    """The bytes of a DeriveResponse, which are those of a DeriveStreamResponse too, that holds *frame*.

    Several such, one after the other, are the bytes of a response that holds several frames.
    """
    if isinstance(frame, pb.Frame):
        return pb.DeriveResponse(frames=[frame]).SerializeToString()
    text, size = frame.request_id.encode(), len(frame.data)
    inner = bytearray()
    if frame.tensor_id:
        inner += _field(_CHUNK_TENSOR_ID, frame.tensor_id)
    if frame.offset:
        inner += _field(_CHUNK_OFFSET, frame.offset)
    inner += _field(_CHUNK_DATA, size)
    outer = bytearray()
    if text:
        outer += _field(_FRAME_REQUEST_ID, len(text)) + text
    outer += _field(_FRAME_CHUNK, len(inner) + size) + inner
    return b"".join((_field(_RESPONSE_FRAME, len(outer) + size), outer, frame.data))


def parsed(data: bytes) -> Sequence[pb.Frame | Chunk]:
    """The frames in the bytes of a DeriveResponse or DeriveStreamResponse; raises DecodeError if they are neither."""
    try:
        chunk = _chunk_in(data)
    except (IndexError, UnicodeDecodeError):
        chunk = None
    return pb.DeriveResponse.FromString(data).frames if chunk is None else (chunk,)


def _chunk_in(data: bytes) -> Chunk | None:
    """The chunk that *data* holds, if it is laid out as `serialised` does it: every length reaching to the end."""
    at = _to_the_end(data, 0, _RESPONSE_FRAME)
    if at is None:
        return None
    request_id = ""
    if data[at] == _FRAME_REQUEST_ID:
        size, at = _varint_at(data, at + 1)
        request_id = data[at : at + size].decode()
        at += size
    at = _to_the_end(data, at, _FRAME_CHUNK)
    if at is None:
        return None
    tensor_id = offset = 0
    if data[at] == _CHUNK_TENSOR_ID:
        tensor_id, at = _varint_at(data, at + 1)
    if data[at] == _CHUNK_OFFSET:
        offset, at = _varint_at(data, at + 1)
    at = _to_the_end(data, at, _CHUNK_DATA)
    return None if at is None else Chunk(request_id, tensor_id, offset, memoryview(data)[at:])


def _to_the_end(data: bytes, at: int, tag: int) -> int | None:
    """Where the content of the field *tag* at *at* begins, if it reaches to the end of *data*."""
    if data[at] != tag:
        return None
    size, at = _varint_at(data, at + 1)
    return at if at + size == len(data) else None


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and where the next thing begins."""
    value = shift = 0
    while data[at] & _MORE:
        value |= (data[at] & ~_MORE) << shift
        shift += 7
        at += 1
    return value | data[at] << shift, at + 1


def _field(tag: int, value: int) -> bytes:
    """A tag followed by a varint."""
    parts = bytearray((tag,))
    while value >= _MORE:
        parts.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    parts.append(value)
    return bytes(parts)
