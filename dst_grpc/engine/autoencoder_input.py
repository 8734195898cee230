"""From a recorded tap to what an autoencoder reads of it: in one place, for the self-check and for offline latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.engine.autoencoder import Autoencoder, InputNorm
from dst_grpc.errors import Internal

if TYPE_CHECKING:
    import torch

    from dst_grpc.engine.decoder import Layer


def autoencoder_input(autoencoder: Autoencoder, tap: torch.Tensor, block: Layer | None) -> torch.Tensor:
    """What *autoencoder* reads, [T, n_in].

    Args:
        autoencoder: says whether the model's norm stands before it.
        tap: the recorded tap of one prompt: [T, n], or [T, H, c], whose heads are read side by side.
        block: the layer of the tap; None for what exists once per model, where no norm stands before anything.
    """
    tap = tap.flatten(1)
    if autoencoder.input_norm is InputNorm.NONE:
        return tap
    if block is None:
        raise Internal("an autoencoder of what belongs to no layer cannot read through a layer's norm")
    if autoencoder.input_norm is InputNorm.MLP:
        return block.mlp_norm(tap)
    return block.mlp_norm.without_gain(tap)
