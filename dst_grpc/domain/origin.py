"""What a run starts from and what is changed in it: losses and ablations."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.indices import MAX_INDEX, ActivationIndex
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest finite float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFnConfig:
    """A scalar of the logits at the prompt's last token.

    logit_diff: mean of the targets' logits less the mean of the distractors'; logit_minus_mean: mean of the targets'
    less the mean over the vocabulary; probs: sum of the targets' probabilities; zero: 0. A token listed twice counts
    twice. Tokens are given as strings, each of which must be exactly one token, as ids, or as both together.
    """

    name: LossFnName
    """Which scalar."""
    target_tokens: tuple[str, ...] = ()
    """Tokens to raise, as strings."""
    distractor_tokens: tuple[str, ...] = ()
    """Tokens to lower, as strings; for logit_diff only."""
    target_token_ids: tuple[int, ...] = ()
    """Tokens to raise, as ids."""
    distractor_token_ids: tuple[int, ...] = ()
    """Tokens to lower, as ids; for logit_diff only."""

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
            for i, token in enumerate(getattr(self, field)):
                problems.check(0 <= token <= MAX_INDEX, f"{field}[{i}]", f"must be between 0 and {MAX_INDEX}")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSpec:
    """Entries of a tap to overwrite, in the forward pass or, as gradients, in the backward pass."""

    index: ActivationIndex
    """The entries. `layer_index` None at a tap with layers means every layer."""
    value: float
    """What to put there; finite, and rounded to float32 when it is used."""

    def __post_init__(self) -> None:
        """Check rule 28; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        location = self.index.activation_location_type
        rank = len(location.dimensions)
        problems.check(
            len(self.index.tensor_indices) == rank,
            "index.tensor_indices",
            f"must name every one of the {rank} axes of {location}, not {len(self.index.tensor_indices)}",
        )
        problems.check(
            self.index.layer_index is None or not location.has_no_layers,
            "index.layer_index",
            f"must be absent: {location} exists once per model",
        )
        problems.check(
            location.facts.is_tapped, "index.activation_location_type", f"{location} is not a tap of the model"
        )
        # Comparison is false for NaN.
        problems.check(
            abs(self.value) <= MAX_FLOAT32, "value", f"must be finite and within float32's range, not {self.value}"
        )
        problems.raise_if_any()
