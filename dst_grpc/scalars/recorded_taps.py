"""The recording of one run of one prompt: values and gradients at its taps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.domain.components import PassType
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.token_vectors import TokenVectors

Tap = tuple["PassType", "Site"]
"""A recorded tensor: the value (FORWARD) or the gradient (BACKWARD) at a site."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTaps:
    """Values and gradients at the tapped sites, without a batch axis."""

    values: Mapping[Site, torch.Tensor]
    """Recorded values, cut to the prompt's own length."""
    gradients: Mapping[Site, torch.Tensor]
    """Gradients of the origin; a site that the origin does not depend on is absent."""
    n_tokens: int
    """T."""
    together: Mapping[Site, TokenVectors] = field(default_factory=dict)
    """Gradients that are read together with those of other runs; those at other sites are read alone."""

    def value(self, site: Site) -> torch.Tensor:
        """The value at *site*; raises Internal if it was not recorded."""
        if site not in self.values:
            raise Internal(f"the plan recorded no value at {site[0]}, layer {site[1]}")
        return self.values[site]

    def gradient(self, site: Site, like: torch.Tensor) -> torch.Tensor:
        """The gradient at *site*, or zeros in the shape of *like* where the origin does not depend on it."""
        found = self.gradients.get(site)
        return torch.zeros_like(like) if found is None else found
