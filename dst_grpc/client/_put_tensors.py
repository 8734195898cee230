"""TensorService: stores tensors on the server, for requests to name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dst_grpc._gen.dst.v1 import tensor_service_pb2 as pb
from dst_grpc._gen.dst.v1.tensor_service_pb2_grpc import TensorServiceStub
from dst_grpc.client._calls import Calls
from dst_grpc.client._errors import our_errors
from dst_grpc.client._given import seconds
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.put_tensors import PutTensor, TensorDescription
from dst_grpc.wire.checksums import crc32
from dst_grpc.wire.codec import read_answer, to_wire
from dst_grpc.wire.envelope import CHUNK_BYTES
from dst_grpc.wire.tensors import stored_as

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.tensor_service_pb2_grpc import TensorServiceAsyncStub


class TensorCalls(Calls):
    """TensorService."""

    @cached_property
    def _tensor_stub(self) -> TensorServiceAsyncStub:
        return TensorServiceStub(self._channel)

    async def put_tensor(
        self, values: ArrayLike, *, ttl: float | None = None, model: str | None = None, timeout: float | None = None
    ) -> PutTensor:
        """Store a tensor on the server, for interventions of later requests to name by `handle`.

        Args:
            values: The numbers; float16 is sent as such, everything else as float32.
            ttl: Seconds that they are kept; None = as long as the server allows.
            model: Behind a proxy with several servers: the model of the requests that will name the tensor, so that it
                is stored where those go.
            timeout: Seconds; None = no limit.

        Returns:
            The stored tensor: its handle, and when it is deleted.

        Raises:
            Exhausted: If it exceeds the caller's quota.
            DstError: Any other failure of a call.
        """
        array = np.asarray(values)
        element_type = TensorElementType.FLOAT16 if array.dtype == np.float16 else TensorElementType.FLOAT32
        flat = np.ascontiguousarray(array, dtype=stored_as(element_type)).reshape(-1)
        data = flat.view(np.uint8).data
        description = TensorDescription(element_type=element_type, sizes=array.shape, ttl=ttl, checksum=crc32(data))
        metadata = self._connection.call_metadata(model)
        call = self._tensor_stub.PutTensor(_messages(description, data), timeout=seconds(timeout), metadata=metadata)
        with our_errors(self.target, timeout):
            put = read_answer(PutTensor, await call)
        self._models_of_kept[put.handle] = model or ""
        return put

    async def delete_tensor(self, tensor: PutTensor | str, *, timeout: float | None = None) -> None:
        """Delete a tensor on the server; requests that are using it go on.

        Args:
            tensor: The tensor, or its handle.
            timeout: Seconds; None = no limit.

        Raises:
            NotFound: If this caller has none of that handle.
        """
        handle = tensor.handle if isinstance(tensor, PutTensor) else tensor
        model = self._models_of_kept.pop(handle, None)
        await self._unary(self._tensor_stub.DeleteTensor, pb.DeleteTensorRequest(handle=handle), timeout, model=model)


def _messages(description: TensorDescription, data: memoryview) -> Iterator[pb.PutTensorRequest]:
    yield pb.PutTensorRequest(description=to_wire(description))
    for start in range(0, len(data), CHUNK_BYTES):
        yield pb.PutTensorRequest(data=bytes(data[start : start + CHUNK_BYTES]))
