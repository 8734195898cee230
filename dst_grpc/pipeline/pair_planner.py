"""Planning of pairs of prompts: each prompt is planned as a DeriveRequest, so that what is wrong with it is reported at
the field that it came from. Pure; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.causal.attribution import Pair
from dst_grpc.domain.pairs import Orientation
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import require
from dst_grpc.pipeline.findings import Findings, SourceMap
from dst_grpc.pipeline.planner import plan_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.domain.pairs import PromptPair
    from dst_grpc.domain.requests import Prompt
    from dst_grpc.pipeline.plan import Plan

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


@dataclass(frozen=True, slots=True)
class PlannedPairs:
    """Pairs whose prompts are known."""

    plan: Plan
    """The plan of the first clean run, for what is the same of all."""
    pairs: tuple[Pair, ...]
    """The pairs; a pair without corrupt prompt has its base prompt as source."""


class PairPlanner:
    """Plans the pairs of one request, and notes what is wrong."""

    def __init__(self, request: AboutPairs, registry: Registry, findings: Findings) -> None:
        """Plan nothing yet."""
        self._request, self._registry, self._findings = request, registry, findings
        self._plans: dict[tuple[Prompt, LossFnConfig | None], Plan | None] = {}

    def plan(self) -> PlannedPairs | None:
        """The pairs; None if something is wrong with every one of them. Prompts of a pair must be equally long."""
        found: list[tuple[Plan, Plan | None]] = []
        for i, pair in enumerate(self._request.pairs):
            metric = pair.loss_fn_config or self._request.loss_fn_config
            at = "loss_fn_config" if pair.loss_fn_config is None else f"pairs[{i}].loss_fn_config"
            clean = self._planned(pair.clean, f"pairs[{i}].clean", metric, at)
            corrupt = None if pair.corrupt is None else self._planned(pair.corrupt, f"pairs[{i}].corrupt", metric, at)
            if clean is None or (corrupt is None and pair.corrupt is not None):
                continue
            if corrupt is not None:
                self._check_lengths(clean, corrupt, i)
            self._findings.check(require(clean.loss).needs_logits, at, "must be of logits")
            found.append((clean, corrupt))
        if not found:
            return None
        is_noising = self._request.orientation is Orientation.NOISING
        pairs = tuple(_pair(clean, corrupt, is_noising=is_noising) for clean, corrupt in found)
        return PlannedPairs(found[0][0], pairs)

    def _planned(self, prompt: Prompt, path: str, metric: LossFnConfig | None, metric_path: str) -> Plan | None:
        """The plan of one prompt's run; None if something is wrong with it."""
        moved = {"prompt": path, "model": "model", "autoencoders": "autoencoders", "loss_fn_config": metric_path}
        findings = self._findings.about(SourceMap(root=path, moved=moved))
        if findings.holds_stand_in("prompt"):
            return None
        if (prompt, metric) not in self._plans:
            asked = DeriveRequest(
                prompt=prompt,
                model=self._request.model,
                autoencoders=self._request.autoencoders,
                loss_fn_config=None if findings.holds_stand_in("loss_fn_config") else metric,
            )
            self._plans[prompt, metric] = plan_run(asked, self._registry, findings)
            self._findings.count += findings.count
        return self._plans[prompt, metric]

    def _check_lengths(self, clean: Plan, corrupt: Plan, i: int) -> None:
        n_clean, n_corrupt = len(clean.token_ids), len(corrupt.token_ids)
        problem = f"has {n_corrupt} tokens, and the clean prompt {n_clean}: positions must correspond"
        self._findings.check(n_clean == n_corrupt, f"pairs[{i}].corrupt", problem)


def check_equal_lengths(pairs: Sequence[Pair], findings: Findings, why: str) -> None:
    """Note pairs whose prompts are not as long as those of the first."""
    length = len(pairs[0].base)
    for i, pair in enumerate(pairs):
        problem = f"has {len(pair.base)} tokens, and that of the first pair {length}: {why}"
        findings.check(len(pair.base) == length, f"pairs[{i}].clean", problem)


def _pair(clean: Plan, corrupt: Plan | None, *, is_noising: bool) -> Pair:
    base, source = (clean, corrupt or clean) if is_noising or corrupt is None else (corrupt, clean)
    return Pair(base.token_ids, source.token_ids, require(base.loss), is_clean=base is clean)
