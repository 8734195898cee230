"""DerivedScalarService: forwards requests to the pipeline, and its answers as messages of frames."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import cast

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
from dst_grpc.domain.resolution import Validated
from dst_grpc.domain.sender import Sender
from dst_grpc.errors import DstError, InvalidRequest, Violations
from dst_grpc.observability.calls import ItemInfo
from dst_grpc.rpc.answers import Answer, Messages, answers_of, frames_of, made, messages_of, sender_of
from dst_grpc.rpc.calls import ObservedContext, of_bytes
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Cancellation, Item, Multiplexer, StreamLimits
from dst_grpc.rpc.ports import PipelinePort, Stage
from dst_grpc.rpc.reading import Reading, Received, Refused, RequestStream
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.durations import seconds_from_wire
from dst_grpc.wire.envelope import CHUNK_BYTES, Envelope
from dst_grpc.wire.frames import FrameCutter, PartCutter, error_frame
from dst_grpc.wire.parsing import text_at
from dst_grpc.wire.stages import ResolutionWriter, resolve_frames

_SERVICE = "/dst.v1.DerivedScalarService"


class DerivedScalarService:
    """Resolves, derives and explains."""

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore, limits: StreamLimits, drain: DrainSignal) -> None:
        """Serve *pipeline*, with the store of callers' *tensors*, and *limits* for each stream."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._limits = limits
        self._drain = drain
        self._reading = Reading(pipeline.waiting)
        self._answers = Answers(pipeline, self._reading.threads)

    @of_bytes
    async def Resolve(self, data: bytes, context: ObservedContext) -> Answer:
        """Check, complete and cost one request."""
        sender = sender_of(context, self._tensors, data)
        asked, known = await self._reading.request(ResolveRequest, data, sender.caller)
        return await self._answers.resolved(asked, known, sender)

    @of_bytes
    async def Derive(self, data: bytes, context: ObservedContext) -> Answer:
        """Run one prompt."""
        sender = sender_of(context, self._tensors, data)
        asked, known = await self._reading.request(DeriveRequest, data, sender.caller)
        return await self._answers.derived(asked, known, sender)

    @of_bytes
    async def TopK(self, data: bytes, context: ObservedContext) -> Messages:
        """Select nodes."""
        cut = PartCutter(explain_pb2.TopKFrame).cut
        return await frames_of(context, data, self._reading, self._tensors, TopKRequest, self._pipeline.top_k, cut)

    @of_bytes
    async def Explain(self, data: bytes, context: ObservedContext) -> Messages:
        """Explain runs."""
        cut = PartCutter(explain_pb2.ExplainFrame).cut
        return await frames_of(context, data, self._reading, self._tensors, ExplainRequest, self._pipeline.explain, cut)

    async def ResolveStream(
        self, messages: RequestStream[resolution_pb2.ResolveStreamRequest], context: ObservedContext
    ) -> None:
        """Resolve for many requests."""
        sender = sender_of(context, self._tensors)
        items = ResolveItems(self._answers, sender, self._reading)
        await Multiplexer(items, self._limits, self._drain, context.outbox, context.info).run(messages.items())

    async def DeriveStream(
        self, messages: RequestStream[inference_pb2.DeriveStreamRequest], context: ObservedContext
    ) -> None:
        """Derive for many requests."""
        sender = sender_of(context, self._tensors)
        items = DeriveItems(self._answers, sender, self._reading)
        await Multiplexer(items, self._limits, self._drain, context.outbox, context.info).run(messages.items())


class Answers:
    """Makes the messages that answer requests."""

    def __init__(self, pipeline: PipelinePort, threads: Threads) -> None:
        """Ask *pipeline*, and make messages of many small pieces on *threads*."""
        self._pipeline, self._threads = pipeline, threads
        self._resolutions = ResolutionWriter()

    async def resolved(
        self, asked: ResolveRequest, known: Violations | None, sender: Sender, *, root: str = "", item_index: int = 0
    ) -> Answer:
        """The answer to *asked*, or to the item of that number."""
        envelope = Envelope(asked.request.request_id, item_index=item_index)
        if asked.load:
            steps = _one_by_one(self._pipeline.resolve(asked, known, root=root, sender=sender))
        else:
            resolution = await self._pipeline.resolution(asked, known, root=root, sender=sender)
            answer = self._resolutions.answer(resolution)
            if answer is not None:
                return envelope.all_around(answer)
            steps = _at_once((Validated(), resolution))
        return messages_of(steps, resolve_frames, envelope, self._threads)

    async def derived(
        self, asked: DeriveRequest, known: Violations | None, sender: Sender, *, root: str = "", item_index: int = 0
    ) -> Answer:
        """The answer to *asked*, or to the item of that number, in chunks of the size that it asks for."""
        envelope = Envelope(asked.request_id, item_index=item_index, max_chunk_bytes=asked.max_chunk_bytes)
        if envelope.chunk_bytes < CHUNK_BYTES:
            steps = self._pipeline.derive(asked, known, root=root, sender=sender)
            return messages_of(steps, FrameCutter(chunk_bytes=envelope.chunk_bytes).cut, envelope, self._threads)
        kept = None if known else self._pipeline.kept_answer(asked, sender=sender)
        if kept is not None:
            return envelope.all_around(kept)
        steps = self._pipeline.derive(asked, known, root=root, sender=sender, make=made)
        return messages_of(steps, FrameCutter().cut, envelope, self._threads)


async def _one_by_one(stages: AsyncGenerator[Stage, None]) -> AsyncGenerator[Sequence[Stage], None]:
    async with aclosing(stages):
        async for stage in stages:
            yield (stage,)


async def _at_once(stages: Sequence[Stage]) -> AsyncGenerator[Sequence[Stage], None]:
    yield stages


class DeriveItems:
    """The items of DeriveStream."""

    method = f"{_SERVICE}/DeriveStream"
    id_path = "request.request_id"

    def __init__(self, answers: Answers, sender: Sender, reading: Reading) -> None:
        """Run items of a call of *sender*, read by *reading*."""
        self._answers = answers
        self._of_call = sender
        self._reading = reading

    def read(self, received: Received[inference_pb2.DeriveStreamRequest] | Refused) -> Item | Cancellation:
        """The item or cancellation in a message."""
        if isinstance(received, Refused):
            return _refused(received, inference_pb2.DeriveStreamRequest, self.id_path)
        message, n_bytes = received
        if message.HasField("cancel"):
            return Cancellation(message.cancel.request_id)
        seconds = seconds_from_wire(message.timeout)
        derive, caller = partial(self._derive, self._sender(seconds, n_bytes)), self._of_call.caller
        return Item(
            request_id=message.request.request_id,
            answers=lambda item: answers_of(
                self._reading, DeriveStreamRequest, received, caller, partial(derive, item)
            ),
            problems=lambda: self._reading.violations(DeriveStreamRequest, *received, caller),
            received_bytes=n_bytes,
            waiting=self._reading.held(n_bytes, caller),
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

    async def _derive(
        self, sender: Sender, item: ItemInfo, request: DeriveStreamRequest, known: Violations | None
    ) -> Answer:
        """Derive one request."""
        asked = cast("DeriveRequest", request.message)  # a cancellation is not an item
        sender = replace(sender, timeline=item.timeline)
        return await self._answers.derived(asked, known, sender, root="request", item_index=item.index)

    def failed(self, item_index: int, request_id: str, error: DstError) -> bytes:
        """The item's last message."""
        return _failed(inference_pb2.DeriveFrame, item_index, request_id, error)


class ResolveItems:
    """The items of ResolveStream."""

    method = f"{_SERVICE}/ResolveStream"
    id_path = "request.request.request_id"

    def __init__(self, answers: Answers, sender: Sender, reading: Reading) -> None:
        """Resolve items of a call of *sender*, read by *reading*."""
        self._answers = answers
        self._sender = sender
        self._reading = reading

    def read(self, received: Received[resolution_pb2.ResolveStreamRequest] | Refused) -> Item:
        """The item in a message."""
        if isinstance(received, Refused):
            return _refused(received, resolution_pb2.ResolveStreamRequest, self.id_path)
        caller = self._sender.caller
        return Item(
            request_id=received.message.request.request.request_id,
            answers=lambda item: answers_of(
                self._reading, ResolveStreamRequest, received, caller, partial(self._resolve, item)
            ),
            problems=lambda: self._reading.violations(ResolveStreamRequest, *received, caller),
            received_bytes=received.n_bytes,
            waiting=self._reading.held(received.n_bytes, caller),
        )

    async def _resolve(self, item: ItemInfo, request: ResolveStreamRequest, known: Violations | None) -> Answer:
        """Resolve one request."""
        sender = replace(self._sender, timeline=item.timeline)
        return await self._answers.resolved(request.message, known, sender, root="request", item_index=item.index)

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

    return Item(
        request_id=request_id,
        answers=lambda _: _failing(refused.error),
        problems=problems,
        received_bytes=len(refused.data),
    )


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
