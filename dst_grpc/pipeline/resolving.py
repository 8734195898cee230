"""Answers Resolve: checks and costs requests, and loads what they need if that is wanted."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TYPE_CHECKING

from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.timeline import Stage
from dst_grpc.errors import DstError, join_path
from dst_grpc.pipeline.resolution import Resolver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.requests import ResolveRequest
    from dst_grpc.domain.sender import Sender
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.planning import Planning


class Resolving:
    """Resolves requests; see `Pipeline`. Used on the event loop only."""

    def __init__(self, cache: ContextCache, planning: Planning, taken: Callable[[int], int]) -> None:
        """Use the contexts and the registry of *cache*, and plans of *planning*; the process takes *taken* of the bytes
        of tensors."""
        self._cache, self._planning = cache, planning
        self._resolver = Resolver(cache, taken)

    async def resolve(
        self, request: ResolveRequest, known: Violations | None, *, root: str, sender: Sender
    ) -> AsyncGenerator[Validated | LoadProgress | Resolution, None]:
        """As `Pipeline.resolve`."""
        registry = self._cache.registry
        plan = await self._plan(request, registry, known, root, sender)
        yield Validated()
        async with AsyncExitStack() as stack:
            if request.load:
                started, is_loaded = time.monotonic(), True
                async with aclosing(self._loading(plan, stack)) as stages:
                    async for progress in stages:
                        is_loaded = False
                        yield progress
                if sender.timeline is not None and not is_loaded:
                    sender.timeline.note(Stage.LOAD, started, time.monotonic())
            yield await self._resolver.resolution(plan, registry)

    async def resolution(
        self, request: ResolveRequest, known: Violations | None, *, root: str, sender: Sender
    ) -> Resolution:
        """As `Pipeline.resolution`."""
        registry = self._cache.registry
        plan = self._planning.kept(request.request, registry, sender.caller) if known is None else None
        if plan is None or plan.tensor_handles:
            return await self._resolver.resolution(await self._plan(request, registry, known, root, sender), registry)
        _note(plan, sender)
        return await self._resolver.resolution(plan, registry)

    async def _plan(
        self, request: ResolveRequest, registry: Registry, known: Violations | None, root: str, sender: Sender
    ) -> Plan:
        """The plan of the request in *request*; raises what Derive would."""
        path = join_path(root, "request")
        plan = await self._planning.plan(request.request, registry, known, root=path, caller=sender.caller)
        if plan.tensor_handles:
            await self._planning.with_tensors([plan], sender, [path])
        _note(plan, sender)
        return plan

    async def _loading(self, plan: Plan, stack: AsyncExitStack) -> AsyncGenerator[LoadProgress, None]:
        """Lease the contexts of *plan* on *stack*, yielding the latest progress of each meanwhile."""
        newest: dict[str, LoadProgress] = {}
        news = asyncio.Event()

        def note(progress: LoadProgress) -> None:
            newest[progress.context] = progress
            news.set()

        lease = self._cache.lease(plan.model, plan.autoencoders, handles=plan.handles, on_progress=note)
        leased = asyncio.create_task(stack.enter_async_context(lease))
        leased.add_done_callback(lambda _: news.set())
        try:
            while not (leased.done() and not newest):
                await news.wait()
                news.clear()
                while newest:
                    yield newest.pop(next(iter(newest)))
            await leased
        finally:
            leased.cancel()
            with suppress(asyncio.CancelledError, DstError):
                await leased  # so that a cancelled caller holds no pin


def _note(plan: Plan, sender: Sender) -> None:
    """Note what the request of *sender* is about."""
    if sender.timeline is not None:
        sender.timeline.model = plan.model.name
        sender.timeline.contexts = [entry.name for entry in plan.autoencoders]
