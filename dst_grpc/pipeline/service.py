"""The pipeline's interface to the services: requests in, plain values out, lazily and as they are ready."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.errors import DstError, join_path
from dst_grpc.pipeline.admission import Limits
from dst_grpc.pipeline.execution import Executor
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.planning import Planning
from dst_grpc.pipeline.resolution import Resolver
from dst_grpc.pipeline.tensor_answer import TensorAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.domain.callers import Caller, Grants
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.explanations import ExplanationPart
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
    from dst_grpc.domain.results import AnswerHeader, RunSummary
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.tensor_answer import Tensor


class Pipeline:
    """Plans, runs and answers requests. A request ends with the registry that it began with.

    All methods take the violations found by reading the request's message, if any: the rest of the request is checked,
    and all violations are reported together. Used on the event loop only.
    """

    def __init__(self, cache: ContextCache, limits: Limits | None = None) -> None:
        """Use the contexts and the registry of *cache*."""
        self._cache = cache
        limits = limits or Limits()
        self._planning = Planning(shared=limits.share_recordings)
        self._resolver = Resolver(cache)
        self._executor = Executor(cache, limits)

    async def resolve(
        self,
        request: ResolveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
    ) -> AsyncGenerator[Validated | LoadProgress | Resolution, None]:
        """Check, complete and cost a request; with `load`, also load what it needs.

        Args:
            request: what is asked.
            known: violations found by reading the message.
            root: the path of the request in the message.
            tensors: the store of the caller's tensors.
            caller: who asks.

        Raises:
            DstError: what `make_plan`, `with_tensors` and `ContextCache.lease` raise.
        """
        registry, path = self._cache.registry, join_path(root, "request")
        plan = await self._planning.plan(request.request, registry, known, root=path, caller=caller)
        with_tensors([plan], tensors, [path])  # raises what Derive would
        yield Validated()
        async with AsyncExitStack() as stack:
            if request.load:
                async with aclosing(self._loading(plan, stack)) as stages:
                    async for progress in stages:
                        yield progress
            yield self._resolver.resolution(plan, registry)

    async def derive(
        self,
        request: DeriveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
    ) -> AsyncGenerator[Sequence[AnswerHeader | Tensor | RunSummary], None]:
        """Run a request: its header, its tensors in the header's order, its summary; as many at once as are ready.

        Args:
            request: what is asked.
            known: violations found by reading the message.
            root: the path of the request in the message.
            tensors: the store of the caller's tensors.
            caller: who asks.

        Raises:
            DstError: what `make_plan`, `with_tensors`, `ContextCache.lease` and `Admission.admitted` raise, before the
                header.
        """
        registry = self._cache.registry
        plan = await self._planning.plan(request, registry, known, root=root, needs_prompt=True, caller=caller)
        (plan,) = with_tensors([plan], tensors, [root])
        cost = plan.cost
        answer = self._executor.run(
            [plan],
            TensorAnswer.of_one,
            peak_bytes=cost.peak_bytes,
            operations=cost.floating_point_operations,
            caller=caller,
        )
        async with aclosing(answer) as steps:
            async for ready in steps:
                yield ready

    async def top_k(
        self,
        request: TopKRequest,
        known: Violations | None = None,
        *,
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: a header and a table of each, then a summary.

        Raises:
            DstError: what `plan_top_k`, `with_tensors`, `ContextCache.lease` and `Admission.admitted` raise, before
                any part.
        """
        asked = await self._planning.plan_top_k(request, self._cache.registry, known)
        async with aclosing(self._explained(asked, tensors, caller)) as steps:
            async for ready in steps:
                yield ready

    async def explain(
        self,
        request: ExplainRequest,
        known: Violations | None = None,
        *,
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_explain`, `with_tensors`, `ContextCache.lease` and `Admission.admitted` raise, before
                any part.
        """
        asked = await self._planning.plan_explain(request, self._cache.registry, known)
        async with aclosing(self._explained(asked, tensors, caller)) as steps:
            async for ready in steps:
                yield ready

    def _explained(
        self, asked: ExplainPlan, tensors: TensorSource | None, caller: Caller
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        roots = [f"runs[{i}]" for i in range(len(asked.plans))]
        asked = replace(asked, plans=with_tensors(asked.plans, tensors, roots))
        begin = partial(ExplanationAnswer, asked)
        operations = asked.floating_point_operations
        peak_bytes = asked.peak_bytes
        return self._executor.run(asked.plans, begin, peak_bytes=peak_bytes, operations=operations, caller=caller)

    def use_grants(self, grants: Grants) -> None:
        """From now on, callers are granted what *grants* says."""
        self._executor.grants = grants

    async def close(self) -> None:
        """Refuse what waits and stop the workers."""
        await self._executor.close()

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
