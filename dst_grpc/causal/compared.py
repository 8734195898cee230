"""What batches of runs recorded, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.norm import wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.causal.passes import Ran
    from dst_grpc.engine.taps import Site


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """Both runs of n pairs: first all base runs, then all source runs. Values are float32 or wider."""

    ran: Ran
    n_pairs: int

    def base(self, site: Site) -> torch.Tensor:
        """Values [n, T, ...] in the base runs."""
        return wide(self.ran.values[site][: self.n_pairs])

    def source(self, site: Site) -> torch.Tensor:
        """Values [n, T, ...] in the source runs."""
        return wide(self.ran.values[site][self.n_pairs :])

    def change(self, site: Site) -> torch.Tensor:
        """Those of the source runs minus those of the base runs."""
        return self.source(site) - self.base(site)


@dataclass(frozen=True, eq=False)
class GradientRuns:
    """m runs of n pairs in which gradients were taken: the first m n rows of a batch, one run of all pairs after the
    other, which are those that have gradients. Tensors are float32 or wider."""

    ran: Ran
    n_pairs: int
    weights: Sequence[float]
    """Weight of each run in the mean of gradients."""
    group: Site | None = None
    """The only site whose scores the runs are for; None for all."""

    def value(self, site: Site) -> torch.Tensor:
        """Values [m, n, T, ...]."""
        return self._by_run(self.ran.values[site])

    def gradient(self, site: Site, number: int = 0) -> torch.Tensor:
        """Gradients [m, n, T, ...] of a gradient pass."""
        return self._by_run(self.ran.passes[number].at_taps[site])

    def gradient_at_mlp(self, layer: int) -> torch.Tensor:
        """Gradients at what the MLP of a layer reads [m, n, T, d]."""
        return self._by_run(self.ran.passes[0].at_mlps[layer])

    def mean_gradient(self, number: int, site: Site) -> torch.Tensor:
        """The weighted sum of gradients over runs [n, T, ...]."""
        gradient = self.gradient(site, number)
        weights = torch.tensor(self.weights, dtype=gradient.dtype, device=gradient.device)
        return torch.tensordot(weights, gradient, dims=1)

    def _by_run(self, x: torch.Tensor) -> torch.Tensor:
        m = len(self.weights)
        return wide(x[: m * self.n_pairs]).unflatten(0, (m, self.n_pairs))
