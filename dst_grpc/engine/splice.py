"""Splices: autoencoders in the graph of a run, each at one layer.

With x what an autoencoder reads, y the value at the tap that it reconstructs, which is x unless it is a transcoder,
h = encode(x) its latents, and h^ and eps^ latents and error as their taps leave them:

    eps = y - decode(h, x)          y' = decode(h^, x) + eps^

y' takes the place of y. It is y up to rounding unless a tap changes something, and gradients are then those of y as
well, since all terms stay in the graph. What a skip connection adds is in both reconstructions: neither latents nor
error hold it. Of a cross-layer transcoder, the latents of earlier layers are decoded too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.stored_products import written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.stored_transcoder import StoredTranscoder
    from dst_grpc.engine.taps import Site


@dataclass(frozen=True, slots=True, eq=False)
class SplicedLatents:
    """The latents of one layer in a pass."""

    made: torch.Tensor
    """As they are encoded, [b, T, Z]."""
    tapped: torch.Tensor
    """As their tap leaves them, [b, T, Z]."""
    is_differentiated: bool
    """Whether gradients are wanted at the tap, and so at all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """The autoencoder of one layer in the graph."""

    input: AutoencoderInput
    """The row of what it reads, and what it reconstructs."""
    layer: int
    """The layer."""
    autoencoder: Autoencoder | StoredTranscoder
    """Its weights."""
    earlier: Mapping[int, StoredTranscoder] = field(default_factory=dict)
    """Of a cross-layer transcoder: those of earlier layers, whose latents write here too."""

    @property
    def site(self) -> Site:
        """The site that it reconstructs."""
        return self.input.spliced_at, self.layer

    @property
    def latent_site(self) -> Site:
        """The site of its latents."""
        return self.input.latent_tap, self.layer

    @property
    def is_read_later(self) -> bool:
        """Whether its latents write to later layers too."""
        return not isinstance(self.autoencoder, Autoencoder) and len(self.autoencoder.written) > 1

    def decode(self, latents: Mapping[int, SplicedLatents], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is reconstructed, [b, T, n_out], of the latents as they are encoded, and as their taps leave them.

        Args:
            latents: those of its layer, and of `earlier` ones, by layer.
            x: what it reads, [b, T, n_in].
        """
        own = latents[self.layer]
        if isinstance(self.autoencoder, Autoencoder):
            return self.autoencoder.decode(own.made, x), self.autoencoder.decode(own.tapped, x)
        of_no_latent = self.autoencoder.without_features(x)
        made, tapped = of_no_latent, of_no_latent
        for layer, transcoder in {**self.earlier, self.layer: self.autoencoder}.items():
            one = latents[layer]
            of_made, of_tapped = written(transcoder, self.layer, one.made, one.tapped, everywhere=one.is_differentiated)
            made, tapped = made + of_made, tapped + of_tapped
        return made, tapped


def splices_of_set(read: AutoencoderInput, coders: Mapping[int | None, Autoencoder | StoredTranscoder]) -> list[Splice]:
    """The splices of a set, by layer: its *coders*, which read *read*."""
    stored = {layer: one for layer, one in coders.items() if layer is not None and not isinstance(one, Autoencoder)}

    def earlier(layer: int) -> dict[int, StoredTranscoder]:
        return {at: one for at, one in stored.items() if at < layer and layer in one.written}

    return [Splice(read, layer, one, earlier(layer)) for layer, one in coders.items() if layer is not None]


def first_layer_of(layer: int, splices: Iterable[Splice]) -> int:
    """The layer that a pass has to begin at in which nothing is changed before *layer*.

    0 if latents write to later layers: without those of all earlier layers, what they write there is in the error.
    """
    return 0 if any(splice.is_read_later for splice in splices) else layer
