"""GraphService: attribution graphs, and questions about those that the server keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias, TypedDict, Unpack

from dst_grpc._gen.dst.v1 import graph_pb2 as pb
from dst_grpc._gen.dst.v1.graph_service_pb2_grpc import GraphServiceStub
from dst_grpc.client._calls import Calls, pages
from dst_grpc.client._given import given
from dst_grpc.client._graph_requests import (
    GraphArguments,
    make_edge_query,
    make_graph_request,
    make_neighbours,
    make_node_filter,
    make_path_query,
    make_pruning,
)
from dst_grpc.client._graph_views import GraphView
from dst_grpc.client._graphs import GraphAnswer, GraphCollector, GraphPartReader, GraphViewCollector
from dst_grpc.client._inference import answer_of
from dst_grpc.client._requests import PromptLike
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_answers import GraphPart, GraphProgress, KeptGraph
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.graph_queries import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_PATHS,
    GraphEdgeDirection,
    GraphQuestion,
    QueryGraphRequest,
)
from dst_grpc.errors import InvalidRequest
from dst_grpc.wire.codec import read_answer, to_wire

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.graph_service_pb2_grpc import GraphServiceAsyncStub

GraphLike: TypeAlias = str | KeptGraph | GraphAnswer
"""A kept graph: its handle, what is told of it, or the answer that it came with."""


class NodeFilterArguments(TypedDict, total=False):
    """Restrictions of the nodes that a question considers, besides those that it names."""

    layers: Iterable[SupportsIndex]
    """Features, neurons, heads, latents and errors of other layers are left out."""
    tokens: Iterable[SupportsIndex]
    """Nodes at other positions are left out."""
    kinds: Iterable[GraphNodeKind | str]
    """Nodes of other kinds are left out."""


class GraphCalls(Calls):
    """GraphService."""

    @cached_property
    def _graph_stub(self) -> GraphServiceAsyncStub:
        return GraphServiceStub(self._channel)

    async def graph(
        self,
        prompt: PromptLike,
        transcoders: str | None = None,
        *,
        on_progress: Callable[[GraphProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[GraphArguments],
    ) -> GraphAnswer:
        """Compute the attribution graph of a prompt: which features, tokens and errors act on which, and on the logits;
        or neurons, heads and latents of autoencoders in place of features, or beside them.

        Args:
            prompt: A text, token ids, or a Prompt.
            transcoders: Name or handle of a set of transcoders, or of cross-layer transcoders; None = the model's only
                one.
            on_progress: Called with how far the work is; by a sync client, on another thread.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *sources*: `features` of transcoders, `neurons`, `heads`, `latents` of *autoencoders*, or
                several. *targets*: tokens, as texts or ids, instead of the most probable ones; *directions*: vectors by
                name. *max_feature_nodes*: how many of these sources may be nodes. *node_threshold*, *edge_threshold*:
                what pruning keeps. *edges*: `pruned`, `whole` or `none`. *keep*: whether the server keeps the graph.
                See GraphArguments.

        Returns:
            The answer: `answer.nodes`, `answer.top(10)`, `answer.neighbours("logit:464")`,
            `answer.paths("t5", "logit:464")`, `answer.adjacency`, `answer.handle`.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            Exhausted: If the graph needs more memory than it may have; it says how much.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        request = make_graph_request(prompt, transcoders, **arguments)
        return await self.graph_request(request, on_progress=on_progress, timeout=timeout)

    async def graph_request(
        self,
        request: GraphRequest,
        *,
        on_progress: Callable[[GraphProgress], None] | None = None,
        timeout: float | None = None,
    ) -> GraphAnswer:
        """Answer one request of Graph; see `graph`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._graph_stub.Graph, to_wire(request), timeout)
        answer = await answer_of(responses, GraphCollector(request.request_id, on_progress))
        if answer.handle is not None:
            self._models_of_kept[answer.handle] = request.model or ""
        return answer

    async def graph_parts(self, request: GraphRequest, *, timeout: float | None = None) -> AsyncGenerator[GraphPart]:
        """The parts of the answer to one request of Graph, as they come: rows of edges, for example, as they are known.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        reader = GraphPartReader()
        async with aclosing(self._responses(self._graph_stub.Graph, to_wire(request), timeout)) as responses:
            async for response in responses:
                for part in reader.read(response):
                    if isinstance(part.value, KeptGraph):
                        self._models_of_kept[part.value.handle] = request.model or ""
                    yield part

    # Kept graphs

    async def query_graph(self, request: QueryGraphRequest, *, timeout: float | None = None) -> GraphView:
        """Answer one question about a kept graph.

        Raises:
            NotFound: If this caller has no graph of that handle.
            InvalidRequest: If a field is bad, or the graph has no such node.
            DstError: Any other failure of a call.
        """
        message = to_wire(request)
        model = self._models_of_kept.get(message.graph)
        responses = self._responses(self._graph_stub.QueryGraph, message, timeout, model=model)
        return await answer_of(responses, GraphViewCollector())

    async def graph_neighbours(
        self,
        graph: GraphLike,
        node: str,
        k: int = DEFAULT_NEIGHBOURS,
        *,
        direction: GraphEdgeDirection | str = GraphEdgeDirection.BOTH,
        timeout: float | None = None,
        **restrictions: Unpack[NodeFilterArguments],
    ) -> GraphView:
        """The *k* edges of a node of a kept graph that have the largest magnitude, in each *direction*.

        The arguments are those of `GraphView.neighbours`; raises as `query_graph`.
        """
        return await self._asked(graph, make_neighbours(node, k, direction), restrictions, timeout)

    async def graph_paths(
        self,
        graph: GraphLike,
        source: str,
        target: str,
        k: int = DEFAULT_PATHS,
        *,
        timeout: float | None = None,
        **restrictions: Unpack[NodeFilterArguments],
    ) -> GraphView:
        """The *k* strongest paths from *source* to *target* in a kept graph, as `found` of what is returned.

        The arguments are those of `GraphView.paths`; raises as `query_graph`.
        """
        return await self._asked(graph, make_path_query(source, target, k), restrictions, timeout)

    async def graph_edges(
        self,
        graph: GraphLike,
        min_weight: float = 0.0,
        *,
        timeout: float | None = None,
        **restrictions: Unpack[NodeFilterArguments],
    ) -> GraphView:
        """All edges of a kept graph of a magnitude of at least *min_weight*.

        The arguments are those of `GraphView.above`; raises as `query_graph`.
        """
        return await self._asked(graph, make_edge_query(min_weight), restrictions, timeout)

    async def prune_graph(
        self,
        graph: GraphLike,
        node_threshold: float,
        edge_threshold: float,
        *,
        timeout: float | None = None,
        **restrictions: Unpack[NodeFilterArguments],
    ) -> GraphView:
        """What other thresholds leave of a kept graph: the nodes and edges that are left.

        Args:
            graph: The graph.
            node_threshold: The share of all influence that the nodes have together that are kept.
            edge_threshold: The same of edges.
            timeout: Seconds; None = no limit.
            **restrictions: Which of the nodes are sent; see NodeFilterArguments.

        Raises:
            DstError: As `query_graph`.
        """
        return await self._asked(graph, make_pruning(node_threshold, edge_threshold), restrictions, timeout)

    async def graphs(self, *, model: str | None = None, timeout: float | None = None) -> list[KeptGraph]:
        """The graphs that the server keeps for this caller, by handle.

        Args:
            model: Behind a proxy with several servers: those of the server that answers for this model.
            timeout: Seconds; None = no limit.
        """
        found: list[KeptGraph] = []

        async def page(token: str) -> pb.ListGraphsResponse:
            request = pb.ListGraphsRequest(page_token=token)
            return await self._unary(self._graph_stub.ListGraphs, request, timeout, model=model)

        async for response in pages(page):
            found += [read_answer(KeptGraph, graph) for graph in response.graphs]
        self._models_of_kept |= {graph.handle: model or "" for graph in found}
        return found

    async def drop_graph(self, graph: GraphLike, *, timeout: float | None = None) -> None:
        """Drop a kept graph; questions that are being answered go on.

        Raises:
            NotFound: If this caller has none of that handle.
        """
        handle = handle_of(graph)
        model = self._models_of_kept.pop(handle, None)
        await self._unary(self._graph_stub.DropGraph, pb.DropGraphRequest(graph=handle), timeout, model=model)

    async def _asked(
        self, graph: GraphLike, query: GraphQuestion, restrictions: NodeFilterArguments, timeout: float | None
    ) -> GraphView:
        request = given(
            "", QueryGraphRequest, graph=handle_of(graph), query=query, filter=make_node_filter(**restrictions)
        )
        return await self.query_graph(request, timeout=timeout)


def handle_of(graph: GraphLike) -> str:
    """The handle of a kept graph; raises TypeError if *graph* is none, InvalidRequest if it is not kept."""
    if not isinstance(graph, GraphLike):
        raise TypeError(f"graph must be a handle, a KeptGraph or a GraphAnswer, not {graph!r}")
    handle = graph if isinstance(graph, str) else graph.handle
    if handle is None:
        raise InvalidRequest.of("graph", "is not kept by the server: its answer has no handle")
    return handle
