"""Where a run first has values that are not finite, and why: looked for once it is known that it has some.

The pass is made anew for that run alone, with a look at every tensor on its way. If the run is finite without what the
request changes in it, that is why; else the numbers that the model is loaded with hold too little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dst_grpc.domain.components import PassType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.results import NotFinite
from dst_grpc.engine.element_types import is_finite, out_of_range, why_out_of_range
from dst_grpc.engine.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.errors import OutOfRange

_L = ActivationLocationType


class Watch(Taps):
    """Taps that look at all that passes by of the last row, beside what they do anyway."""

    n_tokens = 0
    """Length of that row's prompt."""

    found: Site | None = None
    """Where the first values passed by that are not finite; None if none did."""
    token: int | None = None
    """The first token there with such values."""

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Do what is wanted at a site with its tensor *x* [b, T, ...], and look at what flows on."""
        x = super().visit(location, layer, x)
        if location is not _L.ATTN_QK_LOGITS:  # where scores of masked pairs are -inf
            self.look((location, layer), x)
        return x

    def look(self, site: Site, x: torch.Tensor) -> None:
        """Note *site* if *x* [b, T, ...] is the first that is not finite."""
        x = x[-1, : self.n_tokens]
        if self.found is None and not is_finite(x):
            self.found = site
            self.token = int((~x.isfinite()).flatten(1).any(dim=1).nonzero()[0])


def watched(
    taps: Watch, tokens: torch.Tensor, last: torch.Tensor, decoder: Decoder, *, stop_after_layer: int | None
) -> Watch:
    """*taps* after the pass of prompts, *tokens* [b, T], each with its own last token at a position of *last* [b]."""
    end = int(last[-1])
    taps.n_tokens = end + 1
    logits = decoder.forward(tokens, taps, logits_at=last, stop_after_layer=stop_after_layer)
    if logits is not None:
        taps.look((_L.LOGITS, None), logits)
        taps.token = end if taps.found == (_L.LOGITS, None) else taps.token
    return taps


def not_finite(changed: Watch, plain: Watch, decoder: Decoder) -> NotFinite:
    """What is said of a run, given its pass, and that without what the request changes in it."""
    location, layer = changed.found or (None, None)
    why = why_out_of_range(decoder.dtype)
    if changed.found is not None and plain.found is None:
        why = f"what the request changes is too large for {decoder.dtype}".replace("torch.", "")
    where = "" if location is None else f" from {_place(location, layer)}, token {changed.token}, on"
    return NotFinite(
        activation_location_type=location,
        layer_index=layer,
        token_index=changed.token,
        description=f"values are not finite{where}: {why}",
    )


def gradient_not_finite(gradients: Mapping[Site, torch.Tensor], decoder: Decoder) -> NotFinite | None:
    """What is said of a run of which one of the *gradients* [T, ...] is not finite; None if all are."""
    for location, layer in sorted(gradients, key=_arrival):
        x = gradients[location, layer]
        if not is_finite(x):
            where = f"gradients are not from {_place(location, layer)} back"
            return NotFinite(
                activation_location_type=location,
                layer_index=layer,
                token_index=int((~x.isfinite()).flatten(1).any(dim=1).nonzero()[0]),
                pass_type=PassType.BACKWARD,
                description=f"values are finite, but {where}: {why_out_of_range(decoder.dtype)}",
            )
    return None


def error_of(found: NotFinite, dtype: torch.dtype) -> OutOfRange:
    """The error of a request that cannot be answered because of what was *found*."""
    tap = found.activation_location_type
    place = {
        "activation_location_type": tap and tap.name,
        "layer_index": found.layer_index,
        "token_index": found.token_index,
    }
    return out_of_range(f"the run cannot be explained: {found.description}", dtype, place)


def _arrival(site: Site) -> tuple[float, float]:
    """Sorts sites by when gradients arrive there."""
    location, layer = site
    if layer is None:
        return (-math.inf if location.facts.is_after_layers else math.inf), 0.0
    within = location.location_within_layer
    return -layer, 0.0 if within is None else -within


def _place(location: ActivationLocationType, layer: int | None) -> str:
    return location.value if layer is None else f"{location.value} of layer {layer}"
