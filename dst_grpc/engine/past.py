"""Keys and values of the tokens before those of a pass: what earlier tokens are to later ones.

As attention is causal, a row that changes nothing before some token can begin there: all that its tokens need of those
before is their keys and values in the unchanged run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.taps import Qkv


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The tokens before the first of each row of a pass."""

    n_tokens: int
    """How many."""
    keys: Mapping[int, torch.Tensor]
    """By layer, keys [p, at least n_tokens, KV, c] of p prompts, as they enter the scores."""
    values: Mapping[int, torch.Tensor]
    """By layer, values [p, at least n_tokens, KV, c]."""
    prompts: torch.Tensor
    """The prompt [b] of each row of the pass; at layers before some rows begin, of the first rows."""

    def positions(self, n_tokens: int) -> torch.Tensor:
        """The positions of the pass's own tokens [n_tokens]."""
        return torch.arange(self.n_tokens, self.n_tokens + n_tokens, device=self.prompts.device)

    def before(
        self, index: int, layer: Layer, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens [b, n_tokens + T, KV or H, c], from the pass's own [b, T, KV or H, c]."""
        return self._joined(self.keys[index], layer, keys), self._joined(self.values[index], layer, values)

    def _joined(self, past: torch.Tensor, layer: Layer, own: torch.Tensor) -> torch.Tensor:
        earlier = past[self.prompts[: len(own)], : self.n_tokens]
        if earlier.shape[2] != own.shape[2]:
            earlier = layer.for_each_head(earlier)
        return torch.cat((earlier, own), dim=1)


class PastTaps(Taps):
    """Taps that also keep keys and values, for later rows to begin after some of these tokens."""

    def __init__(self, **wanted: object) -> None:
        """As of any taps."""
        super().__init__(**wanted)  # type: ignore[arg-type]
        self.keys: dict[int, torch.Tensor] = {}
        """By layer [b, T, KV, c], as they enter the scores; detached."""
        self.past_values: dict[int, torch.Tensor] = {}
        """By layer [b, T, KV, c]; detached."""

    def qkv(self, index: int, layer: Layer, x: torch.Tensor, qkv: Qkv) -> Qkv:
        """As of any taps."""
        _, k, v = qkv = super().qkv(index, layer, x, qkv)
        self.keys[index], self.past_values[index] = k.detach(), v.detach()
        return qkv
