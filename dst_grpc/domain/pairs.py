"""Pairs of prompts that causal questions compare: in which direction, and what takes the place of an activation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt


class Orientation(StrEnum):
    """Which prompt of a pair is run, and which one changed values are taken from."""

    NOISING = "noising"
    """The clean prompt is run; values are those of the corrupt one: what breaks the behaviour."""
    DENOISING = "denoising"
    """The corrupt prompt is run; values are those of the clean one: what restores it."""


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

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over reference prompts."""
        return self in {Alternative.MEAN, Alternative.MEAN_BY_POSITION}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPair:
    """Two prompts that differ in what matters, position by position."""

    clean: Prompt
    """The prompt with the behaviour."""
    corrupt: Prompt | None = None
    """The prompt without it, of as many tokens; None where no value is taken from it."""
    loss_fn_config: LossFnConfig | None = None
    """The metric of this pair; None = the request's."""
