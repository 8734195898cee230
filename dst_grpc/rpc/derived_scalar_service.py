"""DerivedScalarService: forwards requests to the pipeline and cuts its answers into frames. No logic of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Protocol

from dst_grpc._gen.dst.v1 import explain_pb2, inference_pb2, resolution_pb2
from dst_grpc.domain.explanations import ExplanationPart, PartKind, RunsTrailer
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.resolution import LoadProgress, Validated
from dst_grpc.domain.results import RunSummary
from dst_grpc.errors import DstError
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import Multiplexer, StreamLimits
from dst_grpc.rpc.ports import PipelinePort, Stage
from dst_grpc.wire.chunks import serialised
from dst_grpc.wire.errors import error_to_status
from dst_grpc.wire.explain import explain_request_from_wire, top_k_request_from_wire
from dst_grpc.wire.explanations import explain_response_to_wire, top_k_response_to_wire
from dst_grpc.wire.frames import CHUNK_BYTES, FrameCutter
from dst_grpc.wire.requests import (
    derive_request_from_wire,
    derive_stream_request_from_wire,
    resolve_request_from_wire,
    resolve_stream_request_from_wire,
)
from dst_grpc.wire.resolution import load_progress_to_wire, resolution_to_wire, validated_to_wire

_SERVICE = "/dst.v1.DerivedScalarService"


class _Writer(Protocol):
    """What a stream is answered through."""

    @property
    def write(self) -> Callable[[bytes], Awaitable[None]]:
        """Sends one response; waits while the client does not read."""


class DerivedScalarService:
    """Resolves and derives."""

    def __init__(self, pipeline: PipelinePort, limits: StreamLimits, drain: DrainSignal) -> None:
        """Serve *pipeline*, holding each stream to *limits*."""
        self._pipeline = pipeline
        self._limits = limits
        self._drain = drain

    async def Resolve(
        self, request: resolution_pb2.ResolveRequest, _context: object
    ) -> AsyncGenerator[resolution_pb2.ResolveResponse, None]:
        """Check, complete and cost one request."""
        async with aclosing(self._pipeline.resolve(resolve_request_from_wire(request))) as stages:
            async for stage in stages:
                yield _resolve_response(stage)

    async def Derive(self, request: inference_pb2.DeriveRequest, _context: object) -> AsyncGenerator[bytes, None]:
        """Run one prompt."""
        async with aclosing(derived_frames(self._pipeline, derive_request_from_wire(request))) as frames:
            async for frame in frames:
                yield frame

    async def TopK(
        self, request: explain_pb2.TopKRequest, _context: object
    ) -> AsyncGenerator[explain_pb2.TopKResponse, None]:
        """Choose nodes."""
        asked = top_k_request_from_wire(request)
        async with aclosing(with_trailer(self._pipeline.top_k(asked), asked.request_id)) as parts:
            async for part in parts:
                yield top_k_response_to_wire(part)

    async def Explain(
        self, request: explain_pb2.ExplainRequest, _context: object
    ) -> AsyncGenerator[explain_pb2.ExplainResponse, None]:
        """Explain what a model said."""
        asked = explain_request_from_wire(request)
        async with aclosing(with_trailer(self._pipeline.explain(asked), asked.request_id)) as parts:
            async for part in parts:
                yield explain_response_to_wire(part)

    async def ResolveStream(
        self, requests: AsyncIterator[resolution_pb2.ResolveStreamRequest], context: _Writer
    ) -> None:
        """Resolve for many requests."""
        await Multiplexer(ResolveItems(self._pipeline), self._limits, self._drain).run(requests, context.write)

    async def DeriveStream(self, requests: AsyncIterator[inference_pb2.DeriveStreamRequest], context: _Writer) -> None:
        """Derive for many requests."""
        await Multiplexer(DeriveItems(self._pipeline), self._limits, self._drain).run(requests, context.write)


async def with_trailer(
    steps: AsyncGenerator[Sequence[ExplanationPart | RunSummary], None], request_id: str
) -> AsyncGenerator[ExplanationPart, None]:
    """The parts of an answer, with its summary as a trailer that counts them."""
    count = 0
    async with aclosing(steps):
        async for ready in steps:
            for part in ready:
                count += 1
                if isinstance(part, ExplanationPart):
                    yield part
                else:
                    trailer = RunsTrailer(frame_count=count, statistics=part.statistics, provenance=part.provenance)
                    yield ExplanationPart(kind=PartKind.TRAILER, value=trailer, request_id=request_id)


async def derived_frames(pipeline: PipelinePort, request: DeriveRequest) -> AsyncGenerator[bytes, None]:
    """The answer to *request*, one serialised DeriveResponse after the other, no further than they are taken.

    A DeriveStreamResponse is the same on the wire, so both RPCs send these bytes.
    """
    cutter = FrameCutter(request.request_id)
    async with aclosing(pipeline.derive(request)) as steps:
        async for ready in steps:
            message: list[bytes] = []
            size = 0
            for piece in chain.from_iterable(map(cutter.pieces, ready)):
                frame = serialised(piece)
                if message and size + len(frame) > CHUNK_BYTES:
                    yield b"".join(message)
                    message, size = [], 0
                message.append(frame)
                size += len(frame)
            if message:
                yield b"".join(message)


class DeriveItems:
    """The items of DeriveStream."""

    method = f"{_SERVICE}/DeriveStream"

    def __init__(self, pipeline: PipelinePort) -> None:
        """Run items on *pipeline*."""
        self._pipeline = pipeline

    def request_id(self, message: inference_pb2.DeriveStreamRequest) -> str:
        """The id of the request within."""
        return message.request.request_id

    async def run(self, message: inference_pb2.DeriveStreamRequest) -> AsyncGenerator[bytes, None]:
        """Derive one request."""
        async with aclosing(derived_frames(self._pipeline, derive_stream_request_from_wire(message))) as frames:
            async for frame in frames:
                yield frame

    def failed(self, request_id: str, error: DstError) -> bytes:
        """The item's last frame."""
        result = inference_pb2.ItemResult(error=error_to_status(error))
        frame = inference_pb2.Frame(request_id=request_id, item_result=result)
        return inference_pb2.DeriveStreamResponse(frames=[frame]).SerializeToString()


class ResolveItems:
    """The items of ResolveStream."""

    method = f"{_SERVICE}/ResolveStream"

    def __init__(self, pipeline: PipelinePort) -> None:
        """Run items on *pipeline*."""
        self._pipeline = pipeline

    def request_id(self, message: resolution_pb2.ResolveStreamRequest) -> str:
        """The id of the request within."""
        return message.request.request.request_id

    async def run(self, message: resolution_pb2.ResolveStreamRequest) -> AsyncGenerator[bytes, None]:
        """Resolve one request."""
        request_id = self.request_id(message)
        async with aclosing(self._pipeline.resolve(resolve_stream_request_from_wire(message))) as stages:
            async for stage in stages:
                yield _resolve_stream_response(request_id, stage).SerializeToString()

    def failed(self, request_id: str, error: DstError) -> bytes:
        """The item's last answer."""
        answer = resolution_pb2.ResolveStreamResponse(request_id=request_id, error=error_to_status(error))
        return answer.SerializeToString()


def _resolve_response(stage: Stage) -> resolution_pb2.ResolveResponse:
    if isinstance(stage, Validated):
        return resolution_pb2.ResolveResponse(validated=validated_to_wire(stage))
    if isinstance(stage, LoadProgress):
        return resolution_pb2.ResolveResponse(loading=load_progress_to_wire(stage))
    return resolution_pb2.ResolveResponse(resolved=resolution_to_wire(stage))


def _resolve_stream_response(request_id: str, stage: Stage) -> resolution_pb2.ResolveStreamResponse:
    answer = resolution_pb2.ResolveStreamResponse(request_id=request_id)
    plain = _resolve_response(stage)
    kind = plain.WhichOneof("stage")
    if kind is not None:
        getattr(answer, kind).CopyFrom(getattr(plain, kind))
    return answer
