"""Origins: the scalar of a run that a backward pass starts from. Traces, the other kind, are in `trace`."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.indices import check_token_ids
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFnConfig:
    """A scalar of the logits at the prompt's last token.

    logit_diff: mean of the targets' logits minus the mean of the distractors'; logit_minus_mean: mean of the targets'
    minus the mean over the vocabulary; probs: sum of the targets' probabilities; zero: 0. A token listed twice counts
    twice. Tokens are given as strings, each of which must be exactly one token, as ids, or as both together.
    """

    name: LossFnName
    """Which scalar."""
    target_tokens: tuple[str, ...] = ()
    """Target tokens, as strings."""
    distractor_tokens: tuple[str, ...] = ()
    """Distractor tokens, as strings; for logit_diff only."""
    target_token_ids: tuple[int, ...] = ()
    """Further target tokens, as ids."""
    distractor_token_ids: tuple[int, ...] = ()
    """Further distractor tokens, as ids; for logit_diff only."""

    def __post_init__(self) -> None:
        """Check rule 32 as far as no tokenizer is needed; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if self.name is not LossFnName.ZERO:
            problems.check(
                bool(self.target_tokens or self.target_token_ids),
                "target_tokens",
                f"{self.name} needs at least one target token",
            )
        if self.name in {LossFnName.LOGIT_MINUS_MEAN, LossFnName.PROBS}:
            problems.check(
                not (self.distractor_tokens or self.distractor_token_ids),
                "distractor_tokens",
                f"must be absent for {self.name}",
            )
        for field in ("target_tokens", "distractor_tokens"):
            for i, text in enumerate(getattr(self, field)):
                check_text(problems, f"{field}[{i}]", text)
        for field in ("target_token_ids", "distractor_token_ids"):
            check_token_ids(problems, field, getattr(self, field))
        problems.raise_if_any()
