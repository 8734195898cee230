"""The server's cache of loaded models and autoencoders, for operators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING

from dst_grpc._gen.dst.v1 import context_service_pb2 as pb
from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceStub
from dst_grpc.client._calls import Calls, pages
from dst_grpc.domain.resolution import ContextStatus, RegistryChange
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.codec import read_answer

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceAsyncStub


class ContextCalls(Calls):
    """ContextService."""

    @cached_property
    def _contexts_stub(self) -> ContextServiceAsyncStub:
        return ContextServiceStub(self._channel)

    async def load_context(
        self,
        context: str,
        *,
        pin: bool = False,
        on_progress: Callable[[ContextStatus], None] | None = None,
        timeout: float | None = None,
    ) -> ContextStatus:
        """Load a model or an autoencoder set and wait until it is available.

        Args:
            context: Its name or handle.
            pin: Whether it stays loaded until it is unpinned, used or not.
            on_progress: Called with the progress of the load; by a sync client, on another thread.
            timeout: Seconds; None = no limit. The load goes on if this call ends early.

        Returns:
            Its status once loaded.

        Raises:
            NotFound: If there is no context of that name.
            Exhausted: If it does not fit beside the contexts in use.
            DataLoss: If its files are corrupt.
        """
        last: ContextStatus | None = None
        method, request = self._contexts_stub.LoadContext, pb.LoadContextRequest(context=context, pin=pin)
        async with aclosing(self._responses(method, request, timeout)) as responses:
            async for response in responses:
                last = read_answer(ContextStatus, response.status)
                if last.error is not None:
                    raise last.error
                if on_progress is not None:
                    on_progress(last)
        if last is None:
            raise DataLoss("the answer is truncated: the load ended without a status", reason=Reason.ANSWER_TRUNCATED)
        return last

    async def unpin_context(self, context: str, *, timeout: float | None = None) -> ContextStatus:
        """Unpin a context, so that it can be evicted or expire; it stays loaded until then.

        Raises:
            NotFound: If it is not loaded.
        """
        request = pb.UnpinContextRequest(context=context)
        response = await self._unary(self._contexts_stub.UnpinContext, request, timeout)
        return read_answer(ContextStatus, response.status)

    async def unload_context(self, context: str, *, timeout: float | None = None) -> ContextStatus:
        """Unload a context; returns once its memory is free.

        Raises:
            NotFound: If it is not loaded.
            PreconditionFailed: If requests use it, or it is pinned.
        """
        request = pb.UnloadContextRequest(context=context)
        response = await self._unary(self._contexts_stub.UnloadContext, request, timeout)
        return read_answer(ContextStatus, response.status)

    async def contexts(self, *, timeout: float | None = None) -> list[ContextStatus]:
        """List the contexts in the cache, by handle.

        Raises:
            DstError: If the call fails.
        """
        listed = pages(
            lambda token: self._unary(
                self._contexts_stub.ListContexts, pb.ListContextsRequest(page_token=token), timeout
            )
        )
        return [read_answer(ContextStatus, status) async for page in listed for status in page.contexts]

    async def reload_registry(self, *, timeout: float | None = None) -> RegistryChange:
        """Have the server read its registry, tokens, callers and certificates again; if anything is wrong, all stays as
        it was.

        Returns:
            The names of what was added to the registry, removed and changed.

        Raises:
            InvalidRequest: If one of the files is wrong; lists everything, of the registry by its path in the file.
            DataLoss: If a file is corrupt, or has another digest than is registered.
        """
        whole = pb.ReloadRegistryResponse()
        method, request = self._contexts_stub.ReloadRegistry, pb.ReloadRegistryRequest()
        async with aclosing(self._responses(method, request, timeout)) as responses:
            async for response in responses:
                whole.MergeFrom(response)
        return read_answer(RegistryChange, whole)

    async def watch_contexts(self, *, timeout: float | None = None) -> AsyncGenerator[ContextStatus]:
        """Watch the cache: every context now, then each that changes its state, until the iterator is closed.

        Raises:
            DstError: If the call fails.
        """
        method, request = self._contexts_stub.WatchContexts, pb.WatchContextsRequest()
        async with aclosing(self._responses(method, request, timeout)) as responses:
            async for response in responses:
                yield read_answer(ContextStatus, response.status)
