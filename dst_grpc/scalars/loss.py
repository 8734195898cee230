"""Losses: scalars of the logits at a prompt's last token (specification, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dst_grpc.domain.components import LossFnName


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A loss whose tokens are ids."""

    name: LossFnName
    """Which scalar."""
    targets: tuple[int, ...]
    """Tokens to raise; duplicates count."""
    distractors: tuple[int, ...] = ()
    """Tokens to lower; duplicates count."""

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The loss of one token's *logits* [V]; a scalar."""
        if self.name is LossFnName.ZERO:
            return 0.0 * logits.sum()
        targets = list(self.targets)
        if self.name is LossFnName.PROBS:
            return logits.softmax(dim=-1)[targets].sum()
        raised = logits[targets].mean()
        if self.name is LossFnName.LOGIT_MINUS_MEAN:
            return raised - logits.mean()
        return raised - logits[list(self.distractors)].mean() if self.distractors else raised
