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
from dst_grpc.domain.callers import Caller, Priority
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.requests import (
    MAX_REQUEST_ID_CHARACTERS,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.urgency import WHENEVER, Urgency
from dst_grpc.errors import DstError, InvalidRequest, Violations
from dst_grpc.rpc.answers import Messages, answers_of, frames_of, messages_of, urgency_of
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
            stages = self._pipeline.resolve(asked, known, tensors=self._tensors.of(caller.name), caller=caller)
            return resolved(stages, asked, self._reading.threads)

        caller = context.caller
        return answers_of(self._reading, ResolveRequest, request, answers)

    def Derive(self, request: inference_pb2.DeriveRequest, context: ObservedContext) -> Messages:
        """Run one prompt."""

        def answers(asked: DeriveRequest, known: Violations | None) -> Messages:
            steps = self._pipeline.derive(
                asked,
                known,
                tensors=self._tensors.of(caller.name),
                caller=caller,
                urgency=urgency,
                request_bytes=request.ByteSize(),
            )
            return derived(steps, asked, self._reading.threads)

        caller, urgency = context.caller, urgency_of(context)
        return answers_of(self._reading, DeriveRequest, request, answers)

    def TopK(self, request: explain_pb2.TopKRequest, context: ObservedContext) -> Messages:
        """Select nodes."""
        run = partial(self._pipeline.top_k, tensors=self._tensors.of(context.caller.name))
        return frames_of(self._reading, TopKRequest, request, context, run, PartCutter(explain_pb2.TopKFrame).cut)

    def Explain(self, request: explain_pb2.ExplainRequest, context: ObservedContext) -> Messages:
        """Explain runs."""
        run = partial(self._pipeline.explain, tensors=self._tensors.of(context.caller.name))
        return frames_of(self._reading, ExplainRequest, request, context, run, PartCutter(explain_pb2.ExplainFrame).cut)

    async def ResolveStream(
        self, messages: RequestStream[resolution_pb2.ResolveStreamRequest], context: ObservedContext
    ) -> None:
        """Resolve for many requests."""
        items = ResolveItems(self._pipeline, self._tensors, context.caller, self._reading)
        await Multiplexer(items, self._limits, self._drain, context.outbox).run(messages.items())

    async def DeriveStream(
        self, messages: RequestStream[inference_pb2.DeriveStreamRequest], context: ObservedContext
    ) -> None:
        """Derive for many requests."""
        items = DeriveItems(self._pipeline, self._tensors, context.caller, self._reading, urgency_of(context))
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

    def __init__(
        self,
        pipeline: PipelinePort,
        tensors: TensorStore,
        caller: Caller,
        reading: Reading,
        urgency: Urgency = WHENEVER,
    ) -> None:
        """Run items of *caller*, read by *reading*, on *pipeline*, with the caller's *tensors*, in a call of this
        *urgency*."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._caller = caller
        self._reading = reading
        self._of_call = urgency

    def read(self, message: inference_pb2.DeriveStreamRequest | Refused) -> Item | Cancellation:
        """The item or cancellation in *message*."""
        if isinstance(message, Refused):
            return _refused(message, inference_pb2.DeriveStreamRequest, self.id_path)
        if message.HasField("cancel"):
            return Cancellation(message.cancel.request_id)
        seconds = seconds_from_wire(message.timeout)
        derive = partial(self._derive, self._urgency(seconds), message.ByteSize())
        return Item(
            request_id=message.request.request_id,
            answers=lambda index: answers_of(self._reading, DeriveStreamRequest, message, partial(derive, index)),
            problems=lambda: self._reading.violations(DeriveStreamRequest, message),
            timeout_seconds=seconds if seconds > 0 else None,  # absent or bad, which reading the rest will report
        )

    def _urgency(self, timeout_seconds: float) -> Urgency:
        """Of an item that arrives now, with this timeout; 0 for none."""
        deadline = self._of_call.deadline
        if timeout_seconds > 0:
            deadline = min(deadline or math.inf, time.monotonic() + timeout_seconds)
        return replace(self._of_call, priority=Priority.BATCH, deadline=deadline)

    def _derive(
        self, urgency: Urgency, request_bytes: int, index: int, item: DeriveStreamRequest, known: Violations | None
    ) -> Messages:
        """Derive one request."""
        asked = cast("DeriveRequest", item.message)  # a cancellation is not an item
        steps = self._pipeline.derive(
            asked,
            known,
            root="request",
            tensors=self._tensors.of(self._caller.name),
            caller=self._caller,
            urgency=urgency,
            request_bytes=request_bytes,
        )
        return derived(steps, asked, self._reading.threads, item_index=index)

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(inference_pb2.DeriveFrame, item_index, request_id, error)


class ResolveItems:
    """The items of ResolveStream."""

    method = f"{_SERVICE}/ResolveStream"
    id_path = "request.request.request_id"

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, caller: Caller, reading: Reading) -> None:
        """Resolve items of *caller*, read by *reading*, on *pipeline*, with the *tensors* that it put."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._caller = caller
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
        tensors = self._tensors.of(self._caller.name)
        stages = self._pipeline.resolve(item.message, known, root="request", tensors=tensors, caller=self._caller)
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
