"""DerivedScalarService: forwards requests to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import explain_pb2, inference_pb2, resolution_pb2
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.requests import (
    MAX_REQUEST_ID_CHARACTERS,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.errors import DstError, Violations
from dst_grpc.rpc.answers import messages_of
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Cancellation, Item, Multiplexer, StreamLimits
from dst_grpc.rpc.ports import PipelinePort, Stage
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.codec import read_request
from dst_grpc.wire.durations import seconds_from_wire
from dst_grpc.wire.envelope import Envelope
from dst_grpc.wire.frames import FrameCutter, PartCutter, error_frame, resolve_frames

T = TypeVar("T")
Messages = AsyncGenerator[bytes, None]

_SERVICE = "/dst.v1.DerivedScalarService"


class DerivedScalarService:
    """Resolves, derives and explains."""

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, limits: StreamLimits, drain: DrainSignal) -> None:
        """Serve *pipeline*, with the store of callers' *tensors*, and *limits* for each stream."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._limits = limits
        self._drain = drain

    def Resolve(self, request: resolution_pb2.ResolveRequest, context: ObservedContext) -> Messages:
        """Check, complete and cost one request."""
        caller = context.caller
        asked, known = _read(ResolveRequest, request)
        stages = self._pipeline.resolve(asked, known, tensors=self._tensors.of(caller.name), caller=caller)
        steps = _steps_of(stages, loads=asked.load)
        return messages_of(steps, resolve_frames, Envelope(asked.request.request_id))

    def Derive(self, request: inference_pb2.DeriveRequest, context: ObservedContext) -> Messages:
        """Run one prompt."""
        caller = context.caller
        asked, known = _read(DeriveRequest, request)
        steps = self._pipeline.derive(asked, known, tensors=self._tensors.of(caller.name), caller=caller)
        return derived(steps, asked)

    def TopK(self, request: explain_pb2.TopKRequest, context: ObservedContext) -> Messages:
        """Select nodes."""
        caller = context.caller
        asked, known = _read(TopKRequest, request)
        steps = self._pipeline.top_k(asked, known, tensors=self._tensors.of(caller.name), caller=caller)
        return messages_of(steps, PartCutter(explain_pb2.TopKFrame).cut, Envelope(asked.request_id))

    def Explain(self, request: explain_pb2.ExplainRequest, context: ObservedContext) -> Messages:
        """Explain runs."""
        caller = context.caller
        asked, known = _read(ExplainRequest, request)
        steps = self._pipeline.explain(asked, known, tensors=self._tensors.of(caller.name), caller=caller)
        return messages_of(steps, PartCutter(explain_pb2.ExplainFrame).cut, Envelope(asked.request_id))

    async def ResolveStream(
        self, messages: AsyncIterator[resolution_pb2.ResolveStreamRequest], context: ObservedContext
    ) -> None:
        """Resolve for many requests."""
        items = ResolveItems(self._pipeline, self._tensors, context.caller)
        await Multiplexer(items, self._limits, self._drain, context.outbox).run(messages)

    async def DeriveStream(
        self, messages: AsyncIterator[inference_pb2.DeriveStreamRequest], context: ObservedContext
    ) -> None:
        """Derive for many requests."""
        items = DeriveItems(self._pipeline, self._tensors, context.caller)
        await Multiplexer(items, self._limits, self._drain, context.outbox).run(messages)


def _read(cls: type[T], message: Message) -> tuple[T, Violations | None]:
    """The request in *message*, with stand-ins for bad fields, and the violations; None if there are none.

    Raises:
        InvalidRequest: Nothing of it is usable.
    """
    value, found = read_request(cls, message)
    if value is None:
        raise found.error()
    return value, found if found.count else None


def derived(steps: AsyncGenerator[Sequence[Any], None], request: DeriveRequest, *, item_index: int = 0) -> Messages:
    """The messages that answer *request*, in chunks of the size that it asks for."""
    envelope = Envelope(request.request_id, item_index=item_index, max_chunk_bytes=request.max_chunk_bytes)
    return messages_of(steps, FrameCutter(chunk_bytes=envelope.chunk_bytes).cut, envelope)


async def _steps_of(stages: AsyncGenerator[Stage, None], *, loads: bool) -> AsyncGenerator[Sequence[Stage], None]:
    """The stages one by one or, where nothing is loaded between them, together."""
    async with aclosing(stages):
        if not loads:
            yield [stage async for stage in stages]
            return
        async for stage in stages:
            yield (stage,)


class DeriveItems:
    """The items of DeriveStream."""

    method = f"{_SERVICE}/DeriveStream"
    id_path = "request.request_id"

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, caller: Caller) -> None:
        """Run items of *caller* on *pipeline*, with its *tensors*."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._caller = caller

    def read(self, message: inference_pb2.DeriveStreamRequest) -> Item | Cancellation:
        """The item or cancellation in *message*."""
        if message.HasField("cancel"):
            return Cancellation(message.cancel.request_id)
        seconds = seconds_from_wire(message.timeout)
        return Item(
            request_id=message.request.request_id,
            answers=lambda index: self._answers(message, index),
            problems=lambda: read_request(DeriveStreamRequest, message)[1],
            timeout_seconds=seconds if seconds > 0 else None,  # absent or bad, which reading the rest will report
        )

    async def _answers(self, message: inference_pb2.DeriveStreamRequest, index: int) -> Messages:
        """Derive one request."""
        item, known = _read(DeriveStreamRequest, message)
        asked = cast("DeriveRequest", item.message)  # a cancellation is not an item
        tensors = self._tensors.of(self._caller.name)
        steps = self._pipeline.derive(asked, known, root="request", tensors=tensors, caller=self._caller)
        async with aclosing(derived(steps, asked, item_index=index)) as messages:
            async for each in messages:
                yield each

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(inference_pb2.DeriveFrame, item_index, request_id, error)


class ResolveItems:
    """The items of ResolveStream."""

    method = f"{_SERVICE}/ResolveStream"
    id_path = "request.request.request_id"

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, caller: Caller) -> None:
        """Resolve items of *caller* on *pipeline*, with the *tensors* that it put."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._caller = caller

    def read(self, message: resolution_pb2.ResolveStreamRequest) -> Item:
        """The item or cancellation in *message*."""
        return Item(
            request_id=message.request.request.request_id,
            answers=lambda index: self._answers(message, index),
            problems=lambda: read_request(ResolveStreamRequest, message)[1],
        )

    async def _answers(self, message: resolution_pb2.ResolveStreamRequest, index: int) -> Messages:
        """Resolve one request."""
        item, known = _read(ResolveStreamRequest, message)
        tensors = self._tensors.of(self._caller.name)
        stages = self._pipeline.resolve(item.message, known, root="request", tensors=tensors, caller=self._caller)
        steps = _steps_of(stages, loads=item.message.load)
        envelope = Envelope(item.message.request.request_id, item_index=index)
        async with aclosing(messages_of(steps, resolve_frames, envelope)) as messages:
            async for each in messages:
                yield each

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(resolution_pb2.ResolveFrame, item_index, request_id, error)


def _failed(
    frame_class: type[inference_pb2.DeriveFrame | resolution_pb2.ResolveFrame],
    item_index: int,
    request_id: str,
    error: DstError,
) -> bytes:
    """The last message of an item that failed, perhaps because of its id."""
    envelope = Envelope(request_id[:MAX_REQUEST_ID_CHARACTERS], item_index=item_index)
    (message,) = envelope.pack([error_frame(frame_class, error)])
    return message
