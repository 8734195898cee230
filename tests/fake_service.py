"""A server that speaks dst.v1 over a real socket and does what a test says, right or wrong; no model, no torch.

For whoever is on the other side: the Python client and the command line.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    catalog_service_pb2,
    circuit_pb2,
    context_service_pb2,
    explain_pb2,
    graph_pb2,
    graph_probe_pb2,
    inference_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_service_pb2,
)
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server
from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceServicer, add_CausalServiceServicer_to_server
from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceServicer, add_ContextServiceServicer_to_server
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import (
    DerivedScalarServiceServicer,
    add_DerivedScalarServiceServicer_to_server,
)
from dst_grpc._gen.dst.v1.graph_service_pb2_grpc import GraphServiceServicer, add_GraphServiceServicer_to_server
from dst_grpc._gen.dst.v1.tensor_service_pb2_grpc import TensorServiceServicer, add_TensorServiceServicer_to_server
from dst_grpc.client._loop import BackgroundLoop
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_probes import GraphFeatureTokens, ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.put_tensors import PutTensor, TensorDescription
from dst_grpc.domain.requests import (
    CancelItem,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.resolution import ContextState, LoadProgress, RegistryChange, Validated
from dst_grpc.domain.results import RunSummary
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.type_info import DerivedScalarTypeInfo
from dst_grpc.errors import Cancelled, DeadlineExceeded, DstError, NotFound, Reason
from dst_grpc.wire.codec import read, to_wire
from dst_grpc.wire.errors import error_to_status
from dst_grpc.wire.frames import ValueCutter, part_to_wire
from dst_grpc.wire.tensors import stored_as
from tests.explanations import parts_of, top_k_parts_of
from tests.fake_answers import AUTOENCODER, SERVER_INFO, context_status, frames_of, model_info, resolution_of
from tests.fake_causal import attribute_parts, circuit_parts, patch_parts
from tests.fake_graphs import KEPT, graph_parts, probe_parts, query_parts
from tests.fake_runs import SUMMARY

N_KEPT_GRAPHS = 3
Script = Callable[[DeriveRequest], AsyncIterator[inference_pb2.DeriveFrame]]


async def never_done(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
    """Begins to answer, and goes no further."""
    yield next(frames_of(request))
    await asyncio.Event().wait()


def once_set(event: threading.Event) -> Script:
    """Answers when the test, which is on another thread, has set *event*."""

    async def answer(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        await asyncio.to_thread(event.wait, 10)
        for frame in frames_of(request):
            yield frame

    return answer


class FakeService(
    DerivedScalarServiceServicer,
    CausalServiceServicer,
    GraphServiceServicer,
    CatalogServiceServicer,
    ContextServiceServicer,
    TensorServiceServicer,
):
    """Answers everything well, except where a test put an error or a script."""

    def __init__(self) -> None:
        self.target = ""
        self.error: DstError | None = None
        """What every call fails with, details included."""
        self.bare: tuple[grpc.StatusCode, str] | None = None
        """What every call fails with, as a proxy would: a code and no details."""
        self.failures_left: int | None = None
        """How many calls fail; None = all."""
        self.derived: DeriveRequest | None = None
        """What Derive was asked last."""
        self.tensors: dict[str, np.ndarray[Any, Any]] = {}
        """What was put, by handle."""
        self.reloaded = [
            RegistryChange(added=("new",), removed=("old",)),
            RegistryChange(removed=("old/mlp",), changed=("tiny",)),
        ]
        """What a reload changes, by message."""
        self.autoencoders = [AUTOENCODER]
        """The autoencoder sets."""
        self.explained: ExplainRequest | None = None
        """What Explain was asked last."""
        self.graph_asked: GraphRequest | None = None
        """What Graph was asked last."""
        self.keeps_graphs = True
        """Whether graphs are kept, unless they shall not be."""
        self.graph_query: QueryGraphRequest | None = None
        """What QueryGraph was asked last."""
        self.graph_probe: ProbeGraphRequest | None = None
        """What ProbeGraph was asked last."""
        self.circuit_asked: CircuitRequest | None = None
        """What Circuit was asked last."""
        self.circuit_has_gap = True
        """Whether the metrics of the whole model and of no edge differ."""
        self.patch_asked: PatchRequest | None = None
        self.attribute_asked: AttributeRequest | None = None
        """What Patch was asked last."""
        self.scripts: dict[str, Script] = {}
        """What to do instead of answering, by prompt text."""
        self.metadata: dict[str, Any] = {}
        """Of the last call."""
        self.routes: list[str] = []
        """The metadata `dst-model` of all calls."""
        self.calls = 0
        self.page_size = 1
        self.started = threading.Event()
        """Set by the first call; the test is on another thread."""
        self.cancelled = threading.Event()
        """Set once a call was cancelled."""
        self.in_flight = self.most_in_flight = 0

    async def _enter(self, context: Any) -> None:
        self.calls += 1
        self.started.set()
        self.metadata = dict(context.invocation_metadata())
        self.routes.append(self.metadata.get("dst-model", ""))
        if self.failures_left == 0:
            return
        if self.failures_left is not None:
            self.failures_left -= 1
        if self.bare is not None:
            await context.abort(*self.bare)
        if self.error is not None:
            await self._abort(context, self.error)

    async def _abort(self, context: Any, error: DstError) -> None:
        status = error_to_status(error)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        await context.abort(code, status.message)

    def _page(self, items: Sequence[Any], token: str) -> tuple[Sequence[Any], str]:
        start = int(token or 0)
        stop = start + self.page_size
        return items[start:stop], str(stop) if stop < len(items) else ""

    async def frames(self, request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        """What to answer."""
        script = self.scripts.get(request.prompt.text or "" if request.prompt else "")
        if script is not None:
            async for frame in script(request):
                yield frame
            return
        for frame in frames_of(request):
            yield frame

    async def Derive(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.DeriveResponse]:
        try:
            await self._enter(context)
            asked = read(DeriveRequest, request)
            self.derived = asked
            async for frame in self.frames(asked):
                if frame.HasField("error"):
                    code = next(c for c in grpc.StatusCode if c.value[0] == frame.error.code)
                    details = frame.error.SerializeToString()
                    context.set_trailing_metadata([("grpc-status-details-bin", details)])
                    await context.abort(code, frame.error.message)
                yield inference_pb2.DeriveResponse(request_id=asked.request_id, frames=[frame])
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def DeriveStream(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[inference_pb2.DeriveStreamResponse]:
        """Answers overtake one another: each is held back until the client says no more, or waits for an answer."""
        try:
            await self._enter(context)
            items = _Items(self)
            reading = asyncio.create_task(items.read_all(request_iterator))
            try:
                while (answered := await items.out.get()) is not None:
                    yield answered
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def Explain(self, request: Any, context: Any) -> AsyncIterator[explain_pb2.ExplainResponse]:
        await self._enter(context)
        self.explained = read(ExplainRequest, request)
        for part in parts_of(self.explained):
            frame = part_to_wire(explain_pb2.ExplainFrame, part)
            yield explain_pb2.ExplainResponse(request_id=request.request_id, frames=[frame])

    async def TopK(self, request: Any, context: Any) -> AsyncIterator[explain_pb2.TopKResponse]:
        await self._enter(context)
        for part in top_k_parts_of(read(TopKRequest, request)):
            frame = part_to_wire(explain_pb2.TopKFrame, part)
            yield explain_pb2.TopKResponse(request_id=request.request_id, frames=[frame])

    async def Circuit(self, request: Any, context: Any) -> AsyncIterator[circuit_pb2.CircuitResponse]:
        await self._enter(context)
        asked = self.circuit_asked = read(CircuitRequest, request)
        parts = circuit_parts(
            len(asked.pairs),
            has_curve=asked.curve is not None,
            has_gap=self.circuit_has_gap,
            orientation=asked.orientation,
            has_latents=asked.latents,
        )
        for frames in self._frames(circuit_pb2.CircuitFrame, parts):
            yield circuit_pb2.CircuitResponse(request_id=request.request_id, frames=frames)

    async def Graph(self, request: Any, context: Any) -> AsyncIterator[graph_pb2.GraphResponse]:
        await self._enter(context)
        self.graph_asked = read(GraphRequest, request)
        parts = graph_parts(is_kept=self.keeps_graphs and self.graph_asked.keep is not False)
        for frames in self._frames(graph_pb2.GraphFrame, [*parts, SUMMARY]):
            yield graph_pb2.GraphResponse(request_id=request.request_id, frames=frames)

    async def QueryGraph(self, request: Any, context: Any) -> AsyncIterator[graph_pb2.QueryGraphResponse]:
        await self._enter(context)
        self.graph_query = read(QueryGraphRequest, request)
        for frames in self._frames(graph_pb2.GraphFrame, [*query_parts(), SUMMARY]):
            yield graph_pb2.QueryGraphResponse(request_id=request.request_id, frames=frames)

    async def ProbeGraph(self, request: Any, context: Any) -> AsyncIterator[graph_probe_pb2.ProbeGraphResponse]:
        await self._enter(context)
        asked = self.graph_probe = read(ProbeGraphRequest, request)
        parts = probe_parts(asked.probe.nodes) if isinstance(asked.probe, GraphFeatureTokens) else probe_parts()
        for frames in self._frames(graph_probe_pb2.GraphProbeFrame, [*parts, SUMMARY]):
            yield graph_probe_pb2.ProbeGraphResponse(request_id=request.request_id, frames=frames)

    async def ListGraphs(self, request: Any, context: Any) -> graph_pb2.ListGraphsResponse:
        await self._enter(context)
        place = int(request.page_token or 0)
        token = str(place + 1) if place < N_KEPT_GRAPHS - 1 else ""
        return graph_pb2.ListGraphsResponse(graphs=[to_wire(KEPT)], next_page_token=token)

    async def DropGraph(self, request: Any, context: Any) -> graph_pb2.DropGraphResponse:
        await self._enter(context)
        if request.graph != KEPT.handle:
            error = NotFound.unknown("graph", request.graph, [], reason=Reason.GRAPH_NOT_FOUND)
            await self._abort(context, error)
        return graph_pb2.DropGraphResponse()

    async def Patch(self, request: Any, context: Any) -> AsyncIterator[patch_pb2.PatchResponse]:
        await self._enter(context)
        asked = self.patch_asked = read(PatchRequest, request)
        parts = patch_parts(len(asked.pairs))
        for frames in self._frames(patch_pb2.PatchFrame, parts):
            yield patch_pb2.PatchResponse(request_id=request.request_id, frames=frames)

    async def Attribute(self, request: Any, context: Any) -> AsyncIterator[attribute_pb2.AttributeResponse]:
        await self._enter(context)
        asked = self.attribute_asked = read(AttributeRequest, request)
        parts = attribute_parts(len(asked.pairs))
        for frames in self._frames(attribute_pb2.AttributeFrame, parts):
            yield attribute_pb2.AttributeResponse(request_id=request.request_id, frames=frames)

    def _frames(self, frame_class: Any, parts: Sequence[Any]) -> Iterator[list[Any]]:
        """The frames of each of *parts*, without the last if that is to be missing."""
        cutter = ValueCutter(frame_class)
        for part in parts:
            if "truncated" not in self.scripts or not isinstance(part, RunSummary):
                yield [frame_class.FromString(b"".join(frame)) for frame in cutter.cut(part)]

    async def Resolve(self, request: Any, context: Any) -> AsyncIterator[resolution_pb2.ResolveResponse]:
        await self._enter(context)
        wanted = read(ResolveRequest, request)
        frames = [resolution_pb2.ResolveFrame(validated=to_wire(Validated()))]
        if wanted.load:
            for done in (0, 500, 1000):
                progress = LoadProgress(context="tiny", bytes_done=done, bytes_total=1000)
                frames.append(resolution_pb2.ResolveFrame(loading=to_wire(progress)))
        if "truncated" not in self.scripts:
            frames.append(resolution_pb2.ResolveFrame(resolved=to_wire(resolution_of(wanted.request))))
        yield resolution_pb2.ResolveResponse(request_id=wanted.request.request_id, frames=frames)

    async def ResolveStream(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[resolution_pb2.ResolveStreamResponse]:
        await self._enter(context)
        index = 0
        async for message in request_iterator:
            wanted = read(ResolveStreamRequest, message).message.request
            if wanted.model == "missing":
                error = NotFound.unknown("model", "missing", ["tiny"], reason=Reason.MODEL_NOT_FOUND)
                frame = resolution_pb2.ResolveFrame(error=error_to_status(error))
            else:
                frame = resolution_pb2.ResolveFrame(resolved=to_wire(resolution_of(wanted)))
            yield resolution_pb2.ResolveStreamResponse(request_id=wanted.request_id, frames=[frame], item_index=index)
            index += 1

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return to_wire(SERVER_INFO)

    async def ListModels(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        models, token = self._page([model_info(name) for name in ("other", "tiny", "zebra")], request.page_token)
        return catalog_service_pb2.ListModelsResponse(models=map(to_wire, models), next_page_token=token)

    async def GetModel(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        if request.name not in {"", "tiny"}:
            error = NotFound.unknown("model", request.name, ["tiny"], reason=Reason.MODEL_NOT_FOUND)
            await self._abort(context, error)
        return catalog_service_pb2.GetModelResponse(model=to_wire(model_info()))

    async def ListAutoencoders(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return catalog_service_pb2.ListAutoencodersResponse(autoencoders=map(to_wire, self.autoencoders))

    async def ListDerivedScalarTypes(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        self.page_size = 60
        dsts, token = self._page(list(DerivedScalarType), request.page_token)
        types = [to_wire(DerivedScalarTypeInfo.of(dst)) for dst in dsts]
        if not token:
            types[-1].dst = 9999  # a type of a server newer than this client
        return catalog_service_pb2.ListDerivedScalarTypesResponse(types=types, next_page_token=token)

    async def Tokenize(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        for i, word in enumerate(request.text.split(" ")):
            yield catalog_service_pb2.TokenizeResponse(token_ids=[i], token_strings=[word])

    async def Detokenize(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        for i, token in enumerate(request.token_ids):
            # As vocabularies that put a space before every text, it takes that off again.
            yield catalog_service_pb2.DetokenizeResponse(
                text=f" w{token}" if i else f"w{token}", token_strings=[f" w{token}"]
            )

    async def PutTensor(self, request_iterator: Any, context: Any) -> Any:
        await self._enter(context)
        description, data = None, b""
        async for message in request_iterator:
            if message.HasField("description"):
                description = read(TensorDescription, message.description)
            else:
                data += message.data
        assert description is not None
        assert len(data) == description.byte_count
        assert description.checksum == zlib.crc32(data)
        values = np.frombuffer(data, stored_as(description.element_type)).reshape(description.sizes)
        handle = f"t{len(self.tensors)}"
        self.tensors[handle] = values
        expire_time = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=description.ttl or 0)
        return to_wire(PutTensor(handle=handle, byte_count=len(data), expire_time=expire_time))

    async def DeleteTensor(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        if self.tensors.pop(request.handle, None) is None:
            error = NotFound.unknown("tensor", request.handle, self.tensors, reason=Reason.TENSOR_NOT_FOUND)
            await self._abort(context, error)
        return tensor_service_pb2.DeleteTensorResponse()

    async def LoadContext(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        for done in (0, 500):
            status = context_status(ContextState.LOADING, done)
            yield context_service_pb2.LoadContextResponse(status=to_wire(status))
        status = replace(context_status(ContextState.AVAILABLE), pinned=request.pin)
        yield context_service_pb2.LoadContextResponse(status=to_wire(status))

    async def UnpinContext(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        status = to_wire(context_status(ContextState.AVAILABLE))
        return context_service_pb2.UnpinContextResponse(status=status)

    async def UnloadContext(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        status = to_wire(context_status(ContextState.NOT_LOADED, 0))
        return context_service_pb2.UnloadContextResponse(status=status)

    async def ListContexts(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        status = to_wire(context_status(ContextState.AVAILABLE))
        return context_service_pb2.ListContextsResponse(contexts=[status])

    async def ReloadRegistry(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        for change in self.reloaded:
            yield to_wire(change)

    async def WatchContexts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        status = context_status(ContextState.AVAILABLE)
        yield context_service_pb2.WatchContextsResponse(status=to_wire(status))
        try:
            await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def check_health(self, request: StringValue, context: Any) -> Int32Value:
        await self._enter(context)
        if request.value not in {"", "dst.v1.CatalogService"}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return Int32Value(value=2 if request.value else 1)


class _Items:
    """The items of one stream."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self._running: dict[str, asyncio.Task[None]] = {}
        self.out: asyncio.Queue[inference_pb2.DeriveStreamResponse | None] = asyncio.Queue()

    async def read_all(self, messages: AsyncIterator[inference_pb2.DeriveStreamRequest]) -> None:
        count = 0
        async with asyncio.TaskGroup() as group:
            async for message in messages:
                item = read(DeriveStreamRequest, message)
                if isinstance(item.message, CancelItem):
                    work = self._running.pop(item.message.request_id, None)
                    if work is not None:
                        work.cancel()
                    continue
                self._service.in_flight += 1
                self._service.most_in_flight = max(self._service.most_in_flight, self._service.in_flight)
                work = group.create_task(self._answer(item.message, item, count))
                self._running[item.message.request_id] = work
                count += 1
        self.out.put_nowait(None)

    async def _answer(self, request: DeriveRequest, item: DeriveStreamRequest, index: int) -> None:
        try:
            async with asyncio.timeout(item.timeout):
                async for frame in self._service.frames(request):
                    self._put(request, frame, index)
        except TimeoutError:
            self._fail(request, DeadlineExceeded("it took too long"), index)
        except asyncio.CancelledError:
            if request.request_id in self._running:
                raise
            self._fail(request, Cancelled("it was cancelled"), index)
        self._service.in_flight -= 1

    def _fail(self, request: DeriveRequest, error: DstError, index: int) -> None:
        self._put(request, inference_pb2.DeriveFrame(error=error_to_status(error)), index)

    def _put(self, request: DeriveRequest, frame: inference_pb2.DeriveFrame, index: int) -> None:
        self.out.put_nowait(
            inference_pb2.DeriveStreamResponse(request_id=request.request_id, frames=[frame], item_index=index)
        )


@contextmanager
def fake_server(credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeService]:
    """A fake service listening on a port of its own, on an event loop of its own."""
    loop = BackgroundLoop()
    service = FakeService()

    async def start() -> grpc.aio.Server:
        server = grpc.aio.server()
        add_DerivedScalarServiceServicer_to_server(service, server)
        add_CausalServiceServicer_to_server(service, server)
        add_GraphServiceServicer_to_server(service, server)
        add_CatalogServiceServicer_to_server(service, server)
        add_ContextServiceServicer_to_server(service, server)
        add_TensorServiceServicer_to_server(service, server)
        check = grpc.unary_unary_rpc_method_handler(
            service.check_health, StringValue.FromString, Int32Value.SerializeToString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),)
        )
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        service.target = f"127.0.0.1:{port}"
        await server.start()
        return server

    server = loop.run(start)
    try:
        yield service
    finally:
        loop.run(server.stop, None)
        loop.close()
