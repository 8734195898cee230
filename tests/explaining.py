"""Explaining on tiny models without server, registry or cache: plan, run, and collect every part."""

from __future__ import annotations

from typing import Any

from dst_grpc.domain.explain import ExplainRequest, ExplainRun, TopKRequest
from dst_grpc.domain.explanations import Explanation
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import Violations
from dst_grpc.pipeline.explain_plan import ExplainPlan
from dst_grpc.pipeline.explain_planner import plan_explain, plan_top_k
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.run import run
from tests import models
from tests.explanations import collected


def plan(world: models.World, request: ExplainRequest | TopKRequest, known: Violations | None = None) -> ExplainPlan:
    """The plan of *request*."""
    if isinstance(request, ExplainRequest):
        return plan_explain(request, world.registry, known)
    return plan_top_k(request, world.registry, known)


def explain(world: models.World, request: ExplainRequest | TopKRequest) -> Explanation:
    """The whole answer to *request*."""
    asked = plan(world, request)
    used = {info.name for one in asked.plans for info in one.autoencoders}
    sets = {name: one for name, one in world.sets.items() if name in used}
    answer = ExplanationAnswer(asked, run(asked.plans, world.decoder, sets), world.context, sets)
    parts = [part for parts in answer.steps() for part in parts]
    return collected([*parts, answer.summary()], request.request_id, len(asked.plans))


def request(*tokens: int, **fields: Any) -> ExplainRequest:
    """A request to explain one run: the usual prompt, or *tokens*, and the usual loss; *fields* of run or request."""
    of_run = {name: fields.pop(name) for name in list(fields) if name in ExplainRun.__dataclass_fields__}
    prompt = Prompt(token_ids=tokens or models.TOKENS)
    run_fields = {"prompt": prompt, "loss_fn_config": models.LOSS, **of_run}
    return ExplainRequest(**{"model": "tiny", "runs": (ExplainRun(**run_fields),), **fields})
