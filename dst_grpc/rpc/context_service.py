"""ContextService: the cache, for operators."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from dst_grpc._gen.dst.v1 import context_service_pb2 as pb
from dst_grpc.domain.resolution import ContextState, ContextStatus, RegistryChange
from dst_grpc.domain.timeline import Stage
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.draining import DrainSignal, until_drained
from dst_grpc.rpc.pagination import page_of
from dst_grpc.rpc.ports import CachePort
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.envelope import MESSAGE_BYTES
from dst_grpc.wire.pieces import split


class ContextService:
    """Loads, unloads and watches contexts."""

    def __init__(self, cache: CachePort, drain: DrainSignal, reload: Callable[[], Awaitable[RegistryChange]]) -> None:
        """Serve *cache*, whose registry *reload* replaces; watches end when the server drains."""
        self._cache = cache
        self._reload = reload
        self._drain = drain

    async def LoadContext(
        self, request: pb.LoadContextRequest, context: ObservedContext
    ) -> AsyncGenerator[pb.LoadContextResponse, None]:
        """Load a context and report its progress."""
        started, state = time.monotonic(), ContextState.AVAILABLE
        loading = self._cache.load(request.context, pin=request.pin)
        del request  # which may be large, as that of a watch
        async with aclosing(loading) as statuses:
            async for status in statuses:
                if status.state is ContextState.AVAILABLE is not state:
                    context.info.timeline.note(Stage.LOAD, started, time.monotonic())
                state = status.state
                yield pb.LoadContextResponse(status=_told(status, context))

    async def UnpinContext(self, request: pb.UnpinContextRequest, context: ObservedContext) -> pb.UnpinContextResponse:
        """Unpin a context."""
        return pb.UnpinContextResponse(status=_told(self._cache.unpin(request.context), context))

    async def UnloadContext(
        self, request: pb.UnloadContextRequest, context: ObservedContext
    ) -> pb.UnloadContextResponse:
        """Unload a context."""
        status = await self._cache.unload(request.context)
        return pb.UnloadContextResponse(status=_told(status, context))

    async def ListContexts(self, request: pb.ListContextsRequest, _context: object) -> pb.ListContextsResponse:
        """List the contexts."""
        statuses = self._cache.statuses()
        page, token = page_of(statuses, request, key=lambda status: status.handle, to_wire=to_wire, scope="contexts")
        return pb.ListContextsResponse(contexts=page, next_page_token=token)

    async def WatchContexts(
        self, request: pb.WatchContextsRequest, context: ObservedContext
    ) -> AsyncGenerator[pb.WatchContextsResponse, None]:
        """Report every context and its changes, until the client cancels, or may no longer know."""
        del request  # which may be large, with fields that nobody knows: it is not kept for as long as the watch lasts
        async with aclosing(self._cache.watch()) as statuses:
            async for status in until_drained(statuses, self._drain):
                context.info.still_allowed()
                yield pb.WatchContextsResponse(status=to_wire(status))

    async def ReloadRegistry(
        self, request: pb.ReloadRegistryRequest, _context: object
    ) -> AsyncGenerator[pb.ReloadRegistryResponse, None]:
        """Read the registry again, and replace the old one."""
        del request  # likewise
        for piece in split(to_wire(await self._reload()), MESSAGE_BYTES):
            yield piece


def _told(status: ContextStatus, context: ObservedContext) -> Any:
    """*status* as a message, and noted as what the call is about."""
    context.info.timeline.contexts = (status.handle,)
    return to_wire(status)
