"""The pipeline's interface to the services: requests in, plain values out, lazily and as they are ready."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.urgency import WHENEVER, Urgency
from dst_grpc.errors import DstError, join_path
from dst_grpc.pipeline.attribute_answer import AttributeAnswer
from dst_grpc.pipeline.circuit_answer import CircuitAnswer
from dst_grpc.pipeline.execution import Executor
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.limits import Limits
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.planner import model_ref
from dst_grpc.pipeline.planning import Planning
from dst_grpc.pipeline.rates import Work
from dst_grpc.pipeline.resolution import Resolver
from dst_grpc.pipeline.tensor_answer import STEP_BYTES, TensorAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.attribute_answers import AttributePart
    from dst_grpc.domain.attribute_requests import AttributeRequest
    from dst_grpc.domain.callers import Caller, Grants
    from dst_grpc.domain.circuit import CircuitPart, CircuitRequest
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.explanations import ExplanationPart
    from dst_grpc.domain.patch import PatchRequest
    from dst_grpc.domain.patch_answers import PatchPart
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
    from dst_grpc.domain.results import AnswerHeader, RunSummary
    from dst_grpc.domain.server_info import DeviceLoad
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.door import Ticket
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
        self._planning = Planning(shared=limits.share_recordings, store_bytes=limits.store_bytes)
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
        await self._planning.with_tensors([plan], tensors, [path])  # raises what Derive would
        yield Validated()
        async with AsyncExitStack() as stack:
            if request.load:
                async with aclosing(self._loading(plan, stack)) as stages:
                    async for progress in stages:
                        yield progress
            yield await self._resolver.resolution(plan, registry)

    async def derive(
        self,
        request: DeriveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[AnswerHeader | Tensor | RunSummary], None]:
        """Run a request: its header, its tensors in the header's order, its summary; as many at once as are ready.

        Args:
            request: what is asked.
            known: violations found by reading the message.
            root: the path of the request in the message.
            tensors: the store of the caller's tensors.
            caller: who asks.
            urgency: how soon it is wanted.
            request_bytes: bytes of the message.

        Raises:
            DstError: what `make_plan`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before the header.
        """
        registry = self._cache.registry
        with self._executor.entered(caller, urgency, request_bytes, _device(registry, model_ref(request))) as ticket:
            plan = await self._planning.plan(request, registry, known, root=root, needs_prompt=True, caller=caller)
            (plan,) = await self._planning.with_tensors([plan], tensors, [root])
            cost = plan.cost
            answer = self._executor.run(
                ticket,
                [plan],
                TensorAnswer.of_one,
                peak_bytes=cost.peak_bytes,
                held_bytes=plan.held_bytes,
                operations=cost.floating_point_operations,
                steps=Work.DERIVE_STEP,
                n_steps=cost.output_bytes // STEP_BYTES,
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
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: a header and a table of each, then a summary.

        Raises:
            DstError: what `plan_top_k`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before any part.
        """
        registry = self._cache.registry
        device = _device(registry, model_ref(request.runs[0]) if request.runs else "")
        with self._executor.entered(caller, urgency, request_bytes, device) as ticket:
            asked = await self._planning.plan_top_k(request, registry, known)
            asked = await self._with_tensors(asked, tensors)
            async with aclosing(self._explained(ticket, asked)) as steps:
                async for ready in steps:
                    yield ready

    async def explain(
        self,
        request: ExplainRequest,
        known: Violations | None = None,
        *,
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_explain`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before any part.
        """
        registry = self._cache.registry
        with self._executor.entered(caller, urgency, request_bytes, _device(registry, request.model or "")) as ticket:
            asked = await self._planning.plan_explain(request, registry, known)
            asked = await self._with_tensors(asked, tensors)
            async with aclosing(self._explained(ticket, asked)) as steps:
                async for ready in steps:
                    yield ready

    async def _with_tensors(self, asked: ExplainPlan, tensors: TensorSource | None) -> ExplainPlan:
        roots = [f"runs[{i}]" for i in range(len(asked.plans))]
        return replace(asked, plans=await self._planning.with_tensors(asked.plans, tensors, roots))

    def _explained(
        self, ticket: Ticket, asked: ExplainPlan
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        return self._executor.run(
            ticket,
            asked.plans,
            partial(ExplanationAnswer, asked),
            peak_bytes=asked.peak_bytes,
            held_bytes=asked.held_bytes,
            operations=asked.floating_point_operations,
            steps=Work.EXPLAIN_STEP,
            n_steps=asked.n_steps,
        )

    async def attribute(
        self,
        request: AttributeRequest,
        known: Violations | None = None,
        *,
        caller: Caller = LOCAL,
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[AttributePart | RunSummary], None]:
        """Score nodes, edges or tokens: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_attribute`, `Executor.entered` and `Executor.run` raise, before any part.
        """
        registry = self._cache.registry
        with self._executor.entered(caller, urgency, request_bytes, _device(registry, request.model or "")) as ticket:
            asked = await self._planning.plan_attribute(request, registry, known)
            answer = self._executor.run(
                ticket,
                [asked.plan],
                partial(AttributeAnswer, asked),
                peak_bytes=asked.peak_bytes,
                operations=asked.floating_point_operations,
                steps=Work.ATTRIBUTE_STEP,
                n_steps=asked.n_steps,
            )
            async with aclosing(answer) as steps:
                async for ready in steps:
                    yield ready

    async def patch(
        self,
        request: PatchRequest,
        known: Violations | None = None,
        *,
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[PatchPart | RunSummary], None]:
        """Change runs cell by cell: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_patch`, `PatchPlan.with_tensors`, `Executor.entered` and `Executor.run` raise, before
                any part.
        """
        registry = self._cache.registry
        with self._executor.entered(caller, urgency, request_bytes, _device(registry, request.model or "")) as ticket:
            asked = (await self._planning.plan_patch(request, registry, known)).with_tensors(tensors)
            answer = self._executor.run(
                ticket,
                [asked.plan],
                partial(PatchAnswer, asked),
                peak_bytes=asked.peak_bytes,
                operations=asked.floating_point_operations,
                steps=Work.PATCH_STEP,
                n_steps=asked.n_steps,
            )
            async with aclosing(answer) as steps:
                async for ready in steps:
                    yield ready

    async def circuit(
        self,
        request: CircuitRequest,
        known: Violations | None = None,
        *,
        tensors: TensorSource | None = None,
        caller: Caller = LOCAL,
        urgency: Urgency = WHENEVER,
        request_bytes: int = 0,
    ) -> AsyncGenerator[Sequence[CircuitPart | RunSummary], None]:
        """Evaluate circuits, and find them: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_circuit`, `CircuitPlan.with_tensors`, `Executor.entered` and `Executor.run` raise,
                before any part.
        """
        registry = self._cache.registry
        with self._executor.entered(caller, urgency, request_bytes, _device(registry, request.model or "")) as ticket:
            asked = (await self._planning.plan_circuit(request, registry, known)).with_tensors(tensors)
            answer = self._executor.run(
                ticket,
                [asked.plan],
                partial(CircuitAnswer, asked),
                peak_bytes=asked.peak_bytes,
                operations=asked.floating_point_operations,
                steps=Work.CIRCUIT_STEP,
                n_steps=asked.n_steps,
            )
            async with aclosing(answer) as steps:
                async for ready in steps:
                    yield ready

    def loads(self) -> tuple[DeviceLoad, ...]:
        """What waits for each device that has been used."""
        return self._executor.loads()

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


def _device(registry: Registry, model: str) -> str | None:
    """The device of a model; None if there is no such model, which planning reports."""
    try:
        return registry.model_entry(model).device
    except DstError:
        return None
