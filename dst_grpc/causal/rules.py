"""Propagation rules of attribution: frozen norms and patterns, RelP, GIM. Values are those of the plain rule.

RelP (Jafari et al., 2025, https://arxiv.org/abs/2508.21258) and GIM (https://arxiv.org/abs/2505.17630) are as in their
authors' code, extended by the same rules to post-norms and to norms of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from dst_grpc.domain.architecture import ActivationFunction
from dst_grpc.domain.attribute import PropagationRule
from dst_grpc.engine.propagation import PLAIN, Propagation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.engine.layer import Layer

_STABILIZER = 1e-6


@dataclass(frozen=True, slots=True)
class FrozenNorms(Propagation):
    """The scales of all norms are constants; means are still subtracted."""

    detaches_scales: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class FrozenPatterns(Propagation):
    """Attention probabilities are constants."""

    fuses_attention: ClassVar[bool] = False

    def probs(self, layer: Layer, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H], detached."""
        return layer.attn_probs(scores).detach()


@dataclass(frozen=True, slots=True)
class Frozen(FrozenPatterns):
    """Both are constants: attention is linear in the residual."""

    detaches_scales: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class RelP(FrozenNorms):
    """Relevance patching.

    Scales of norms are constants; an activation function f is multiplication by the constant f(x) / x, ReLU excepted;
    the gradient of a gated MLP's product is halved.
    """

    def act(self, layer: Layer, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Neurons [..., F] by the rules for activation functions and products."""
        act = layer.mlp_act(pre)
        if layer.activation is not ActivationFunction.RELU:
            stable = pre + torch.where(pre < 0, -_STABILIZER, _STABILIZER)
            act = with_gradient_of(act, (act / stable).detach() * pre)
        return act if up is None else _halved(act * up)


@dataclass(frozen=True, slots=True)
class RelPWithFrozenPatterns(RelP):
    """RelP with constant attention probabilities (its AH-rule)."""

    fuses_attention: ClassVar[bool] = False

    def probs(self, layer: Layer, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H], detached."""
        return layer.attn_probs(scores).detach()


@dataclass(frozen=True, slots=True)
class GradientInteractionModifications(FrozenNorms):
    """GIM: gradient interaction modifications.

    Scales of norms are constants; the softmax of attention is differentiated at temperature 2, without the factor 1/2;
    gradients are multiplied by 1/4 at queries and keys, and by 1/2 at values, at a gate before its nonlinearity, and
    at the factor beside it.
    """

    fuses_attention: ClassVar[bool] = False

    def heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, through which a part of the gradient passes."""
        return with_gradient_of(q, q, 0.25), with_gradient_of(k, k, 0.25), with_gradient_of(v, v, 0.5)

    def probs(self, layer: Layer, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H], with the gradient of a softmax at temperature 2."""
        return with_gradient_of(layer.attn_probs(scores), layer.attn_probs(scores / 2), 2.0)

    def act(self, layer: Layer, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Neurons [..., F]: the gradient of a product is halved."""
        act = layer.mlp_act(pre, up)
        return act if up is None else _halved(act)


RULES: Mapping[PropagationRule, Propagation] = {
    PropagationRule.PLAIN: PLAIN,
    PropagationRule.FROZEN_PATTERNS: FrozenPatterns(),
    PropagationRule.FROZEN_NORMS: FrozenNorms(),
    PropagationRule.FROZEN: Frozen(),
    PropagationRule.RELP: RelP(),
    PropagationRule.RELP_FROZEN_PATTERNS: RelPWithFrozenPatterns(),
    PropagationRule.GIM: GradientInteractionModifications(),
}
"""The rules that requests name."""


def _halved(product: torch.Tensor) -> torch.Tensor:
    return with_gradient_of(product, product, 0.5)


def with_gradient_of(value: torch.Tensor, other: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """*value*, with *factor* times the gradient of *other*, which has its shape."""
    if not other.requires_grad:
        return value
    return value.detach() + factor * (other - other.detach())
