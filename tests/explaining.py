"""Explaining on tiny models without server, registry or cache: plan, run, and collect every part."""

from __future__ import annotations

from functools import partial
from typing import Any

from dst_grpc.client._explanations import ExplanationCollector
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, TopKRequest
from dst_grpc.domain.explanations import Explanation, ExplanationPart, PartKind, RunsTrailer
from dst_grpc.domain.requests import Prompt
from dst_grpc.pipeline.explain import Explainer
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.question import Question, explain_question, top_k_question
from dst_grpc.pipeline.run import run
from tests import models


def itself(part: ExplanationPart) -> ExplanationPart:
    return part


def question(world: models.World, request: ExplainRequest | TopKRequest) -> Question:
    """The plan of *request*."""
    plan = partial(make_plan, catalogue=world.catalogue)
    return explain_question(request, plan) if isinstance(request, ExplainRequest) else top_k_question(request, plan)


def explain(world: models.World, request: ExplainRequest | TopKRequest) -> Explanation:
    """The whole answer to *request*."""
    asked = question(world, request)
    used = {info.name for plan in asked.plans for info in plan.autoencoders}
    sets = {name: one for name, one in world.sets.items() if name in used}
    explainer = Explainer(asked, run(asked.plans, world.decoder, sets), world.context, sets)
    collector = ExplanationCollector(len(asked.plans), itself)
    parts = [part for parts in explainer.steps() for part in parts]
    for part in parts:
        assert collector.add(part) is None
    summary = explainer.summary()
    trailer = RunsTrailer(frame_count=len(parts) + 1, statistics=summary.statistics, provenance=summary.provenance)
    found = collector.add(ExplanationPart(kind=PartKind.TRAILER, value=trailer, request_id=request.request_id))
    assert found is not None
    return found


def request(*tokens: int, **fields: Any) -> ExplainRequest:
    """A request to explain one run: the usual prompt, or *tokens*, and the usual loss; *fields* of run or request."""
    of_run = {name: fields.pop(name) for name in list(fields) if name in ExplainRun.__dataclass_fields__}
    prompt = Prompt(token_ids=tokens or models.TOKENS)
    run_fields = {"prompt": prompt, "loss_fn_config": models.LOSS, **of_run}
    return ExplainRequest(**{"model": "tiny", "runs": (ExplainRun(**run_fields),), **fields})
