"""Makes plans, on the event loop if no file has to be read, else on a thread, and keeps recent ones."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.selections import PositionList
from dst_grpc.engine.cancellation import Cancellation, never_cancelled
from dst_grpc.pipeline.attribute_planner import plan_attribute
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.explain_planner import plan_explain, plan_top_k
from dst_grpc.pipeline.graph_planner import plan_graph
from dst_grpc.pipeline.graph_probe_planner import plan_probe
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.planner import make_plan, model_ref
from dst_grpc.pipeline.stepped_plan import SteppedPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.attribute_requests import AttributeRequest
    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.circuit import CircuitRequest
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.graph import GraphRequest
    from dst_grpc.domain.graph_probes import ProbeGraphRequest
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.patch import PatchRequest
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.domain.sender import Sender
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.attribute_planner import AttributePlan
    from dst_grpc.pipeline.circuit_planner import CircuitPlan
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.graph_planner import GraphPlan
    from dst_grpc.pipeline.graph_probe_planner import ProbePlan
    from dst_grpc.pipeline.patch_planner import PatchPlan
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.whole_graph import WholeGraph

T = TypeVar("T")
SteppedT = TypeVar("SteppedT", bound=SteppedPlan[Any])

_KEPT_BYTES = 64 << 20
_THREADS = 4
_LONG = 100
"""Entries of lists, or `_CHARACTERS` characters each, that take longer to plan than a change of threads."""
_VERY_LONG = 2000
"""Those that take too long to be looked up on the event loop."""
_CHARACTERS = 50
_MAX_REQUESTS = 2
"""By which a plan is found: programs resolve what they then derive."""
_PLAN_BYTES, _ENTRY_BYTES, _SCALAR_BYTES, _CHANGE_BYTES = 6000, 50, 1800, 400
"""What a plan takes, and each number or text of a list, derived scalar, and ablation or intervention of it; about."""


class _Kept:
    """A plan that is kept."""

    __slots__ = ("found_by", "plan", "requests", "was_used")

    def __init__(self, found_by: Hashable, plan: Plan) -> None:
        self.found_by, self.plan = found_by, plan
        self.requests: list[DeriveRequest] = []
        """The latest requests that it was used for. As long as they are kept, their identities are nobody else's."""
        self.was_used = False
        """Whether it was used since it was last considered for being forgotten."""


class Planning:
    """Makes plans with the current registry, and keeps the most recent of Derive and Resolve. Used on the event loop
    only."""

    def __init__(self, *, shared: bool = False, store_bytes: int = 0, most_bytes: int = _KEPT_BYTES) -> None:
        """Start empty.

        Args:
            shared: whether a caller finds plans of others' requests: how long planning takes tells it what they ask.
            store_bytes: budget of the stores that will keep the recordings of runs.
            most_bytes: of the plans to keep.
        """
        self._shared, self._store_bytes, self._most_bytes = shared, store_bytes, most_bytes
        self._threads = Threads("dst-plan", at_once=_THREADS)
        self._registry: Registry | None = None
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        """Plans made with that registry."""
        self._of_request: dict[tuple[Hashable, int], _Kept] = {}
        """The same, by what they are found by and the identities of requests: to hash and compare those takes longer
        than the rest."""
        self.kept_bytes = 0
        """About how much they take."""

    async def plan(
        self,
        request: DeriveRequest,
        registry: Registry,
        known: Violations | None = None,
        *,
        root: str = "",
        needs_prompt: bool = False,
        records_besides: bool = True,
        caller: Caller = LOCAL,
    ) -> Plan:
        """As `make_plan`, but kept for equal requests, unless the plan depends on more than the request. What is
        recorded besides is so only if it *records_besides*."""
        if registry is not self._registry:
            self._registry = registry
            self._kept.clear()
            self._of_request.clear()
            self.kept_bytes = 0
        if known is None and (request.prompt is not None or not needs_prompt):
            plan = self.kept(request, registry, caller, records_besides=records_besides)
            if plan is not None:
                return plan

        def make(check: Check = never_cancelled) -> Plan:
            return make_plan(
                request,
                registry,
                known,
                root=root,
                needs_prompt=needs_prompt,
                store_bytes=self._store_bytes if records_besides else 0,
                check=check,
            )

        def prepared(check: Check) -> Plan:
            return _prepared(make(check))

        is_refused = (known is not None and known.fields) or (needs_prompt and request.prompt is None)
        if is_refused or _is_long(request, _VERY_LONG) or _names_files(request) or _brings_numbers(request):
            return await self._made(prepared, caller)
        question = self._found_by(caller, records_besides), request.model, request.question
        kept = self._kept.get(question)
        if kept is not None:
            self._note_use(kept, request)
            return kept.plan
        if registry.model_entry(model_ref(request)).has_quick_tokenizer and not _is_long(request, _LONG):
            plan = make()  # cheaper than a thread
        else:
            plan = await self._made(prepared, caller)
        if registry is self._registry:
            self._keep(question, _Kept(question[0], plan), request)
        return plan

    def kept(
        self, request: DeriveRequest, registry: Registry, caller: Caller, *, records_besides: bool = True
    ) -> Plan | None:
        """The plan of *request*, if this very request was planned so for *caller* before, with *registry*."""
        found_by = self._found_by(caller, records_besides)
        kept = self._of_request.get((found_by, id(request))) if registry is self._registry else None
        if kept is None:
            return None
        kept.was_used = True
        return kept.plan

    def _found_by(self, caller: Caller, records_besides: bool) -> Hashable:
        """What plans have in common that *caller* may find."""
        return None if self._shared else caller.name, records_besides

    def _note_use(self, kept: _Kept, request: DeriveRequest) -> None:
        """Let the plan be found by *request* too, which is equal to those that it was used for."""
        kept.was_used = True
        if (kept.found_by, id(request)) in self._of_request:
            return
        if len(kept.requests) >= _MAX_REQUESTS:
            del self._of_request[kept.found_by, id(kept.requests.pop(0))]
        kept.requests.append(request)
        self._of_request[kept.found_by, id(request)] = kept

    def _keep(self, question: Hashable, new: _Kept, request: DeriveRequest) -> None:
        """Keep a plan, and those before it for which there is room: what was not used for longest goes first."""
        if question in self._kept:  # an equal request was planned at the same time
            self._forget(self._kept.pop(question))
        self._kept[question] = new
        self._note_use(new, request)
        self.kept_bytes += bytes_of(new.plan)
        while self.kept_bytes > self._most_bytes:
            oldest, kept = self._kept.popitem(last=False)
            if kept.was_used:
                kept.was_used = False
                self._kept[oldest] = kept
            else:
                self._forget(kept)

    def _forget(self, kept: _Kept) -> None:
        """Note that a plan is kept no more."""
        self.kept_bytes -= bytes_of(kept.plan)
        for request in kept.requests:
            del self._of_request[kept.found_by, id(request)]

    async def with_tensors(self, plans: Sequence[Plan], sender: Sender, roots: Sequence[str]) -> tuple[Plan, ...]:
        """As the function of the same name."""
        source = sender.tensors
        handles = dict.fromkeys(handle for plan in plans for handle in plan.tensor_handles)
        if not handles:
            return tuple(plans)
        if source is None or not any(_is_long(plan.request, _LONG) for plan in plans):
            return with_tensors(plans, source, roots)
        found = {handle: source.get(handle) for handle in handles}
        return await self._threads.run(_filled, plans, found, roots, caller=sender.caller.name)

    async def plan_top_k(
        self, request: TopKRequest, registry: Registry, known: Violations | None, caller: Caller
    ) -> ExplainPlan:
        """As the function of the same name."""
        make = partial(_made_of_many, plan_top_k, request, registry, known, self._store_bytes)
        return await self._made(make, caller)

    async def plan_explain(
        self, request: ExplainRequest, registry: Registry, known: Violations | None, caller: Caller
    ) -> ExplainPlan:
        """As the function of the same name."""
        return await self._made(partial(_made_of_many, plan_explain, request, registry, known), caller)

    async def plan_attribute(
        self, request: AttributeRequest, registry: Registry, known: Violations | None, caller: Caller
    ) -> AttributePlan:
        """As the function of the same name."""
        return await self._made(partial(_costed, partial(plan_attribute, request, registry, known)), caller)

    async def plan_patch(
        self, request: PatchRequest, registry: Registry, known: Violations | None, sender: Sender
    ) -> PatchPlan:
        """As the function of the same name, then `with_tensors`."""
        return await self._stepped(partial(plan_patch, request, registry, known), sender)

    async def plan_circuit(
        self, request: CircuitRequest, registry: Registry, known: Violations | None, sender: Sender
    ) -> CircuitPlan:
        """As the function of the same name, then `with_tensors`."""
        return await self._stepped(partial(plan_circuit, request, registry, known), sender)

    async def plan_graph(
        self,
        request: GraphRequest,
        registry: Registry,
        known: Violations | None,
        limit_bytes: int,
        sender: Sender,
    ) -> GraphPlan:
        """As the function of the same name, then `with_tensors`."""
        return await self._stepped(partial(plan_graph, request, registry, known, limit_bytes=limit_bytes), sender)

    async def plan_probe(
        self,
        request: ProbeGraphRequest,
        graph: WholeGraph,
        registry: Registry,
        known: Violations | None,
        caller: Caller,
    ) -> ProbePlan:
        """As the function of the same name."""
        return await self._made(partial(_costed, partial(plan_probe, request, graph, registry, known)), caller)

    async def _stepped(self, plan: Callable[..., SteppedT], sender: Sender) -> SteppedT:
        """What *plan* plans, with the tensors of *sender*."""
        planned = await self._made(partial(_costed, plan), sender.caller)
        handles, tensors = planned.tensor_handles, sender.tensors
        if not handles:
            return planned
        found = None if tensors is None else {handle: tensors.get(handle) for handle in handles}
        return await self._threads.run(_with_tensors, planned, found, caller=sender.caller.name)

    async def _made(self, make: Callable[..., T], caller: Caller) -> T:
        """What *make* makes on a thread in the turn of *caller*, until whoever waits for it is gone."""
        wanted = Cancellation()
        try:
            return await self._threads.run(partial(make, check=wanted.check), caller=caller.name)
        finally:
            wanted.cancel()


def _made_of_many(make: Callable[..., ExplainPlan], *arguments: object, check: Check) -> ExplainPlan:
    asked = make(*arguments, check=check)
    for plan in asked.plans:
        _prepared(plan)
    return asked


def _costed(plan: Callable[..., SteppedT], check: Check) -> SteppedT:
    return _with_costs(plan(check=check))


def _with_tensors(planned: SteppedT, found: TensorSource | None) -> SteppedT:
    return _with_costs(planned.with_tensors(found))


def _with_costs(planned: SteppedT) -> SteppedT:
    """*planned*, with what would take long to compute later."""
    _ = planned.peak_bytes, planned.floating_point_operations, planned.n_steps, planned.tensor_handles
    return planned


def _filled(plans: Sequence[Plan], found: TensorSource, roots: Sequence[str]) -> tuple[Plan, ...]:
    return tuple(map(_prepared, with_tensors(plans, found, roots)))


def _prepared(plan: Plan) -> Plan:
    """*plan*, with what would take long to compute later."""
    _ = plan.question_digest, plan.run.key, plan.run.forward.key, plan.tensor_handles
    return plan


def _is_long(request: DeriveRequest, most: int) -> bool:
    """Whether planning *request* takes a while: there is much to tokenize, or much that it lists, more than *most*."""
    n_changes = len(request.interventions) + sum(len(source.interventions) for source in request.source_runs)
    n_listed = len(request.derived_scalars) + len(request.ablation_specs) + n_changes
    return n_listed > most or sum(_counts(request)) > most


def bytes_of(plan: Plan) -> int:
    """About how many bytes *plan* takes, with its request and its description."""
    n_scalars, n_changes, n_entries = _counts(plan.request)
    n_entries += 3 * len(plan.token_ids)
    return _PLAN_BYTES + _SCALAR_BYTES * n_scalars + _CHANGE_BYTES * n_changes + _ENTRY_BYTES * n_entries


def _counts(request: DeriveRequest) -> tuple[int, int, int]:
    """How much *request* lists: derived scalars; ablations and interventions; and numbers and texts, of which every
    `_CHARACTERS` characters count as one."""
    interventions = list(_interventions(request))
    n_changes = len(request.ablation_specs) + len(interventions)
    n_entries = sum(len(one.action.readings) for one in interventions)
    for one in interventions:
        n_entries += sum(len(axis.positions) for axis in one.at.axes if isinstance(axis, PositionList))
    for prompt in (request.prompt, *(source.prompt for source in request.source_runs)):
        if prompt is not None:
            n_entries += len(prompt.text or "") // _CHARACTERS + len(prompt.token_ids or ()) // 4
    loss = request.loss_fn_config
    if loss is not None:
        texts = (*loss.target_tokens, *loss.distractor_tokens)
        n_entries += len(texts) + sum(map(len, texts)) // _CHARACTERS
        n_entries += len(loss.target_token_ids) + len(loss.distractor_token_ids)
    configs = (request.config, *(spec.config for spec in request.derived_scalars))
    n_entries += sum(len(config.layer_indices or ()) for config in configs if config is not None)
    return len(request.derived_scalars), n_changes, n_entries + len(request.autoencoders)


def _interventions(request: DeriveRequest) -> Iterator[Intervention]:
    """All interventions of *request*, those of its source runs too."""
    yield from request.interventions
    for source in request.source_runs:
        yield from source.interventions


def _names_files(request: DeriveRequest) -> bool:
    """Whether *request* names autoencoders by path: their files are read, and may change before the next request."""
    configs = (request.config, *(spec.config for spec in request.derived_scalars))
    return any(config is not None and config.autoencoder_config is not None for config in configs)


def _brings_numbers(request: DeriveRequest) -> bool:
    """Whether *request* holds inline tensors: they may be too large to keep."""
    return any(tensor.tensor is not None for one in _interventions(request) for tensor in one.action.tensors.values())
