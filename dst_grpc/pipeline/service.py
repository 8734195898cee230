"""The pipeline's interface to the services: requests in, plain values out, lazily and as they are ready."""

from __future__ import annotations

from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import Priority
from dst_grpc.domain.graph_answers import GraphPart, GraphPartKind
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.readings import MemoryKind, MemoryReading
from dst_grpc.domain.resolution import LoadProgress, Resolution, Validated
from dst_grpc.domain.sender import HERE, Sender
from dst_grpc.errors import DstError
from dst_grpc.pipeline.attribute_answer import AttributeAnswer
from dst_grpc.pipeline.circuit_answer import CircuitAnswer
from dst_grpc.pipeline.execution import Executor
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.graph_answer import GraphAnswer
from dst_grpc.pipeline.graph_probe_answer import ProbeAnswer
from dst_grpc.pipeline.graph_query import answer_query
from dst_grpc.pipeline.kept_graphs import KeptGraphs
from dst_grpc.pipeline.limits import Limits
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.planner import model_ref
from dst_grpc.pipeline.planning import Planning
from dst_grpc.pipeline.rates import Work
from dst_grpc.pipeline.resolving import Resolving
from dst_grpc.pipeline.tensor_answer import STEP_BYTES, TensorAnswer
from dst_grpc.pipeline.whole_graph import WholeGraph

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.attribute_answers import AttributePart
    from dst_grpc.domain.attribute_requests import AttributeRequest
    from dst_grpc.domain.callers import Caller, Grants
    from dst_grpc.domain.circuit import CircuitPart, CircuitRequest
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.explanations import ExplanationPart
    from dst_grpc.domain.graph import GraphRequest
    from dst_grpc.domain.graph_answers import KeptGraph
    from dst_grpc.domain.graph_probe_answers import GraphProbePart
    from dst_grpc.domain.graph_probes import ProbeGraphRequest
    from dst_grpc.domain.graph_queries import QueryGraphRequest
    from dst_grpc.domain.patch import PatchRequest
    from dst_grpc.domain.patch_answers import PatchPart
    from dst_grpc.domain.readings import DeviceReading
    from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
    from dst_grpc.domain.results import AnswerHeader, MadeAnswer, RunSummary
    from dst_grpc.domain.server_info import DeviceLoad
    from dst_grpc.domain.work import OnWork
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.attribute_planner import AttributePlan
    from dst_grpc.pipeline.circuit_planner import CircuitPlan
    from dst_grpc.pipeline.execution import Contexts, StepwiseAnswer
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.graph_planner import GraphPlan
    from dst_grpc.pipeline.graph_probe_planner import ProbePlan
    from dst_grpc.pipeline.patch_planner import PatchPlan
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.run import RunResult
    from dst_grpc.pipeline.tensor_answer import Tensor


class AskedPlan(Protocol):
    """A request, checked and completed, that is answered in steps."""

    @property
    def plans(self) -> Sequence[Plan]:
        """Its runs."""

    @property
    def peak_bytes(self) -> int:
        """Estimated memory, without weights."""

    @property
    def held_bytes(self) -> int | None:
        """What it takes once its passes are over; None = as much as before."""

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole."""

    @property
    def n_steps(self) -> int:
        """About how many steps the answer has."""


PlanT = TypeVar("PlanT", bound=AskedPlan)
_QUERIES_AT_ONCE = 2
"""Questions about kept graphs that are answered at the same time."""
T = TypeVar("T")


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
        self._resolving = Resolving(cache, self._planning, limits.of_device.taken)
        self._executor = Executor(cache, limits)
        self._graphs = KeptGraphs(limits.kept_graph_bytes, limits.kept_graph_seconds, shared=limits.share_recordings)
        self._threads = Threads("dst-graph", at_once=_QUERIES_AT_ONCE)

    def waiting(self, caller: Caller, request_bytes: int) -> AbstractContextManager[object]:
        """As `Door.waiting`."""
        return self._executor.waiting(caller, request_bytes)

    def resolve(
        self, request: ResolveRequest, known: Violations | None = None, *, root: str = "", sender: Sender = HERE
    ) -> AsyncGenerator[Validated | LoadProgress | Resolution, None]:
        """Check, complete and cost a request; with `load`, also load what it needs.

        Args:
            request: what is asked.
            known: violations found by reading the message.
            root: the path of the request in the message.
            sender: who sent it.

        Raises:
            DstError: what `make_plan`, `with_tensors` and `ContextCache.lease` raise.
        """
        return self._resolving.resolve(request, known, root=root, sender=sender)

    async def resolution(
        self, request: ResolveRequest, known: Violations | None = None, *, root: str = "", sender: Sender = HERE
    ) -> Resolution:
        """The last stage of `resolve`, without the others and without loading."""
        return await self._resolving.resolution(request, known, root=root, sender=sender)

    async def derive(
        self,
        request: DeriveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
        make: Callable[[Sequence[AnswerHeader | Tensor | RunSummary]], MadeAnswer | None] | None = None,
    ) -> AsyncGenerator[Sequence[AnswerHeader | Tensor | RunSummary | MadeAnswer], None]:
        """Run a request: its header, its tensors in the header's order, its summary; as many at once as are ready.

        Args:
            request: what is asked.
            known: violations found by reading the message.
            root: the path of the request in the message.
            sender: who sent it.
            make: what it makes of a small answer is yielded instead, if it is not None, and may be kept. It is called
                on the device's thread, and must always make the same of the same.

        Raises:
            DstError: what `make_plan`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before the header.
        """
        registry = self._cache.registry
        with self._executor.entered(sender, _model(registry, model_ref(request))) as ticket:
            plan = await self._planning.plan(
                request,
                registry,
                known,
                root=root,
                needs_prompt=True,
                # A program that works through many prompts asks all that it wants to know at once.
                records_besides=sender.urgency.priority is Priority.INTERACTIVE,
                caller=sender.caller,
            )
            (plan,) = await self._planning.with_tensors([plan], sender, [root])
            cost = plan.cost
            answer = self._executor.run(
                ticket,
                [plan],
                TensorAnswer.of_one,
                peak_bytes=cost.peak_bytes,
                held_bytes=plan.held_bytes,
                step_operations=cost.floating_point_operations,
                steps=Work.DERIVE_STEP,
                n_steps=cost.output_bytes // STEP_BYTES,
                make=make,
            )
            async with aclosing(answer) as steps:
                async for ready in steps:
                    yield ready

    def kept_answer(self, request: DeriveRequest, *, sender: Sender = HERE) -> MadeAnswer | None:
        """What was made of the answer to *request* when it was last derived from a kept recording, if that is kept.

        Raises:
            DstError: what `Executor.kept_answer` raises.
        """
        plan = self._planning.kept(request, self._cache.registry, sender.caller)
        return None if plan is None or plan.tensor_handles else self._executor.kept_answer(plan, sender)

    def top_k(
        self, request: TopKRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: a header and a table of each, then a summary.

        Raises:
            DstError: what `plan_top_k`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before any part.
        """

        async def plan(registry: Registry) -> ExplainPlan:
            return await self._with_tensors(
                await self._planning.plan_top_k(request, registry, known, sender.caller), sender
            )

        return self._answered(
            model_ref(request.runs[0]) if request.runs else "", sender, plan, ExplanationAnswer, Work.EXPLAIN_STEP
        )

    def explain(
        self, request: ExplainRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Run a request's runs as one batch: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_explain`, `with_tensors`, `Executor.entered` and `Executor.run` raise, before any part.
        """

        async def plan(registry: Registry) -> ExplainPlan:
            return await self._with_tensors(
                await self._planning.plan_explain(request, registry, known, sender.caller), sender
            )

        return self._answered(request.model or "", sender, plan, ExplanationAnswer, Work.EXPLAIN_STEP)

    async def _with_tensors(self, asked: ExplainPlan, sender: Sender) -> ExplainPlan:
        roots = [f"runs[{i}]" for i in range(len(asked.plans))]
        return replace(asked, plans=await self._planning.with_tensors(asked.plans, sender, roots))

    def attribute(
        self, request: AttributeRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[AttributePart | RunSummary], None]:
        """Score nodes, edges or tokens: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `plan_attribute`, `Executor.entered` and `Executor.run` raise, before any part.
        """

        async def plan(registry: Registry) -> AttributePlan:
            return await self._planning.plan_attribute(request, registry, known, sender.caller)

        return self._answered(request.model or "", sender, plan, AttributeAnswer, Work.ATTRIBUTE_STEP)

    def patch(
        self, request: PatchRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[PatchPart | RunSummary], None]:
        """Change runs cell by cell: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `Planning.plan_patch`, `Executor.entered` and `Executor.run` raise, before any part.
        """

        async def plan(registry: Registry) -> PatchPlan:
            return await self._planning.plan_patch(request, registry, known, sender)

        return self._answered(request.model or "", sender, plan, PatchAnswer, Work.PATCH_STEP)

    def circuit(
        self, request: CircuitRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[CircuitPart | RunSummary], None]:
        """Evaluate circuits, and find them: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `Planning.plan_circuit`, `Executor.entered` and `Executor.run` raise, before any part.
        """

        async def plan(registry: Registry) -> CircuitPlan:
            return await self._planning.plan_circuit(request, registry, known, sender)

        return self._answered(request.model or "", sender, plan, CircuitAnswer, Work.CIRCUIT_STEP)

    async def graph(
        self, request: GraphRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        """Compute the attribution graph of a prompt: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `Planning.plan_graph`, `Executor.entered` and `Executor.run` raise, before
                any part; (MEMORY_BUDGET_EXCEEDED, QUOTA_EXCEEDED) before the edges are computed, if the graph turns out
                not to fit, or not to fit what may be kept.
        """

        async def plan(registry: Registry) -> GraphPlan:
            limit = self._executor.memory_of(sender.caller)
            return await self._planning.plan_graph(request, registry, known, limit, sender)

        answer = partial(GraphAnswer, check_room=self._graphs.check_room)
        items = self._answered(request.model or "", sender, plan, answer, Work.GRAPH_STEP)
        async with aclosing(items):
            async for ready in items:
                yield [part for item in ready for part in self._kept(item, sender.caller)]

    def _kept(self, item: GraphPart | WholeGraph | RunSummary, caller: Caller) -> Sequence[GraphPart | RunSummary]:
        """What is told of an item of an answer: of a graph, where it is kept, if it is."""
        if not isinstance(item, WholeGraph):
            return (item,)
        kept = self._graphs.keep(item, caller)
        return () if kept is None else (GraphPart(kind=GraphPartKind.KEPT, value=kept),)

    async def query_graph(
        self, request: QueryGraphRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        """Answer a question about a kept graph.

        Raises:
            DstError: what `KeptGraphs.get`, `answer_query` and `Executor.entered` raise.
        """
        with self._executor.entered(sender, None):
            if known is not None and "graph" in known.fields:
                known.raise_if_any()
            graph = self._kept_graph(request.graph, sender)
            yield await self._threads.run(answer_query, graph, request, known, caller=sender.caller.name)

    async def probe_graph(
        self, request: ProbeGraphRequest, known: Violations | None = None, *, sender: Sender = HERE
    ) -> AsyncGenerator[Sequence[GraphProbePart | RunSummary], None]:
        """Ask the model about a kept graph: every part as soon as it is ready, then a summary.

        Raises:
            DstError: what `KeptGraphs.get`, `plan_probe`, `Executor.entered` and `Executor.run` raise, before any part.
        """
        if known is not None and "graph" in known.fields:
            known.raise_if_any()
        graph = self._kept_graph(request.graph, sender)

        async def plan(registry: Registry) -> ProbePlan:
            return await self._planning.plan_probe(request, graph, registry, known, sender.caller)

        items = self._answered(graph.model, sender, plan, ProbeAnswer, Work.PROBE_STEP)
        async with aclosing(items):
            async for ready in items:
                yield ready

    def graph_handles(self, caller: Caller) -> Sequence[str]:
        """The handles of the kept graphs that *caller* finds, in order."""
        return self._graphs.handles(caller)

    def kept_graph(self, handle: str) -> KeptGraph:
        """What is told of a graph, whose handle `graph_handles` has just given."""
        return self._graphs.described(handle)

    def drop_graph(self, handle: str, *, sender: Sender = HERE) -> None:
        """Drop a kept graph; raises NotFound."""
        self._kept_graph(handle, sender)
        self._graphs.drop(handle, sender.caller)

    def _kept_graph(self, handle: str, sender: Sender) -> WholeGraph:
        """A kept graph, whose model is noted as the request's, which names only the graph; raises NotFound."""
        graph = self._graphs.get(handle, sender.caller)
        if sender.timeline is not None:
            sender.timeline.model = ContextRef.parse(graph.model).name
        return graph

    def memory(self) -> MemoryReading:
        """What kept graphs take. May be called on any thread."""
        graphs = self._graphs
        return MemoryReading(kind=MemoryKind.KEPT_GRAPHS, used_bytes=graphs.byte_count, limit_bytes=graphs.budget_bytes)

    async def _answered(
        self,
        model: str,
        sender: Sender,
        plan: Callable[[Registry], Awaitable[PlanT]],
        answer: Callable[[PlanT, Sequence[RunResult], ModelContext, Contexts], StepwiseAnswer[T]],
        steps: Work,
    ) -> AsyncGenerator[Sequence[T | RunSummary], None]:
        """Let a request in, plan it, run it, and yield the items of its answer as they are ready.

        Args:
            model: name or handle of its model.
            sender: who sent it.
            plan: plans it.
            answer: begins the answer.
            steps: what the steps of the answer are.
        """
        registry = self._cache.registry
        with self._executor.entered(sender, _model(registry, model)) as ticket:
            asked = await plan(registry)
            items = self._executor.run(
                ticket,
                asked.plans,
                partial(answer, asked),
                peak_bytes=asked.peak_bytes,
                held_bytes=asked.held_bytes,
                step_operations=asked.floating_point_operations // max(asked.n_steps, 1),
                steps=steps,
                n_steps=asked.n_steps,
            )
            async with aclosing(items):
                async for ready in items:
                    yield cast("Sequence[T | RunSummary]", ready)  # nothing is made of it

    def loads(self) -> tuple[DeviceLoad, ...]:
        """What waits for each device that has been used."""
        return self._executor.loads()

    def readings(self) -> tuple[DeviceReading, ...]:
        """What each device does that has been used, or that a model is for. May be called on any thread."""
        return self._executor.readings()

    def observe(self, observer: OnWork) -> None:
        """From now on, tell *observer* what devices have done."""
        self._executor.observers.append(observer)

    def use_grants(self, grants: Grants) -> None:
        """From now on, callers are granted what *grants* says."""
        self._executor.grants = grants

    async def close(self) -> None:
        """Refuse what waits, stop the workers and drop what is kept."""
        await self._executor.close()
        self._graphs.close()


def _model(registry: Registry, model: str) -> ModelEntry | None:
    """The entry of a model; None if there is no such model, which planning reports."""
    try:
        return registry.model_entry(model)
    except DstError:
        return None
