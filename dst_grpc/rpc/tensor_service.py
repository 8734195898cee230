"""TensorService: receives tensors in pieces, for later requests of the same caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from datetime import UTC, datetime, timedelta

import numpy as np

from dst_grpc._gen.dst.v1 import tensor_service_pb2 as pb
from dst_grpc.domain.put_tensors import PutTensor, TensorDescription
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.checksums import crc32
from dst_grpc.wire.codec import read, to_wire
from dst_grpc.wire.tensors import Array, stored_as, widened


class TensorService:
    """Stores tensors that later requests name."""

    def __init__(self, store: TensorStore) -> None:
        """Store them in *store*."""
        self._store = store

    async def PutTensor(
        self, requests: AsyncIterable[pb.PutTensorRequest], context: ObservedContext
    ) -> pb.PutTensorResponse:
        """Receive a tensor, and return its handle."""
        messages = aiter(requests)
        description = await _description(messages)
        with self._store.arriving(context.caller.name, description.element_count) as keep:
            data = await _bytes(messages, description.byte_count)
            tensor = await asyncio.to_thread(_tensor, data, description)
            kept = keep(tensor, description.ttl)
        expire_time = datetime.now(UTC) + timedelta(seconds=kept.ttl_seconds)
        answer: pb.PutTensorResponse = to_wire(
            PutTensor(handle=kept.handle, byte_count=kept.byte_count, expire_time=expire_time)
        )
        return answer

    async def DeleteTensor(self, request: pb.DeleteTensorRequest, context: ObservedContext) -> pb.DeleteTensorResponse:
        """Delete a tensor."""
        if not request.handle:
            raise InvalidRequest.of("handle", "is required")
        self._store.delete(context.caller.name, request.handle)
        return pb.DeleteTensorResponse()


async def _description(messages: AsyncIterator[pb.PutTensorRequest]) -> TensorDescription:
    """The description in the first message. Raises InvalidRequest."""
    first = await anext(messages, None)
    if first is None or not first.HasField("description"):
        raise InvalidRequest.of("description", "must come first")
    try:
        return read(TensorDescription, first.description)
    except InvalidRequest as error:
        raise error.under("description") from None


async def _bytes(messages: AsyncIterator[pb.PutTensorRequest], byte_count: int) -> Array:
    """The bytes of the other messages, [byte_count] of uint8. Raises InvalidRequest if there are more or fewer."""
    data, filled = np.empty(byte_count, np.uint8), 0
    async for message in messages:
        if message.HasField("description"):
            raise InvalidRequest.of("description", "must come once, in the first message")
        if not message.HasField("data"):
            raise InvalidRequest.of("data", "must follow the description, and nothing else")
        piece = np.frombuffer(message.data, np.uint8)
        if filled + len(piece) > byte_count:
            raise InvalidRequest.of("data", f"brings more than the {byte_count} bytes that the description makes it")
        data[filled : filled + len(piece)] = piece
        filled += len(piece)
        del message, piece
    if filled < byte_count:
        raise InvalidRequest.of("data", f"ends after {filled} of the {byte_count} bytes that the description makes it")
    return data


def _tensor(data: Array, description: TensorDescription) -> RequestTensor:
    """The tensor of the bytes *data*.

    Raises:
        DataLoss: They do not match the checksum.
        InvalidRequest: Some of the numbers are not finite.
    """
    checksum = crc32(data.data)
    if description.checksum not in {None, checksum}:
        raise DataLoss(
            f"the bytes that came have the CRC-32 {checksum}, and the description says {description.checksum}",
            reason=Reason.TENSOR_CORRUPT,
            metadata={"checksum": str(checksum), "expected_checksum": str(description.checksum)},
        )
    stored = data.view(stored_as(description.element_type)).reshape(description.sizes)
    values = np.asarray(widened(stored, description.element_type), np.float32)
    values.flags.writeable = False
    try:
        tensor = RequestTensor(tensor=values)
    except InvalidRequest as error:
        raise InvalidRequest.of("data", error.violations[0].description) from None
    _ = tensor.identity  # computed here rather than on the event loop: it takes a while
    return tensor
