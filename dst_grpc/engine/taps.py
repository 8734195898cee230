"""Taps: what to record, overwrite and splice in during one forward pass.

A `Taps` value is handed to the decoder, which offers it the tensor at every activation location. It is an argument,
never global state, and serves one pass. At each location, in this order (specification, section 4): forward
ablations; the value is recorded; gradients are recorded as they arrive, before backward ablations change what flows
on; an autoencoder is spliced in. What is not touched costs nothing: the decoder takes its fused path there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoder_inputs import SPLICED_AT
from dst_grpc.domain.components import PassType
from dst_grpc.domain.locations import ActivationLocationType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dst_grpc.domain.indices import TensorIndices
    from dst_grpc.engine.autoencoder import Autoencoder

_L = ActivationLocationType

Site = tuple[ActivationLocationType, int | None]
"""A location and its layer; the layer is None for what exists once per model."""

_AFTER_ALL_LAYERS = 2**31


def site_entering(layer: int) -> Site:
    """Where the residual that enters *layer* is tapped."""
    return (_L.RESID_POST_MLP, layer - 1) if layer else (_L.RESID_POST_EMBEDDING, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Entries of one prompt's tap to overwrite."""

    row: int
    """Which prompt of the batch."""
    location: ActivationLocationType
    """Which tap."""
    layer: int | None
    """Which layer; None for a tap without layers, or for every layer of one with layers."""
    indices: TensorIndices
    """Position along each axis of the prompt's tap; None selects all."""
    value: float
    """What to put there."""
    pass_type: PassType
    """Overwrite the value, or the gradient that flows on."""
    n_tokens: int | None = None
    """Length of the prompt in a padded batch: what is selected whole ends there. None = no padding."""

    def is_at(self, site: Site) -> bool:
        """Whether it applies at *site*."""
        return self.location is site[0] and self.layer in {None, site[1]}

    def apply(self, x: torch.Tensor) -> None:
        """Overwrite the entries of *x* [b, ...] in place."""
        selection = tuple(
            index if index is not None else slice(self.n_tokens if axis.is_sequence_token_dimension else None)
            for index, axis in zip(self.indices, self.location.dimensions, strict=True)
        )
        x[(self.row, *selection)] = self.value


class Taps:
    """One pass's recording. Build it, pass it to `Decoder.forward`, then read it."""

    def __init__(
        self,
        *,
        values: Iterable[Site] = (),
        gradients: Iterable[Site] = (),
        ablations: Iterable[Ablation] = (),
        splices: Mapping[Site, Autoencoder] | None = None,
    ) -> None:
        """Plan the pass; nothing is recorded yet.

        Args:
            values: sites whose value to record.
            gradients: sites to record attached to the graph, so that gradients can be taken there.
            ablations: in the order in which they apply.
            splices: by the site that it reads, the autoencoder to put into the graph there.
        """
        self._wanted = frozenset(values)
        self._wanted_attached = frozenset(gradients)
        self._splices = dict(splices or {})
        self._ablations: dict[ActivationLocationType, list[Ablation]] = defaultdict(list)
        for ablation in ablations:
            self._ablations[ablation.location].append(ablation)
        self._sites = self._wanted | self._wanted_attached
        self._locations = {location for location, _ in self._sites} | self._ablations.keys()
        self.values: dict[Site, torch.Tensor] = {}
        """What was recorded, detached, [b, ...]."""
        self.attached: dict[Site, torch.Tensor] = {}
        """What was recorded attached to the graph, [b, ...]."""

    @property
    def graph_starts_at_layer(self) -> int | None:
        """First layer whose tensors need a graph: -1 for the embedding, None if no gradient is wanted."""
        starts = [
            -1 if location is _L.RESID_POST_EMBEDDING else _AFTER_ALL_LAYERS if layer is None else layer
            for location, layer in self._wanted_attached
        ]
        return min(starts, default=None)

    def touches(self, location: ActivationLocationType, layer: int | None) -> bool:
        """Whether anything happens at a site, so that its tensor must be made."""
        site = (location, layer)
        if site in self._sites or site in self._splices:
            return True
        return any(ablation.is_at(site) for ablation in self._ablations.get(location, ()))

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Do what is wanted at a site with its tensor *x* [b, ...]; the result flows on in its place."""
        site = (location, layer)
        if location in self._locations:
            x = self._ablate_and_record(site, x)
        autoencoder = self._splices.get(site)
        return x if autoencoder is None else self._splice(site, x, autoencoder)

    def _ablate_and_record(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        here = [ablation for ablation in self._ablations.get(site[0], ()) if ablation.is_at(site)]
        forward = [ablation for ablation in here if ablation.pass_type is PassType.FORWARD]
        backward = [ablation for ablation in here if ablation.pass_type is PassType.BACKWARD]
        if forward:
            x = x.clone()
            for ablation in forward:
                ablation.apply(x)
        if site in self._wanted:
            self.values[site] = x.detach()
        if backward and x.requires_grad:
            x.register_hook(lambda gradient: _overwritten(gradient, backward))
            # A view of its own keeps the recorded gradient the one that arrives, before the hook changes it.
            x = x.view_as(x)
        if site in self._wanted_attached:
            self.attached[site] = x
        return x

    def _splice(self, site: Site, x: torch.Tensor, autoencoder: Autoencoder) -> torch.Tensor:
        """Replace *x* by reconstruction plus error; equal to it unless latents or errors are ablated."""
        location, layer = site
        taps = SPLICED_AT[location]
        latents = autoencoder.encode(x)
        # The error reads the untapped latents, so the tapped ones must be a tensor of their own in the graph.
        tapped = self.visit(taps.latent_tap, layer, latents.view_as(latents))
        error = x - autoencoder.decode(latents, x)
        if taps.error_tap is not None:
            error = self.visit(taps.error_tap, layer, error)
        return autoencoder.decode(tapped, x) + error

    def gradients(self, origin: torch.Tensor) -> dict[Site, torch.Tensor]:
        """Gradient of the scalar *origin* at every attached site that it depends on, [b, ...]."""
        reached = {site: x for site, x in self.attached.items() if x.requires_grad}
        if not reached or not origin.requires_grad:
            return {}
        found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(origin, list(reached.values()), allow_unused=True)
        return {site: gradient for site, gradient in zip(reached, found, strict=True) if gradient is not None}


def _overwritten(gradient: torch.Tensor, ablations: list[Ablation]) -> torch.Tensor:
    changed = gradient.clone()
    for ablation in ablations:
        ablation.apply(changed)
    return changed
