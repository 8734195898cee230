"""Pairs of prompts that causal questions compare: in which direction, and what takes the place of an activation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.actions import UNCHANGED
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import Violations

SOURCE = "source"
"""The name, in requests about pairs, of the run of a pair's other prompt, which values are taken from."""


class Orientation(StrEnum):
    """Which prompt of a pair is run, and which one changed values are taken from."""

    NOISING = "noising"
    """The clean prompt is run; values are those of the corrupt one: what breaks the behaviour."""
    DENOISING = "denoising"
    """The corrupt prompt is run; values are those of the clean one: what restores it."""

    @property
    def other(self) -> Orientation:
        """The other one."""
        return Orientation.DENOISING if self is Orientation.NOISING else Orientation.NOISING


class Alternative(StrEnum):
    """What takes the place of an activation of the run."""

    PATCHING = "patching"
    """Its value in the other run of the pair."""
    MEAN_BY_POSITION = "mean_by_position"
    """Its mean, at each position, over the reference prompts that are so long."""
    MEAN = "mean"
    """Its mean over reference prompts and all their positions."""
    ZERO = "zero"
    """Nothing."""
    MEAN_BY_LENGTH = "mean_by_length"
    """Its mean, at each position, over the reference prompts of as many tokens as the pair's."""

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over reference prompts."""
        return self in {Alternative.MEAN, Alternative.MEAN_BY_POSITION, Alternative.MEAN_BY_LENGTH}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPair:
    """Two prompts that differ in what matters, position by position."""

    clean: Prompt
    """The prompt with the behaviour."""
    corrupt: Prompt | None = None
    """The prompt without it, of as many tokens; None where no value is taken from it."""
    loss_fn_config: LossFnConfig | None = None
    """The metric of this pair; None = the request's."""


def check_pairs(
    problems: Violations, pairs: tuple[PromptPair, ...], loss_fn_config: LossFnConfig | None, corrupt: str | None
) -> None:
    """Note what is wrong with the pairs of a request.

    Args:
        problems: collects what is wrong, by paths of the request.
        pairs: the request's.
        loss_fn_config: the metric of pairs without one of their own.
        corrupt: what is wrong with a pair without corrupt prompt; None if it may be without.
    """
    problems.check(bool(pairs), "pairs", "must hold at least one pair")
    losses = {f"pairs[{i}].loss_fn_config": pair.loss_fn_config for i, pair in enumerate(pairs)}
    for path, loss in {"loss_fn_config": loss_fn_config, **losses}.items():
        if loss is not None and loss.reference_run not in {None, UNCHANGED, SOURCE}:
            problem = f"must be {UNCHANGED!r}, {SOURCE!r} or absent, for the clean run, not {loss.reference_run!r}"
            problems.add(f"{path}.reference_run", problem)
    if corrupt is None and any(
        loss is not None and loss.reference_run == SOURCE for loss in (loss_fn_config, *losses.values())
    ):
        corrupt = "is required: a metric is a divergence from its run"
    for i, pair in enumerate(pairs):
        has_metric = pair.loss_fn_config is not None or loss_fn_config is not None
        problems.check(has_metric, f"pairs[{i}].loss_fn_config", "is required, here or for the request")
        if pair.corrupt is None and corrupt is not None:
            problems.add(f"pairs[{i}].corrupt", corrupt)


def check_reference(problems: Violations, reference: tuple[Prompt, ...], *, reads_mean: bool) -> None:
    """Note it if there are no reference prompts for a mean, or prompts without a mean."""
    problem = "must hold the prompts of the mean" if reads_mean else "must be empty: the alternative is no mean"
    problems.check(bool(reference) == reads_mean, "reference", problem)
