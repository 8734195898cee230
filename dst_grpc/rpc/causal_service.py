"""CausalService: forwards causal questions to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import attribute_pb2, circuit_pb2, patch_pb2
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.rpc.answers import Messages, frames_of
from dst_grpc.rpc.calls import ObservedContext, of_bytes
from dst_grpc.rpc.ports import PipelinePort
from dst_grpc.rpc.reading import Reading
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.frames import ValueCutter


class CausalService:
    """Patches, attributes, and finds and evaluates circuits."""

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore) -> None:
        """Serve *pipeline*, with the store of callers' *tensors*."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._reading = Reading(pipeline.waiting)

    @of_bytes
    async def Patch(self, data: bytes, context: ObservedContext) -> Messages:
        """Change runs cell by cell."""
        cut = ValueCutter(patch_pb2.PatchFrame).cut
        return await frames_of(context, data, self._reading, self._tensors, PatchRequest, self._pipeline.patch, cut)

    @of_bytes
    async def Attribute(self, data: bytes, context: ObservedContext) -> Messages:
        """Score nodes, edges or tokens."""
        cut = ValueCutter(attribute_pb2.AttributeFrame).cut
        return await frames_of(
            context, data, self._reading, self._tensors, AttributeRequest, self._pipeline.attribute, cut
        )

    @of_bytes
    async def Circuit(self, data: bytes, context: ObservedContext) -> Messages:
        """Evaluate circuits, and find them."""
        cut = ValueCutter(circuit_pb2.CircuitFrame).cut
        return await frames_of(context, data, self._reading, self._tensors, CircuitRequest, self._pipeline.circuit, cut)
