"""Planning of Graph: names, tokens and targets are checked before anything is run. Pure; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.graph import BeginToken, GraphRequest, GraphSource
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import DstError, InvalidRequest, Reason, require
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion, MostProbable, begun
from dst_grpc.pipeline.cost import costed
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.graph_sources import latent_sets
from dst_grpc.pipeline.lookup import Lookup
from dst_grpc.pipeline.planner import plan_run
from dst_grpc.pipeline.stepped_plan import SteppedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.graph import GraphTarget
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.plan import Plan

_CHAT_OF_GEMMA_3 = (2, 105, 2364, 107)
"""The tokens that prompts of Gemma 3's chat models begin with, at which circuit-tracer has no features either."""
_USUAL_FEATURES = 1000
"""About how many features a graph has whose size is not limited."""
_USUAL_BLOCK = 64
"""About how many rows a step computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan(SteppedPlan[GraphRequest]):
    """A request of Graph, checked and completed, its tensors looked up."""

    transcoders: AutoencoderEntry | None
    """The transcoders; None if features are no units."""
    autoencoders: tuple[AutoencoderEntry, ...]
    """The autoencoders whose latents are units."""
    targets: tuple[ChosenTarget, ...]
    """The targets, but for directions that are named by a handle; empty = the most probable tokens."""
    is_begin_token_added: bool
    """Whether the first token was put before the request's prompt."""
    n_zeroed: int
    """Tokens, from the first, at which transcoders have neither features nor errors."""
    limit_bytes: int
    """Memory that the graph and its computation may take, without weights."""

    @property
    def question(self) -> GraphQuestion:
        """What is computed."""
        request = self.request
        automatic = MostProbable(max_n_logits=request.max_n_logits, desired_logit_prob=request.desired_logit_prob)
        return GraphQuestion(
            token_ids=self.plan.token_ids,
            targets=self.targets or automatic,
            max_feature_nodes=request.most_feature_nodes,
            batch_size=request.batch_size,
            update_interval=request.update_interval,
            n_zeroed=self.n_zeroed,
            memory_bytes=self.limit_bytes,
        )

    @property
    def peak_bytes(self) -> int:
        """What it may take: how many units are active, and so what it needs, is not known yet."""
        return max(self.limit_bytes, self.plan.cost.peak_bytes)

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole: of each row those of a pass."""
        return self.plan.cost.floating_point_operations * self._n_rows

    @property
    def n_steps(self) -> int:
        """About how many blocks of rows there are."""
        return 1 + self._n_rows // _USUAL_BLOCK

    @property
    def _n_rows(self) -> int:
        return min(self.request.most_feature_nodes or _USUAL_FEATURES, _USUAL_FEATURES) + len(self.targets)

    @property
    def tensor_handles(self) -> Sequence[str]:
        """Handles of directions."""
        directions = (target.direction for target in self.request.targets)
        return [one.handle for one in directions if one is not None and one.handle is not None]

    def with_tensors(self, tensors: TensorSource | None) -> GraphPlan:
        """The same plan with the directions that the request names by a handle.

        Raises:
            InvalidRequest: if they do not fit the model.
            NotFound: for an unknown handle.
        """
        found = list(self.targets)
        findings = Findings()
        for i, target in enumerate(self.request.targets):
            if target.direction is None or target.direction.handle is None:
                continue
            if tensors is None:
                raise InvalidRequest.of(f"targets[{i}].direction.handle", "must be absent: no tensors are kept here")
            stored = replace(target, direction=tensors.get(target.direction.handle))
            found[i] = _direction(stored, f"targets[{i}].direction", self.plan.model, findings)
        if findings.count:
            raise findings.error()
        return replace(self, targets=tuple(found))


def plan_graph(
    request: GraphRequest,
    registry: Registry,
    known: Violations | None = None,
    *,
    limit_bytes: int,
    check: Check = never_cancelled,
) -> GraphPlan:
    """Plan *request*.

    Args:
        request: the request.
        registry: the models, transcoders and autoencoders that can be loaded.
        known: violations found by reading the request's message, as for `make_plan`.
        limit_bytes: memory that a request may take that says nothing about it.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every field that a model or another field rules out, and those of *known*.
        NotFound: for an unknown model or set.
    """
    return _GraphPlanner(request, registry, Findings.after(known, check_wanted=check), limit_bytes).plan()


def n_zeroed(family: str, tokens: tuple[int, ...]) -> int:
    """How many of *tokens*, from the first, have neither features of transcoders nor errors in a model of *family*."""
    is_chat = family == "gemma3" and tokens[: len(_CHAT_OF_GEMMA_3)] == _CHAT_OF_GEMMA_3
    return len(_CHAT_OF_GEMMA_3) if is_chat else 1


class _GraphPlanner:
    """The state of planning one request."""

    def __init__(self, request: GraphRequest, registry: Registry, findings: Findings, limit_bytes: int) -> None:
        self._request, self._registry, self._findings = request, registry, findings
        self._limit_bytes = limit_bytes

    def plan(self) -> GraphPlan:
        """The plan; raises all that is wrong."""
        request, findings = self._request, self._findings
        if findings.holds_stand_in("model"):
            raise findings.error()
        sources = request.chosen_sources
        has_features, transcoders = GraphSource.FEATURES in sources, None
        try:
            model = self._registry.model_entry(request.model or "")
            lookup = Lookup(self._registry, model, findings)
            if has_features:
                transcoders = lookup.transcoders(request.transcoders, "transcoders")
            autoencoders = latent_sets(lookup, request.autoencoders, sources, findings)
        except DstError:
            if findings.known:
                raise findings.error() from None
            raise
        targets = self._targets(model)
        own = self._planned(request.prompt)
        plan = None if own is None else self._begun(own)
        if own is None or plan is None or findings.count:
            raise findings.error()
        # A pass as any other, so that values that are not finite are told of as of any other.
        last = PassType.FORWARD, plan.topology.final_residual(None).site
        handles = (*plan.handles, *lookup.handles)
        sets = autoencoders if transcoders is None else (transcoders, *autoencoders)
        run = replace(plan.also_recording([last]), shared_sets=sets, handles=handles)
        return GraphPlan(
            request=request,
            plan=costed(run, 0),
            transcoders=transcoders,
            autoencoders=autoencoders,
            targets=targets,
            is_begin_token_added=plan.token_ids != own.token_ids,
            n_zeroed=n_zeroed(model.checkpoint.family, plan.token_ids) if has_features else 0,
            limit_bytes=self._limit_bytes if request.max_bytes is None else request.max_bytes,
        )

    def _planned(self, prompt: Prompt) -> Plan | None:
        """The plan of the run of *prompt*; None if something is wrong with it, or was found wrong before."""
        return plan_run(DeriveRequest(prompt=prompt, model=self._request.model), self._registry, self._findings)

    def _begun(self, own: Plan) -> Plan | None:
        """The plan of the run of the same prompt, with the token that it is to begin with; None if it is too long."""
        if self._request.begin_token is BeginToken.AS_GIVEN:
            return own
        known = own.model.special_tokens()
        tokens, window = begun(own.token_ids, known.special, known.begin), own.model.dimensions.context_window
        if tokens == own.token_ids:
            return own
        if len(tokens) > window:
            self._findings.add(
                "prompt",
                f"has {len(own.token_ids)} tokens, and {len(tokens)} with the special token that is put before them"
                f" (begin_token), but the context window of {own.model.name!r} holds {window}",
                Reason.PROMPT_TOO_LONG,
            )
            return None
        return self._planned(Prompt(token_ids=tokens))

    def _targets(self, model: ModelEntry) -> tuple[ChosenTarget, ...]:
        """The targets; notes those that the model does not have, and tokens that are asked for twice."""
        found: list[ChosenTarget] = []
        seen: dict[int, int] = {}
        for i, target in enumerate(self._request.targets):
            path = f"targets[{i}]"
            if self._findings.holds_stand_in(path):
                continue
            if target.direction is not None:
                found.append(_direction(target, f"{path}.direction", model, self._findings))
                continue
            token = self._token(target, path, model)
            if token is None:
                continue
            first = seen.setdefault(token, i)
            self._findings.check(first == i, path, f"is the token of targets[{first}] too")
            found.append(ChosenTarget(token_id=token, weight=target.weight))
        return tuple(found)

    def _token(self, target: GraphTarget, path: str, model: ModelEntry) -> int | None:
        """The token of *target*; None if the model does not have it."""
        if target.token is not None:
            try:
                return model.tokenizer().single_token(target.token, f"{path}.token")
            except InvalidRequest as error:
                self._findings.extend(error)
                return None
        token, vocabulary = require(target.token_id), model.dimensions.vocab_size
        problem = f"must be below the vocabulary size {vocabulary}, not {token}"
        self._findings.check(token < vocabulary, f"{path}.token_id", problem)
        return token


def _direction(target: GraphTarget, path: str, model: ModelEntry, findings: Findings) -> ChosenTarget:
    """The direction of *target*; notes it if it does not fit the model, or is 0."""
    numbers = require(target.direction).tensor
    if numbers is None:
        return ChosenTarget(name=target.name, weight=target.weight)
    wanted = model.dimensions.d_model
    findings.check(numbers.shape == (wanted,), path, f"must be [{wanted}], not {list(numbers.shape)}")
    findings.check(bool(numbers.any()), path, "must not be 0 everywhere")
    return ChosenTarget(vector=torch.tensor(numbers), name=target.name, weight=target.weight)
