"""Splits a frame that is too large for a message into pieces, and merges pieces as protobuf merges messages.

All pieces but the last are marked as partial. Sums, whose numbers are one field, are split between tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dst_grpc.errors import DataLoss, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

    from dst_grpc._gen.dst.v1 import explain_pb2

M = TypeVar("M", bound="Message")

_OVERHEAD_BYTES = 10
"""Upper bound of the bytes of an element's tag and length, and of any number."""


def split(message: M, max_bytes: int) -> Iterator[M]:
    """Pieces of *message* that merge to it, of at most *max_bytes* unless one element of a list is larger.

    Fields other than lists are in the first.
    """
    if message.ByteSize() <= max_bytes:
        yield message
        return
    piece = type(message)()
    for field, value in message.ListFields():
        if field.message_type is not None and not field.is_repeated:
            getattr(piece, field.name).CopyFrom(value)
        elif not field.is_repeated:
            setattr(piece, field.name, value)
    held = piece.ByteSize()
    for field, values in message.ListFields():
        if not field.is_repeated:
            continue
        for value in values:
            size = _size(field, value)
            if held and held + size > max_bytes:
                yield piece
                piece, held = type(message)(), 0
            getattr(piece, field.name).append(value)
            held += size
    yield piece


def _size(field: FieldDescriptor, value: Any) -> int:
    """About how many bytes an element of a list takes."""
    if field.message_type is not None:
        return int(value.ByteSize()) + _OVERHEAD_BYTES
    return len(value.encode()) + _OVERHEAD_BYTES if isinstance(value, str) else _OVERHEAD_BYTES


def split_text(text: str, max_bytes: int) -> Iterator[str]:
    """Pieces of *text* of at most *max_bytes* in UTF-8, between characters; one piece if it is empty."""
    step = max(1, max_bytes // 4)  # no character takes more than 4 bytes
    yield from (text[i : i + step] for i in range(0, max(1, len(text)), step))


def corrupt(what: str) -> DataLoss:
    """The error of an inconsistent answer."""
    return DataLoss(f"the answer is corrupt: {what}", reason=Reason.ANSWER_CORRUPT)


class Pieces(Generic[M]):
    """Merges frames that continue one another."""

    def __init__(self) -> None:
        """Start empty."""
        self._held: list[M] = []

    def whole(self, frame: M, kind: str) -> M | None:
        """The merged frame, once *frame*, which holds *kind*, completes it; None while it is partial.

        Raises:
            DataLoss: with reason ANSWER_CORRUPT, if it does not continue the partial frames before it.
        """
        if not self._held and not _is_partial(frame):
            return frame
        if self._held:
            first = self._held[0]
            if first.WhichOneof("frame") != kind or getattr(first, "run_index", 0) != getattr(frame, "run_index", 0):
                raise corrupt(f"a {kind} came where the rest of a {first.WhichOneof('frame')} was due")
        self._held.append(frame)
        if _is_partial(frame):
            return None
        held, self._held = self._held, []
        return _merged(held, kind)


def _is_partial(frame: Any) -> bool:
    return bool(frame.partial)


def _merged(frames: list[M], kind: str) -> M:
    whole = type(frames[0])()
    whole.CopyFrom(frames[0])
    content = getattr(whole, kind)
    if kind == "scalar_sum":
        _join_sums(content, [getattr(frame, kind) for frame in frames])
        return whole
    for frame in frames[1:]:
        piece = getattr(frame, kind)
        for field, value in piece.ListFields():
            if not field.is_repeated and getattr(content, field.name) != value and _is_set(content, field):
                raise corrupt(f"two pieces of a {kind} differ in {field.name}")
        content.MergeFrom(piece)
    return whole


def _is_set(message: Message, field: FieldDescriptor) -> bool:
    return message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))


def _join_sums(whole: explain_pb2.ScalarSum, sums: list[explain_pb2.ScalarSum]) -> None:
    """Concatenate the rows of *sums*."""
    rows = 0
    shape = [(axis.dimension, axis.size) for axis in whole.values.axes][1:]
    for found in sums:
        axes = [(axis.dimension, axis.size) for axis in found.values.axes]
        if not axes or axes[1:] != shape or found.first_token != whole.first_token + rows:
            raise corrupt(f"pieces of a sum do not follow one another at token {found.first_token}")
        if (found.dst, found.values.element_type) != (whole.dst, whole.values.element_type):
            raise corrupt("pieces of a sum are of different types")
        rows += axes[0][1]
    whole.values.axes[0].size = min(rows, 2**63)
    whole.values.data = b"".join(found.values.data for found in sums)
