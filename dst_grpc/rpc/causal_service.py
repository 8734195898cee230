"""CausalService: forwards causal questions to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import attribute_pb2, circuit_pb2, patch_pb2
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.rpc.answers import Messages, frames_of, sender_of
from dst_grpc.rpc.calls import ObservedContext
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
        self._reading = Reading()

    def Patch(self, request: patch_pb2.PatchRequest, context: ObservedContext) -> Messages:
        """Change runs cell by cell."""
        sender, cut = sender_of(context, self._tensors, request), ValueCutter(patch_pb2.PatchFrame).cut
        return frames_of(self._reading, PatchRequest, request, sender, self._pipeline.patch, cut)

    def Attribute(self, request: attribute_pb2.AttributeRequest, context: ObservedContext) -> Messages:
        """Score nodes, edges or tokens."""
        sender, cut = sender_of(context, self._tensors, request), ValueCutter(attribute_pb2.AttributeFrame).cut
        return frames_of(self._reading, AttributeRequest, request, sender, self._pipeline.attribute, cut)

    def Circuit(self, request: circuit_pb2.CircuitRequest, context: ObservedContext) -> Messages:
        """Evaluate circuits, and find them."""
        sender, cut = sender_of(context, self._tensors, request), ValueCutter(circuit_pb2.CircuitFrame).cut
        return frames_of(self._reading, CircuitRequest, request, sender, self._pipeline.circuit, cut)
