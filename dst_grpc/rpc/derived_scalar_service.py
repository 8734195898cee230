"""DerivedScalarService: forwards requests to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import explain_pb2, inference_pb2, resolution_pb2
from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import Priority
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.requests import (
    MAX_REQUEST_ID_CHARACTERS,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.sender import Sender
from dst_grpc.errors import DstError, InvalidRequest, Violations
from dst_grpc.rpc.answers import Messages, answers_of, frames_of, messages_of, sender_of
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Cancellation, Item, Multiplexer, StreamLimits
from dst_grpc.rpc.ports import PipelinePort, Stage
from dst_grpc.rpc.reading import Reading, Refused, RequestStream
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.durations import seconds_from_wire
from dst_grpc.wire.envelope import Envelope
from dst_grpc.wire.frames import FrameCutter, PartCutter, error_frame, resolve_frames
from dst_grpc.wire.parsing import text_at

T = TypeVar("T")

_SERVICE = "/dst.v1.DerivedScalarService"


class DerivedScalarService:
    """Resolves, derives and explains."""

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, limits: StreamLimits, drain: DrainSignal) -> None:
        """Serve *pipeline*, with the store of callers' *tensors*, and *limits* for each stream."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._limits = limits
        self._drain = drain
        self._reading = Reading()

    def Resolve(self, request: resolution_pb2.ResolveRequest, context: ObservedContext) -> Messages:
        """Check, complete and cost one request."""

        def answers(asked: ResolveRequest, known: Violations | None) -> Messages:
            return resolved(self._pipeline.resolve(asked, known, sender=sender), asked, self._reading.threads)

        sender = sender_of(context, self._tensors, request)
        return answers_of(self._reading, ResolveRequest, request, answers)

    def Derive(self, request: inference_pb2.DeriveRequest, context: ObservedContext) -> Messages:
        """Run one prompt."""

        def answers(asked: DeriveRequest, known: Violations | None) -> Messages:
            return derived(self._pipeline.derive(asked, known, sender=sender), asked, self._reading.threads)

        sender = sender_of(context, self._tensors, request)
        return answers_of(self._reading, DeriveRequest, request, answers)

    def TopK(self, request: explain_pb2.TopKRequest, context: ObservedContext) -> Messages:
        """Select nodes."""
        sender, cut = sender_of(context, self._tensors, request), PartCutter(explain_pb2.TopKFrame).cut
        return frames_of(self._reading, TopKRequest, request, sender, self._pipeline.top_k, cut)

    def Explain(self, request: explain_pb2.ExplainRequest, context: ObservedContext) -> Messages:
        """Explain runs."""
        sender, cut = sender_of(context, self._tensors, request), PartCutter(explain_pb2.ExplainFrame).cut
        return frames_of(self._reading, ExplainRequest, request, sender, self._pipeline.explain, cut)

    async def ResolveStream(
        self, messages: RequestStream[resolution_pb2.ResolveStreamRequest], context: ObservedContext
    ) -> None:
        """Resolve for many requests."""
        sender = sender_of(context, self._tensors)
        items = ResolveItems(self._pipeline, sender, self._reading)
        await Multiplexer(items, self._limits, self._drain, context.outbox).run(messages.items())

    async def DeriveStream(
        self, messages: RequestStream[inference_pb2.DeriveStreamRequest], context: ObservedContext
    ) -> None:
        """Derive for many requests."""
        sender = sender_of(context, self._tensors)
        items = DeriveItems(self._pipeline, sender, self._reading)
        await Multiplexer(items, self._limits, self._drain, context.outbox).run(messages.items())


def resolved(
    stages: AsyncGenerator[Stage, None], request: ResolveRequest, threads: Threads, *, item_index: int = 0
) -> Messages:
    """The messages that answer *request*."""
    envelope = Envelope(request.request.request_id, item_index=item_index)
    return messages_of(_steps_of(stages, loads=request.load), resolve_frames, envelope, threads)


def derived(
    steps: AsyncGenerator[Sequence[Any], None], request: DeriveRequest, threads: Threads, *, item_index: int = 0
) -> Messages:
    """The messages that answer *request*, in chunks of the size that it asks for."""
    envelope = Envelope(request.request_id, item_index=item_index, max_chunk_bytes=request.max_chunk_bytes)
    return messages_of(steps, FrameCutter(chunk_bytes=envelope.chunk_bytes).cut, envelope, threads)


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

    def __init__(self, pipeline: PipelinePort, sender: Sender, reading: Reading) -> None:
        """Run items of a call of *sender*, read by *reading*, on *pipeline*."""
        self._pipeline = pipeline
        self._of_call = sender
        self._reading = reading

    def read(self, message: inference_pb2.DeriveStreamRequest | Refused) -> Item | Cancellation:
        """The item or cancellation in *message*."""
        if isinstance(message, Refused):
            return _refused(message, inference_pb2.DeriveStreamRequest, self.id_path)
        if message.HasField("cancel"):
            return Cancellation(message.cancel.request_id)
        seconds = seconds_from_wire(message.timeout)
        derive = partial(self._derive, self._sender(seconds, message.ByteSize()))
        return Item(
            request_id=message.request.request_id,
            answers=lambda index: answers_of(self._reading, DeriveStreamRequest, message, partial(derive, index)),
            problems=lambda: self._reading.violations(DeriveStreamRequest, message),
            timeout_seconds=seconds if seconds > 0 else None,  # absent or bad, which reading the rest will report
        )

    def _sender(self, timeout_seconds: float, request_bytes: int) -> Sender:
        """Of an item that arrives now, with this timeout; 0 for none."""
        urgency = self._of_call.urgency
        deadline = urgency.deadline
        if timeout_seconds > 0:
            deadline = min(deadline or math.inf, time.monotonic() + timeout_seconds)
        urgency = replace(urgency, priority=Priority.BATCH, deadline=deadline)
        return replace(self._of_call, urgency=urgency, request_bytes=request_bytes)

    def _derive(self, sender: Sender, index: int, item: DeriveStreamRequest, known: Violations | None) -> Messages:
        """Derive one request."""
        asked = cast("DeriveRequest", item.message)  # a cancellation is not an item
        steps = self._pipeline.derive(asked, known, root="request", sender=sender)
        return derived(steps, asked, self._reading.threads, item_index=index)

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(inference_pb2.DeriveFrame, item_index, request_id, error)


class ResolveItems:
    """The items of ResolveStream."""

    method = f"{_SERVICE}/ResolveStream"
    id_path = "request.request.request_id"

    def __init__(self, pipeline: PipelinePort, sender: Sender, reading: Reading) -> None:
        """Resolve items of a call of *sender*, read by *reading*, on *pipeline*."""
        self._pipeline = pipeline
        self._sender = sender
        self._reading = reading

    def read(self, message: resolution_pb2.ResolveStreamRequest | Refused) -> Item:
        """The item in *message*."""
        if isinstance(message, Refused):
            return _refused(message, resolution_pb2.ResolveStreamRequest, self.id_path)
        return Item(
            request_id=message.request.request.request_id,
            answers=lambda index: answers_of(
                self._reading, ResolveStreamRequest, message, partial(self._resolve, index)
            ),
            problems=lambda: self._reading.violations(ResolveStreamRequest, message),
        )

    def _resolve(self, index: int, item: ResolveStreamRequest, known: Violations | None) -> Messages:
        """Resolve one request."""
        stages = self._pipeline.resolve(item.message, known, root="request", sender=self._sender)
        return resolved(stages, item.message, self._reading.threads, item_index=index)

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(resolution_pb2.ResolveFrame, item_index, request_id, error)


def _refused(refused: Refused, message_type: type[Message], id_path: str) -> Item:
    """The item in a message that is refused; raises its error if not even that can be told."""
    request_id = text_at(message_type, refused.data, id_path)
    if request_id is None:
        raise refused.error

    async def problems() -> Violations:
        if not isinstance(refused.error, InvalidRequest):
            raise refused.error
        found = Violations()
        found.extend(refused.error)
        return found

    return Item(request_id=request_id, answers=lambda _: _failing(refused.error), problems=problems)


async def _failing(error: DstError) -> Messages:
    """An answer that is nothing but *error*."""
    nothing: Sequence[bytes] = ()
    for message in nothing:
        yield message
    raise error


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
