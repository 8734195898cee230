"""GraphService: forwards requests for graphs, and questions about kept ones, to the pipeline."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import graph_pb2 as pb
from dst_grpc._gen.dst.v1 import graph_probe_pb2 as probe_pb
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_probes import ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.answers import Messages, frames_of, sender_of
from dst_grpc.rpc.calls import ObservedContext, of_bytes
from dst_grpc.rpc.pagination import page_of
from dst_grpc.rpc.ports import PipelinePort
from dst_grpc.rpc.reading import Reading
from dst_grpc.rpc.tensor_store import TensorStore
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.frames import ValueCutter


class GraphService:
    """Computes graphs, and answers questions about them."""

    def __init__(self, pipeline: PipelinePort, tensors: TensorStore) -> None:
        """Serve *pipeline*, with the store of callers' *tensors*."""
        self._pipeline = pipeline
        self._tensors = tensors
        self._reading = Reading(pipeline.waiting)

    @of_bytes
    async def Graph(self, data: bytes, context: ObservedContext) -> Messages:
        """Compute the graph of a prompt."""
        cut = ValueCutter(pb.GraphFrame).cut
        return await frames_of(context, data, self._reading, self._tensors, GraphRequest, self._pipeline.graph, cut)

    @of_bytes
    async def QueryGraph(self, data: bytes, context: ObservedContext) -> Messages:
        """Answer a question about a kept graph."""
        cut = ValueCutter(pb.GraphFrame).cut
        return await frames_of(
            context, data, self._reading, self._tensors, QueryGraphRequest, self._pipeline.query_graph, cut
        )

    @of_bytes
    async def ProbeGraph(self, data: bytes, context: ObservedContext) -> Messages:
        """Ask the model about a kept graph."""
        cut = ValueCutter(probe_pb.GraphProbeFrame).cut
        return await frames_of(
            context, data, self._reading, self._tensors, ProbeGraphRequest, self._pipeline.probe_graph, cut
        )

    async def ListGraphs(self, request: pb.ListGraphsRequest, context: ObservedContext) -> pb.ListGraphsResponse:
        """List the caller's kept graphs."""
        handles = self._pipeline.graph_handles(context.caller)
        page, token = page_of(handles, request, key=str, to_wire=self._described, scope="graphs")
        return pb.ListGraphsResponse(graphs=page, next_page_token=token)

    def _described(self, handle: str) -> pb.KeptGraph:
        described: pb.KeptGraph = to_wire(self._pipeline.kept_graph(handle))
        return described

    async def DropGraph(self, request: pb.DropGraphRequest, context: ObservedContext) -> pb.DropGraphResponse:
        """Drop a kept graph."""
        if not request.graph:
            raise InvalidRequest.of("graph", "is required")
        self._pipeline.drop_graph(request.graph, sender=sender_of(context, self._tensors))
        return pb.DropGraphResponse()
