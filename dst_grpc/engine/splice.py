"""Splices: autoencoders in the graph of a run, each at one layer.

With x what an autoencoder reads, y the value at the tap that it reconstructs, which is x unless it is a transcoder,
h = encode(x) its latents, and h^ and eps^ latents and error as their taps leave them:

    eps = y - decode(h, x)          y' = decode(h^, x) + eps^

y' takes the place of y. It is y up to rounding unless a tap changes something, and gradients are then those of y as
well, since all terms stay in the graph. What a skip connection adds is in both reconstructions: neither latents nor
error hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.taps import Site


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """The autoencoder of one layer in the graph."""

    input: AutoencoderInput
    """The row of what it reads, and what it reconstructs."""
    layer: int
    """The layer."""
    autoencoder: Autoencoder
    """Its weights."""

    @property
    def site(self) -> Site:
        """The site that it reconstructs."""
        return self.input.spliced_at, self.layer
