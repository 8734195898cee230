"""Propagation rules: how gradients pass through norms, softmax and gates.

The plain rule is calculus. Another rule is a subclass, a frozen dataclass, whose methods return the same values with a
different graph: norms with constant scale, a softmax differentiated at another temperature, gates that split the
gradient between their factors. Only the decoder calls these methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.norm import Norm


@dataclass(frozen=True, slots=True)
class Propagation:
    """The plain rule."""

    fuses_attention: ClassVar[bool] = True
    """Whether attention may run as one kernel, which does not call `probs`."""
    detaches_scales: ClassVar[bool] = False
    """Whether the scales of norms are constants."""

    def normed(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """*x* [..., n] through a norm."""
        return norm(x, detach_scale=self.detaches_scales)

    def scale(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """The divisor [..., 1] of a norm whose scale is tapped."""
        scale = norm.scale(x)
        return scale.detach() if self.detaches_scales else scale

    def heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [..., T, H, c], keys and values [..., T, KV or H, c] on their way to the scores and the sums."""
        return q, k, v

    def probs(self, layer: Layer, scores: torch.Tensor) -> torch.Tensor:
        """Attention probabilities [..., T, U, H] of *scores*."""
        return layer.attn_probs(scores)

    def act(self, layer: Layer, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Neurons [..., F] after the nonlinearity, from those before it and, in a gated MLP, the factor *up*."""
        return layer.mlp_act(pre, up)


PLAIN = Propagation()
