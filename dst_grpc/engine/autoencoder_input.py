"""The tap that an autoencoder reads, and its input there: shared by the self-check and offline latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.taps import Site, site_entering
from dst_grpc.errors import Internal

if TYPE_CHECKING:
    import torch

    from dst_grpc.domain.architecture import Architecture
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.stored_transcoder import StoredTranscoder


def input_site(dst: DerivedScalarType, layer: int | None, architecture: Architecture) -> Site:
    """The tap that autoencoders of *dst* read; *layer* is None if the derived scalar exists once per model.

    RESID_POST_ATTN means the input of the MLP, and transcoders of an MLP are declared so in every model: in parallel
    layers it is the residual that enters the layer.

    Raises:
        Internal: if *dst* is not a tap.
    """
    tap = FACTS[dst].tap
    if tap is None:
        raise Internal(f"{dst} is no tap: nothing records it")
    if tap.facts.needs_sequential_layers and architecture.parallel and layer is not None:
        return site_entering(layer)
    return tap, layer


def autoencoder_input(
    autoencoder: Autoencoder | StoredTranscoder, tap: torch.Tensor, block: Layer | None
) -> torch.Tensor:
    """The input of *autoencoder*, [T, n_in].

    Args:
        autoencoder: says whether a norm of the model is applied first.
        tap: the recorded tap of one prompt: [T, n], or [T, H, c], whose heads are concatenated.
        block: the layer of the tap; None for a tap that exists once per model, to which no norm is applied.
    """
    return normed(autoencoder.input_norm, tap.flatten(1), block)


def normed(norm: ModelNorm, x: torch.Tensor, block: Layer | None, *, detach_scale: bool = False) -> torch.Tensor:
    """*x* [T, d] after *norm* of the layer *block*; None if it belongs to none, and no norm is applied.

    With *detach_scale* the scale of the norm is a constant.
    """
    if norm is ModelNorm.NONE:
        return x
    if block is None:
        raise Internal("an autoencoder of what belongs to no layer cannot read through a layer's norm")
    if norm is ModelNorm.MLP_NORM:
        return block.mlp_norm(x, detach_scale=detach_scale)
    return block.mlp_norm.without_gain(x, block.mlp_norm.scale(x).detach() if detach_scale else None)
