"""The pipeline as the services see it: requests in, plain values out, one at a time and only when pulled.

Work runs at most one helping of tensors (about 1 MiB) ahead of the reader, so a slow one holds neither the device nor
more than its own recorded taps.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.results import AnswerHeader, DenseTensor, RunSummary, SparseTensor
from dst_grpc.errors import DataLoss, DstError, InvalidRequest, PreconditionFailed, Reason
from dst_grpc.pipeline.admission import Admission, Limits
from dst_grpc.pipeline.answer import AnswerBuilder, Part
from dst_grpc.pipeline.batching import Batcher
from dst_grpc.pipeline.explain import Explainer
from dst_grpc.pipeline.explain_planner import plan_explain, plan_top_k
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan, model_ref, names_files
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.pipeline.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.explanations import ExplanationPart
    from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.run import RunResult

_PULL_BYTES = 1 << 20
"""Tensors are brought from the device's thread in helpings of at least this size, or a small answer at once."""
_PLANS_KEPT = 256
_PLANS_AT_ONCE = 4
"""Plans for which files are read, each on a thread; others read nothing."""


class Pipeline:
    """Plans, runs and derives. Lives on the event loop; torch runs on the worker's thread."""

    def __init__(self, cache: ContextCache, limits: Limits | None = None) -> None:
        """Work on what *cache* holds, and what its registry says could be loaded."""
        self._cache = cache
        self._planned_with = cache.registry
        limits = limits or Limits()
        self._admission = Admission(limits)
        self._devices: dict[str, tuple[Worker, Batcher]] = {}
        self._store_bytes = limits.store_bytes
        self._plans: OrderedDict[DeriveRequest, Plan] = OrderedDict()
        self._planning = Threads("dst-plan", at_once=_PLANS_AT_ONCE)

    async def resolve(self, request: ResolveRequest) -> AsyncGenerator[Validated | LoadProgress | Resolution, None]:
        """Check, complete and cost a request; with `load`, also load what it needs.

        Raises:
            DstError: what `make_plan` and `ContextCache.lease` raise.
        """
        registry = self._cache.registry
        try:
            plan = await self._plan(request.request, registry)
        except (InvalidRequest, PreconditionFailed) as error:
            raise error.under("request") from None
        yield Validated()
        if not request.load:
            yield self._resolution(plan)
            return
        async with AsyncExitStack() as stack:
            async with aclosing(self._loading(plan, registry, stack)) as stages:
                async for progress in stages:
                    yield progress
            yield self._resolution(await self._with_handles(plan, request.request, registry))

    async def derive(
        self, request: DeriveRequest
    ) -> AsyncGenerator[AnswerHeader | DenseTensor | SparseTensor | RunSummary, None]:
        """Run a request: its header, its tensors in the header's order, its summary.

        Raises:
            DstError: what `make_plan`, `ContextCache.lease` and `Admission.admitted` raise, before the header.
        """
        if request.prompt is None:
            raise InvalidRequest.of("prompt", "is required")
        registry = self._cache.registry
        plan = await self._plan(request, registry)
        model, entries = _entries([plan], registry)
        async with (
            self._admission.admitted(plan.cost.peak_bytes),
            self._cache.lease(model, entries) as lease,
        ):
            plan = await self._with_handles(plan, request, registry)
            worker, batcher = self._device(lease.model.device)
            sets = {context.name: context for context in lease.autoencoders.values()}
            begin = partial(_begin, model=lease.model, sets=sets)
            answer, helping, rest = await batcher.run(plan, lease.model.decoder, sets, begin)
            yield answer.header()
            async with aclosing(_pulled(worker, plan.cost.floating_point_operations, helping, rest)) as helpings:
                async for ready in helpings:
                    for tensor in ready:
                        yield tensor
            yield answer.summary()

    def top_k(self, request: TopKRequest) -> AsyncGenerator[ExplanationPart | RunSummary, None]:
        """Run a request's runs as one batch: of each a header and a table, of all a summary.

        Raises:
            DstError: what `plan_top_k`, `ContextCache.lease` and `Admission.admitted` raise, before any part.
        """
        return self._answered(partial(plan_top_k, request))

    def explain(self, request: ExplainRequest) -> AsyncGenerator[ExplanationPart | RunSummary, None]:
        """Run a request's runs as one batch: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_explain`, `ContextCache.lease` and `Admission.admitted` raise, before any part.
        """
        return self._answered(partial(plan_explain, request))

    async def _answered(
        self, plan: Callable[[Registry], ExplainPlan]
    ) -> AsyncGenerator[ExplanationPart | RunSummary, None]:
        registry = self._cache.registry
        asked = await self._planning.run(plan, registry)
        model, entries = _entries(asked.plans, registry)
        async with (
            self._admission.admitted(asked.peak_bytes),
            self._cache.lease(model, entries) as lease,
        ):
            if not all(map(_has_handles, asked.plans)):  # as in `_with_handles`
                asked = await self._planning.run(plan, registry)
            worker, batcher = self._device(lease.model.device)
            sets = {context.name: context for context in lease.autoencoders.values()}
            # All wait before the first batch is formed, so that they run together.
            runs = [batcher.run(one, lease.model.decoder, sets, _itself) for one in asked.plans]
            results = await _all_or_first_error(runs)
            explainer = Explainer(asked, results, lease.model, sets)
            steps = explainer.steps()
            while parts := await worker.submit(partial(_next_parts, steps), operations=asked.floating_point_operations):
                for part in parts:
                    yield part
            yield explainer.summary()

    async def close(self) -> None:
        """Refuse what waits and stop the workers."""
        self._admission.close()
        for worker, _ in self._devices.values():
            await worker.close()

    async def _plan(self, request: DeriveRequest, registry: Registry) -> Plan:
        """The plan of *request* with what *registry* knows; the one that a request begins with is kept to its end."""
        key = replace(request, request_id="", max_chunk_bytes=0)
        if registry is self._cache.registry and registry is not self._planned_with:
            self._plans.clear()
            self._planned_with = registry
        plan = self._plans.get(key) if registry is self._planned_with else None
        if plan is not None:
            self._plans.move_to_end(key)
            return plan
        if names_files(key):
            # Not kept: the files may be others by the next time.
            return await self._planning.run(make_plan, key, registry)
        if registry.model_entry(model_ref(key)).has_tokenizer:
            plan = make_plan(key, registry)  # reads nothing, and costs less than a thread
        else:
            plan = await self._planning.run(make_plan, key, registry)
        if registry is self._planned_with:
            self._plans[key] = plan
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan

    async def _with_handles(self, plan: Plan, request: DeriveRequest, registry: Registry) -> Plan:
        """*plan* of a request whose contexts are loaded by now: that told the digests, and so the handles.

        What is recorded is kept under handles: names may come to mean something else.
        """
        if _has_handles(plan):
            return plan
        self._plans.pop(replace(request, request_id="", max_chunk_bytes=0), None)
        again = await self._plan(request, registry)
        if [info.name for info in again.autoencoders] != [info.name for info in plan.autoencoders]:
            raise DataLoss("files of an autoencoder changed while it was loaded", reason=Reason.DIGEST_MISMATCH)
        return again

    def _device(self, device: str) -> tuple[Worker, Batcher]:
        if device not in self._devices:
            worker = Worker(device)
            self._devices[device] = worker, Batcher(worker, RecordingStore(self._store_bytes))
        return self._devices[device]

    def _resolution(self, plan: Plan) -> Resolution:
        sets = plan.autoencoders
        return Resolution(
            config=plan.config,
            device=plan.model.device,
            model=self._cache.describe(plan.model),
            autoencoders=tuple(self._cache.describe(info) for info in sets),
            scalars=plan.resolutions,
            cost=plan.cost,
            contexts=tuple(map(self._cache.status, (plan.model.name, *(info.name for info in sets)))),
        )

    async def _loading(
        self, plan: Plan, registry: Registry, stack: AsyncExitStack
    ) -> AsyncGenerator[LoadProgress, None]:
        """Lease what *plan* needs on *stack*, telling meanwhile of the newest progress of each context."""
        newest: dict[str, LoadProgress] = {}
        news = asyncio.Event()

        def note(progress: LoadProgress) -> None:
            newest[progress.context] = progress
            news.set()

        model, entries = _entries([plan], registry)
        lease = self._cache.lease(model, entries, on_progress=note)
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
                await leased  # so that whoever stops listening holds no pin any more


def _entries(plans: Sequence[Plan], registry: Registry) -> tuple[ModelEntry, list[AutoencoderEntry]]:
    """What *plans*, all of one model, need; without repetition."""
    model = registry.model_entry(plans[0].model.name)
    names = dict.fromkeys(info.name for plan in plans for info in plan.autoencoders)
    return model, [registry.autoencoder_entry(name, model.name) for name in names]


def _itself(result: RunResult) -> RunResult:
    return result


async def _all_or_first_error(runs: Sequence[Coroutine[Any, Any, RunResult]]) -> list[RunResult]:
    """The results of all *runs*; raises the error of the first that failed, when all have ended."""
    found = await asyncio.gather(*runs, return_exceptions=True)
    results = []
    for result in found:
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def _next_parts(steps: Iterator[list[ExplanationPart]]) -> list[ExplanationPart]:
    """The parts of the next step that has any; empty at the end."""
    return next((parts for parts in steps if parts), [])


def _has_handles(plan: Plan) -> bool:
    """Whether all contexts of *plan* are named by what is in their files."""
    return bool(plan.model.handle) and all(info.handle for info in plan.autoencoders)


async def _pulled(
    worker: Worker, operations: int, helping: list[Part], rest: Iterator[Part] | None
) -> AsyncGenerator[list[Part], None]:
    """Helpings of tensors: the next is derived while the reader has the one before, and no further."""
    while rest is not None:
        following = asyncio.ensure_future(worker.submit(partial(_helping, rest), operations=operations))
        try:
            yield helping
            helping = await following
        finally:
            following.cancel()
        if not helping:
            return
    yield helping


def _begin(
    result: RunResult, *, model: ModelContext, sets: dict[str, AutoencoderContext]
) -> tuple[AnswerBuilder, list[Part], Iterator[Part] | None]:
    """Start the answer and take the first helping; on the device's thread."""
    answer = AnswerBuilder(result, model, sets)
    tensors = answer.tensors()
    helping = _helping(tensors)
    following = next(tensors, None)
    return answer, helping, None if following is None else chain([following], tensors)


def _helping(tensors: Iterator[Part]) -> list[Part]:
    """The next tensors, about `_PULL_BYTES` of them; empty at the end."""
    taken: list[Part] = []
    size = 0
    for tensor in tensors:
        taken.append(tensor)
        size += tensor.info.byte_length
        if size >= _PULL_BYTES:
            break
    return taken
