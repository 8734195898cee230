"""One pass of the model, and what the local replacement model keeps of it.

Shapes: T token, d residual channel, A active feature of all layers, a active feature of one layer, V token of the
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.norm import wide
from dst_grpc.engine.taps import Taps, site_entering
from dst_grpc.engine.transcoders import ActiveFeatures
from dst_grpc.errors import OutOfRange, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.transcoders import Transcoders

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerFeatures:
    """The active features of one layer, in order of token, then feature."""

    active: ActiveFeatures
    """Tokens, features and activations [a]."""
    first: int
    """The place of the first among the active features of all layers."""
    starts: tuple[int, ...]
    """Where those of each token begin, [T + 1]; the last is a."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RecordedLayer:
    """What is constant in one layer of the local replacement model. Tensors are float32 or wider."""

    entering: torch.Tensor
    """The residual that enters the layer, [T, d], of the model's type: patterns follow from it."""
    attn_scale: torch.Tensor | None
    """The scale of the norm of attention's output, [T, 1]; None without such a norm."""
    input_scale: torch.Tensor | None
    """The scale of the norm that its transcoder reads through, [T, 1]; None without such a norm, or transcoder."""
    features: LayerFeatures
    """Its active features; none without a transcoder."""
    error: torch.Tensor
    """What the transcoders miss of the MLP's write, [T, d]."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recording:
    """What is constant in the local replacement model of one prompt."""

    tokens: torch.Tensor
    """Ids [T]."""
    layers: tuple[RecordedLayer, ...]
    """Its layers."""
    final_scale: torch.Tensor
    """The scale of the final norm at the last token, [1]."""
    logits: torch.Tensor
    """Of the last token, [V]."""

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.tokens)

    @property
    def n_active(self) -> int:
        """A."""
        return sum(len(one.features.active) for one in self.layers)


@torch.no_grad()
def record(
    decoder: Decoder, transcoders: Transcoders, token_ids: Sequence[int], n_zeroed: int, check: Check
) -> Recording:
    """Run a prompt.

    Args:
        decoder: the model.
        transcoders: its transcoders.
        token_ids: the prompt.
        n_zeroed: tokens, from the first, that have neither features nor errors.
        check: raises Cancelled to end the work.

    Raises:
        OutOfRange: if the run is not finite.
    """
    config, indices = decoder.config, range(decoder.config.n_layers)
    entering = [site_entering(layer) for layer in indices]
    read = [input_site(DerivedScalarType.RESID_POST_ATTN, layer, config.architecture) for layer in indices]
    written = [(_L.RESID_DELTA_MLP, layer) for layer in indices]
    scales = [(_L.ATTN_OUTPUT_LAYER_NORM_SCALE, layer) for layer in indices if config.post_norms]
    taps = Taps(values=[*entering, *read, *written, *scales], check=check)
    tokens = torch.tensor(token_ids, device=decoder.device)
    last = torch.tensor([len(tokens) - 1], device=tokens.device)
    logits = require(decoder.forward(tokens[None], taps, logits_at=last))[0, 0]
    residual = require(taps.last_residual)[0]
    if not bool(residual.isfinite().all() and logits.isfinite().all()):
        raise OutOfRange("the run of the prompt has values that are not finite")
    values = {site: value[0] for site, value in taps.values.items()}
    layers: list[RecordedLayer] = []
    explained: dict[int, ActiveFeatures] = {}
    n_active = 0
    for layer, block in enumerate(decoder.layers):
        check()
        read_here, error = values[read[layer]], wide(values.pop(written[layer]))
        input_scale, active = None, _nothing_active(error)
        if transcoders.has_layer(layer):
            if transcoders.input_norm(layer) is not ModelNorm.NONE:
                input_scale = block.mlp_norm.scale(read_here)
            x = transcoders.input(layer, read_here, block)
            active = explained[layer] = transcoders.active(layer, x, first=n_zeroed)
            error = error - transcoders.reconstruction(layer, explained, x)
        error[:n_zeroed] = 0
        layers.append(
            RecordedLayer(
                entering=values[entering[layer]],
                attn_scale=wide(values[scales[layer]]) if scales else None,
                input_scale=input_scale,
                features=LayerFeatures(active=active, first=n_active, starts=_starts(active, len(tokens))),
                error=error,
            )
        )
        n_active += len(active)
    final_scale = decoder.final_norm.scale(residual[-1])
    return Recording(tokens=tokens, layers=tuple(layers), final_scale=final_scale, logits=logits)


def _nothing_active(like: torch.Tensor) -> ActiveFeatures:
    """No features, of the type and on the device of *like*."""
    none = torch.zeros(0, dtype=torch.long, device=like.device)
    return ActiveFeatures(none, none, like.new_zeros(0))


def _starts(active: ActiveFeatures, n_tokens: int) -> tuple[int, ...]:
    """Where the features of each token begin, [T + 1]."""
    bounds = torch.arange(n_tokens + 1, device=active.tokens.device)
    return tuple(torch.searchsorted(active.tokens, bounds).tolist())
