"""Makes plans, on the event loop if no file has to be read, else on a thread, and keeps recent ones."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.callers import LOCAL
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.explain_planner import plan_explain, plan_top_k
from dst_grpc.pipeline.planner import make_plan, model_ref

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.circuit import CircuitRequest
    from dst_grpc.domain.explain import ExplainRequest, TopKRequest
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.circuit_planner import CircuitPlan
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.plan import Plan

_PLANS_KEPT = 256
_THREADS = 4
_LONG_TEXT = 10_000
"""Characters whose tokens take longer to find than a thread to start."""
_LONG_LIST = 500


class Planning:
    """Makes plans with the current registry, and keeps the most recent of Derive and Resolve. Used on the event loop
    only."""

    def __init__(self, *, shared: bool = False) -> None:
        """Start empty. A caller finds only plans of its own requests, unless all are *shared*: how long planning takes
        would tell it what others ask."""
        self._shared = shared
        self._threads = Threads("dst-plan", at_once=_THREADS)
        self._registry: Registry | None = None
        self._kept: OrderedDict[Hashable, Plan] = OrderedDict()
        """Plans made with that registry."""

    async def plan(
        self,
        request: DeriveRequest,
        registry: Registry,
        known: Violations | None = None,
        *,
        root: str = "",
        needs_prompt: bool = False,
        caller: Caller = LOCAL,
    ) -> Plan:
        """As `make_plan`, but kept for equal requests, unless the plan depends on more than the request."""
        if registry is not self._registry:
            self._registry = registry
            self._kept.clear()
        make = partial(make_plan, request, registry, known, root=root, needs_prompt=needs_prompt)
        is_refused = (known is not None and known.fields) or (needs_prompt and request.prompt is None)
        if is_refused or _names_files(request) or _brings_numbers(request):
            return await self._threads.run(make)
        question = None if self._shared else caller.name, request.model, request.question
        plan = self._kept.get(question)
        if plan is not None:
            self._kept.move_to_end(question)
            return plan
        if registry.model_entry(model_ref(request)).has_quick_tokenizer and not _is_long(request):
            plan = make()  # cheaper than a thread
        else:
            plan = await self._threads.run(make)
        if registry is self._registry:
            self._kept[question] = plan
            if len(self._kept) > _PLANS_KEPT:
                self._kept.popitem(last=False)
        return plan

    async def plan_top_k(self, request: TopKRequest, registry: Registry, known: Violations | None) -> ExplainPlan:
        """As the function of the same name."""
        return await self._threads.run(plan_top_k, request, registry, known)

    async def plan_explain(self, request: ExplainRequest, registry: Registry, known: Violations | None) -> ExplainPlan:
        """As the function of the same name."""
        return await self._threads.run(plan_explain, request, registry, known)

    async def plan_circuit(self, request: CircuitRequest, registry: Registry, known: Violations | None) -> CircuitPlan:
        """As the function of the same name."""
        return await self._threads.run(plan_circuit, request, registry, known)


def _is_long(request: DeriveRequest) -> bool:
    """Whether planning *request* takes a while: there is much to tokenize, or much that it lists."""
    interventions = list(_interventions(request))
    texts, n_listed = 0, len(request.derived_scalars) + len(request.ablation_specs) + len(interventions)
    n_listed += sum(len(one.action.readings) for one in interventions)
    for prompt in (request.prompt, *(source.prompt for source in request.source_runs)):
        if prompt is not None:
            texts += len(prompt.text or "")
            n_listed += len(prompt.token_ids or ())
    if request.loss_fn_config is not None:
        tokens = (*request.loss_fn_config.target_tokens, *request.loss_fn_config.distractor_tokens)
        texts += sum(map(len, tokens))
        n_listed += len(tokens)
    return texts > _LONG_TEXT or n_listed > _LONG_LIST


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
