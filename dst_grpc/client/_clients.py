"""The two clients. The sync client runs the async one on an event loop in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Self

from dst_grpc.client import _loop
from dst_grpc.client._answer import Answer
from dst_grpc.client._attribute import AttributeCalls
from dst_grpc.client._catalog import CatalogCalls
from dst_grpc.client._channel import DEFAULT_TARGET, Connection, Tls
from dst_grpc.client._circuit import CircuitCalls
from dst_grpc.client._contexts import ContextCalls
from dst_grpc.client._explain import ExplainCalls
from dst_grpc.client._graph_probe import GraphProbeCalls
from dst_grpc.client._inference import InferenceCalls
from dst_grpc.client._loop import BackgroundLoop, Blocking, blocking, blocking_iterator
from dst_grpc.client._patch import PatchCalls
from dst_grpc.client._put_tensors import TensorCalls
from dst_grpc.client._streams import DEFAULT_IN_FLIGHT, ItemCancels
from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
from dst_grpc.domain.resolution import Resolution
from dst_grpc.errors import DstError


class AsyncClient(
    InferenceCalls,
    ExplainCalls,
    PatchCalls,
    AttributeCalls,
    CircuitCalls,
    GraphProbeCalls,
    CatalogCalls,
    ContextCalls,
    TensorCalls,
):
    """A client of one server, for one event loop.

    It connects at the first call, and any number of calls may run at once. Use it as an async context manager, or
    `close` it.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | bool = False,
        token: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server.

        Args:
            target: `HOST:PORT`, or any other target that gRPC knows.
            tls: Whether to use TLS; a Tls says whom to trust and with which certificate.
            token: Bearer token, sent with every call; give it over TLS or to this machine only.
            metadata: Further metadata, sent with every call.

        Raises:
            InvalidRequest: If an argument can be no target, token or certificate.
        """
        super().__init__(
            Connection(
                target=target,
                tls=Tls() if tls is True else tls or None,
                token=token,
                metadata=dict(metadata or {}),
            )
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"


class Client(Blocking[AsyncClient]):
    """A client of one server, for any thread; every method is the blocking form of AsyncClient's.

    Use it as a context manager, or `close` it. Interrupting a call cancels it on the server too.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | bool = False,
        token: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server; see AsyncClient."""
        super().__init__(AsyncClient(target, tls=tls, token=token, metadata=metadata), BackgroundLoop())

    @property
    def target(self) -> str:
        """Address of the server."""
        return self._client.target

    derive = blocking(AsyncClient.derive)
    derive_request = blocking(AsyncClient.derive_request)
    resolve = blocking(AsyncClient.resolve)
    resolve_request = blocking(AsyncClient.resolve_request)
    explain = blocking(AsyncClient.explain)
    explain_request = blocking(AsyncClient.explain_request)
    explain_parts = blocking_iterator(AsyncClient.explain_parts)
    top_k = blocking(AsyncClient.top_k)
    top_k_request = blocking(AsyncClient.top_k_request)
    patch = blocking(AsyncClient.patch)
    patch_request = blocking(AsyncClient.patch_request)
    attribute = blocking(AsyncClient.attribute)
    attribute_request = blocking(AsyncClient.attribute_request)
    circuit = blocking(AsyncClient.circuit)
    circuit_request = blocking(AsyncClient.circuit_request)
    graph = blocking(AsyncClient.graph)
    graph_request = blocking(AsyncClient.graph_request)
    graph_parts = blocking_iterator(AsyncClient.graph_parts)
    query_graph = blocking(AsyncClient.query_graph)
    graph_neighbours = blocking(AsyncClient.graph_neighbours)
    graph_paths = blocking(AsyncClient.graph_paths)
    graph_edges = blocking(AsyncClient.graph_edges)
    prune_graph = blocking(AsyncClient.prune_graph)
    probe_graph = blocking(AsyncClient.probe_graph)
    intervene_on_graph = blocking(AsyncClient.intervene_on_graph)
    verify_graph = blocking(AsyncClient.verify_graph)
    edge_heads = blocking(AsyncClient.edge_heads)
    attention_pairs = blocking(AsyncClient.attention_pairs)
    feature_tokens = blocking(AsyncClient.feature_tokens)
    graphs = blocking(AsyncClient.graphs)
    drop_graph = blocking(AsyncClient.drop_graph)
    put_tensor = blocking(AsyncClient.put_tensor)
    delete_tensor = blocking(AsyncClient.delete_tensor)
    server_info = blocking(AsyncClient.server_info)
    models = blocking(AsyncClient.models)
    model = blocking(AsyncClient.model)
    autoencoders = blocking(AsyncClient.autoencoders)
    derived_scalar_types = blocking(AsyncClient.derived_scalar_types)
    tokenize = blocking(AsyncClient.tokenize)
    detokenize = blocking(AsyncClient.detokenize)
    token_strings = blocking(AsyncClient.token_strings)
    health = blocking(AsyncClient.health)
    load_context = blocking(AsyncClient.load_context)
    unpin_context = blocking(AsyncClient.unpin_context)
    unload_context = blocking(AsyncClient.unload_context)
    contexts = blocking(AsyncClient.contexts)
    reload_registry = blocking(AsyncClient.reload_registry)
    watch_contexts = blocking_iterator(AsyncClient.watch_contexts)

    def derive_stream(
        self,
        requests: Iterable[DeriveRequest],
        *,
        timeout: float | None = None,
        item_timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        cancels: ItemCancels | None = None,
    ) -> Generator[tuple[str, Answer | DstError]]:
        """Run many requests on one stream; see AsyncClient.derive_stream.

        *requests* is iterated on another thread, so that it may block without delaying the answers.
        """
        items = _loop.from_thread(requests)
        answers = self._client.derive_stream(
            items, timeout=timeout, item_timeout=item_timeout, max_in_flight=max_in_flight, cancels=cancels
        )
        return self._loop.iterate(answers)

    def resolve_stream(
        self,
        requests: Iterable[ResolveRequest],
        *,
        timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> Generator[tuple[str, Resolution | DstError]]:
        """Resolve many requests on one stream; see AsyncClient.resolve_stream, and `derive_stream` about threads."""
        items = _loop.from_thread(requests)
        return self._loop.iterate(self._client.resolve_stream(items, timeout=timeout, max_in_flight=max_in_flight))

    def close(self) -> None:
        """Cancel running calls, close the connection and end the thread. Closing twice is harmless."""
        if not self._loop.is_closed:
            self._loop.run(self._client.close)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r})"
