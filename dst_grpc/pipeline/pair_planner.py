"""Planning of pairs of prompts: each prompt is planned as a DeriveRequest, so that what is wrong with it is reported at
the field that it came from. Pure; reads no weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.causal.attribution import Pair
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.domain.pairs import SOURCE, Alternative, Orientation
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.errors import DstError, require
from dst_grpc.pipeline.findings import Findings, SourceMap
from dst_grpc.pipeline.losses import by_ids
from dst_grpc.pipeline.planner import plan_run
from dst_grpc.pipeline.stepped_plan import SteppedPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.interventions import AblationSpec
    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.domain.pairs import PromptPair
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.scalars.origins import LossOrigin

    class AboutMean(Protocol):
        """A request whose runs may read a mean over reference prompts."""

        @property
        def alternative(self) -> Alternative:
            """What takes the place of an activation."""

        @property
        def reference(self) -> tuple[Prompt, ...]:
            """The prompts of the mean."""

    class AboutPairs(Protocol):
        """A request about pairs of prompts."""

        @property
        def pairs(self) -> tuple[PromptPair, ...]:
            """The pairs."""

        @property
        def model(self) -> str | None:
            """Name or handle of the model."""

        @property
        def loss_fn_config(self) -> LossFnConfig | None:
            """The metric of pairs without one of their own."""

        @property
        def autoencoders(self) -> tuple[str, ...]:
            """Names or handles of autoencoders to splice into the runs."""

        @property
        def orientation(self) -> Orientation:
            """Which prompt of a pair is the base run."""


Tokens = tuple[int, ...]


def length_of_mean(pair: Pair, alternative: Alternative) -> int | None:
    """How many tokens the prompts have whose mean an *alternative* has for a pair; None for any number."""
    return len(pair.base) if alternative is Alternative.MEAN_BY_LENGTH else None


R = TypeVar("R", AttributeRequest, CircuitRequest, PatchRequest)

MAX_METRIC_TOKENS = 100_000
"""Tokens that the metrics of all pairs name, those of the request's once for each pair that has no other."""
BLOCK_TOKENS = 512
"""Tokens of the pairs that are recorded together, pads included, unless a single pair has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsPlan(SteppedPlan[R]):
    """A request about pairs, checked and completed; its run is the first clean one."""

    pairs: tuple[Pair, ...]
    """The prompts that are run, and those that values are taken from, if there are any."""
    reference: tuple[tuple[int, ...], ...] = ()
    """The prompts of a mean."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, (*(pair.base for pair in self.pairs), *self.reference)))

    def reference_batches(self, length: int | None) -> Iterator[list[Tokens]]:
        """The reference prompts of *length*, or all of them, the longest first, as many at once as pairs are
        recorded together."""
        prompts = sorted((one for one in self.reference if length in {None, len(one)}), key=len, reverse=True)
        step = max(BLOCK_TOKENS // self.longest, 1)
        for start in range(0, len(prompts), step):
            yield prompts[start : start + step]

    @property
    @abstractmethod
    def pairs_of_a_block(self) -> int:
        """How many pairs are recorded together."""

    def blocks(self) -> Iterator[range]:
        """Places of pairs that are recorded together."""
        step = self.pairs_of_a_block
        for start in range(0, len(self.pairs), step):
            yield range(start, min(start + step, len(self.pairs)))


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A pair whose prompts are known."""

    pair: Pair
    """The pair; without corrupt prompt, it has its base prompt as source."""
    metric: LossOrigin
    """The metric of the base prompt."""
    path: str
    """The pair in the request."""
    metric_path: str
    """The metric in the request."""


@dataclass(frozen=True, slots=True)
class PlannedPairs:
    """Pairs whose prompts are known: at least one, and all if nothing was found wrong."""

    plan: Plan
    """The plan of the first clean run, for what is the same of all."""
    each: tuple[PlannedPair, ...]
    """The pairs, and where they are in the request."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs."""
        return tuple(one.pair for one in self.each)

    def check_equal_lengths(self, findings: Findings, why: str) -> None:
        """Note pairs whose prompts are not as long as those of the first."""
        length = len(self.pairs[0].base)
        for one in self.each:
            problem = f"has {len(one.pair.base)} tokens, and that of the first pair {length}: {why}"
            findings.check(len(one.pair.base) == length, f"{one.path}.clean", problem)


def _of_pair(loss: LossOrigin, asked: LossFnConfig | None, *, is_noising: bool) -> LossOrigin:
    """*loss* of the base prompt; a divergence is one from the run that is *asked* for, by default the clean one."""
    if loss.reference is None or asked is None:
        return loss
    run = asked.reference_run or (UNCHANGED if is_noising else SOURCE)
    return replace(loss, reference=(run, loss.reference[1]))


class PairPlanner:
    """Plans the prompts of one request about pairs, and notes what is wrong."""

    def __init__(
        self,
        request: AboutPairs,
        registry: Registry,
        findings: Findings,
        *,
        ablation_specs: tuple[AblationSpec, ...] = (),
    ) -> None:
        """Plan nothing yet; *ablation_specs* are those of all runs."""
        self._request, self._registry, self._findings = request, registry, findings
        self._ablation_specs = ablation_specs
        self._ablated: int | None = None
        """Tokens of the shortest prompt that was planned with them: if they fit that, they fit all longer ones."""
        self._plans: dict[tuple[Prompt, LossFnConfig | None], Plan | None] = {}
        self._metrics: dict[LossFnConfig, LossFnConfig | None] = {}
        """Metrics by the ids of their tokens; None for those that name none of the model's."""

    def plan(self) -> PlannedPairs | None:
        """The pairs; None if something is wrong with every one of them. Prompts of a pair must be equally long."""
        first: Plan | None = None
        found: list[PlannedPair] = []
        if not self._check_metrics():
            return None
        for i, pair in enumerate(self._request.pairs):
            path = f"pairs[{i}]"
            metric = pair.loss_fn_config or self._request.loss_fn_config
            at = "loss_fn_config" if pair.loss_fn_config is None else f"{path}.loss_fn_config"
            of_run = None if metric is None else replace(metric, reference_run=None)
            clean = self._planned(pair.clean, f"{path}.clean", of_run, at)
            corrupt = None if pair.corrupt is None else self._planned(pair.corrupt, f"{path}.corrupt", of_run, at)
            if clean is None or (corrupt is None and pair.corrupt is not None):
                continue
            first = first or self._with_ablations(clean, f"{path}.clean")
            if corrupt is not None:
                self._check_lengths(clean, corrupt, path)
            is_noising = corrupt is None or self._request.orientation is Orientation.NOISING
            base, source = (clean, corrupt or clean) if is_noising else (require(corrupt), clean)
            loss = _of_pair(require(base.loss), metric, is_noising=is_noising)
            self._findings.check(loss.needs_logits, at, "must be of logits")
            found.append(PlannedPair(Pair(base.token_ids, source.token_ids, loss), loss, path, at))
        self._check_ablations([(one.pair.base, f"{one.path}.clean") for one in found])
        return None if first is None else PlannedPairs(first, tuple(found))

    def reference(self, request: AboutMean, planned: PlannedPairs) -> tuple[tuple[int, ...], ...]:
        """The tokens of the prompts of a mean. A mean by position must reach the last token of every pair."""
        plans = [self._planned(prompt, f"reference[{i}]") for i, prompt in enumerate(request.reference)]
        found = tuple(plan.token_ids for plan in plans if plan is not None)
        self._check_ablations([(plan.token_ids, f"reference[{i}]") for i, plan in enumerate(plans) if plan is not None])
        if request.alternative is Alternative.MEAN_BY_POSITION and 0 < len(found) == len(plans):
            longest = max(map(len, found))
            for one in planned.each:
                problem = f"has {len(one.pair.base)} tokens, and no prompt of the mean has more than {longest}"
                self._findings.check(len(one.pair.base) <= longest, f"{one.path}.clean", problem)
        if request.alternative is Alternative.MEAN_BY_LENGTH and 0 < len(found) == len(plans):
            lengths = set(map(len, found))
            for one in planned.each:
                problem = f"has {len(one.pair.base)} tokens, and no prompt of the mean has as many"
                self._findings.check(len(one.pair.base) in lengths, f"{one.path}.clean", problem)
        return found

    def _planned(
        self, prompt: Prompt, path: str, metric: LossFnConfig | None = None, metric_path: str = ""
    ) -> Plan | None:
        """The plan of one prompt's run; None if something is wrong with it."""
        findings = self._about(path, metric_path)
        if findings.holds_stand_in("prompt"):
            return None
        if (prompt, metric) not in self._plans:
            asked = DeriveRequest(prompt=prompt, model=self._request.model, autoencoders=self._request.autoencoders)
            if metric is not None and not findings.holds_stand_in("loss_fn_config"):
                asked = replace(asked, loss_fn_config=self._by_ids(metric, findings))
            plan = plan_run(asked, self._registry, findings)
            # A pair whose metric names no tokens is not planned, but what else is wrong with its prompts is noted.
            self._plans[prompt, metric] = plan if (metric is None) == (asked.loss_fn_config is None) else None
            self._findings.count += findings.count
        return self._plans[prompt, metric]

    def _about(self, path: str, metric_path: str = "") -> Findings:
        """The findings about the run of the prompt at *path*."""
        shared = {name: name for name in ("model", "autoencoders", "ablation_specs")}
        moved = {"prompt": path, "loss_fn_config": metric_path, **shared}
        return self._findings.about(SourceMap(root=path, moved=moved))

    def _by_ids(self, metric: LossFnConfig, findings: Findings) -> LossFnConfig | None:
        """*metric* by the ids of its tokens, which are looked up once for all prompts; None if they are none."""
        if metric not in self._metrics:
            try:
                model = self._registry.model_entry(self._request.model or "")
            except DstError:
                return metric  # planning says so
            self._metrics[metric] = by_ids(metric, findings, model.tokenizer(), model.dimensions.vocab_size)
        return self._metrics[metric]

    def _check_metrics(self) -> bool:
        """Whether the metrics name no more tokens than they may; notes it if they do."""
        metrics = [pair.loss_fn_config or self._request.loss_fn_config for pair in self._request.pairs]
        n_tokens = sum(one.n_tokens for one in metrics if one is not None)
        problem = f"name {n_tokens} tokens in their metrics, and may name {MAX_METRIC_TOKENS} together"
        self._findings.check(n_tokens <= MAX_METRIC_TOKENS, "pairs", problem)
        return n_tokens <= MAX_METRIC_TOKENS

    def _check_ablations(self, prompts: Sequence[tuple[Tokens, str]]) -> None:
        """Note ablations that do not fit the shortest of *prompts*, with their paths, or of those before."""
        if self._ablated is None or not prompts:
            return
        tokens, path = min(prompts, key=lambda one: len(one[0]))
        if len(tokens) < self._ablated:
            self._ablate(DeriveRequest(prompt=Prompt(token_ids=tokens), model=self._request.model), path)

    def _with_ablations(self, plan: Plan, path: str) -> Plan:
        """*plan*, of the prompt at *path*, with the ablations; without those if they do not fit, which is noted."""
        return self._ablate(plan.request, path) or plan if self._ablation_specs else plan

    def _ablate(self, asked: DeriveRequest, path: str) -> Plan | None:
        """The plan of *asked*, of the prompt at *path*, with the ablations; None if they do not fit."""
        findings = self._about(path)
        asked = replace(asked, ablation_specs=self._ablation_specs, autoencoders=self._request.autoencoders)
        plan = plan_run(asked, self._registry, findings)
        self._ablated = 0 if plan is None else len(plan.token_ids)
        self._findings.count += findings.count
        return plan

    def _check_lengths(self, clean: Plan, corrupt: Plan, path: str) -> None:
        n_clean, n_corrupt = len(clean.token_ids), len(corrupt.token_ids)
        problem = f"has {n_corrupt} tokens, and the clean prompt {n_clean}: positions must correspond"
        self._findings.check(n_clean == n_corrupt, f"{path}.corrupt", problem)
