"""CausalService: forwards causal questions to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import attribute_pb2, circuit_pb2, patch_pb2
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.errors import Violations
from dst_grpc.rpc.answers import Messages, answers_of, messages_of, urgency_of
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.ports import PipelinePort
from dst_grpc.rpc.reading import Reading
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.envelope import Envelope
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

        def answers(asked: PatchRequest, known: Violations | None) -> Messages:
            steps = self._pipeline.patch(
                asked,
                known,
                tensors=self._tensors.of(caller.name),
                caller=caller,
                urgency=urgency,
                request_bytes=request.ByteSize(),
            )
            return messages_of(
                steps, ValueCutter(patch_pb2.PatchFrame).cut, Envelope(asked.request_id), self._reading.threads
            )

        caller, urgency = context.caller, urgency_of(context)
        return answers_of(self._reading, PatchRequest, request, answers)

    def Attribute(self, request: attribute_pb2.AttributeRequest, context: ObservedContext) -> Messages:
        """Score nodes, edges or tokens."""

        def answers(asked: AttributeRequest, known: Violations | None) -> Messages:
            steps = self._pipeline.attribute(
                asked, known, caller=caller, urgency=urgency, request_bytes=request.ByteSize()
            )
            return messages_of(
                steps, ValueCutter(attribute_pb2.AttributeFrame).cut, Envelope(asked.request_id), self._reading.threads
            )

        caller, urgency = context.caller, urgency_of(context)
        return answers_of(self._reading, AttributeRequest, request, answers)

    def Circuit(self, request: circuit_pb2.CircuitRequest, context: ObservedContext) -> Messages:
        """Evaluate circuits, and find them."""

        def answers(asked: CircuitRequest, known: Violations | None) -> Messages:
            steps = self._pipeline.circuit(
                asked,
                known,
                tensors=self._tensors.of(caller.name),
                caller=caller,
                urgency=urgency,
                request_bytes=request.ByteSize(),
            )
            return messages_of(
                steps, ValueCutter(circuit_pb2.CircuitFrame).cut, Envelope(asked.request_id), self._reading.threads
            )

        caller, urgency = context.caller, urgency_of(context)
        return answers_of(self._reading, CircuitRequest, request, answers)
