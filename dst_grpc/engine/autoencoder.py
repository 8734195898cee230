"""Sparse autoencoders: the arithmetic, on immutable weights, without any per-call state.

pre(x) = (x - b_pre) Wenc^T + b_lat        h = phi(pre(x))        dec(h) = h Wdec^T + b_pre
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from dst_grpc.errors import DataLoss


class Activation(StrEnum):
    """The nonlinearity phi; values are the file format's names."""

    RELU = "ReLU"
    TOPK = "TopK"
    IDENTITY = "Identity"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class Autoencoder:
    """The autoencoder of one layer. Weights are frozen."""

    pre_bias: torch.Tensor
    """b_pre [n_in]."""
    encoder: torch.Tensor
    """Wenc [Z, n_in]."""
    latent_bias: torch.Tensor
    """b_lat [Z]."""
    decoder: torch.Tensor
    """Wdec [n_in, Z]; column j is what latent j writes."""
    activation: Activation = Activation.RELU
    """phi."""
    k: int | None = None
    """With TopK: how many latents are kept at a token."""
    postact: Activation = Activation.RELU
    """With TopK: applied to the kept values."""

    def __post_init__(self) -> None:
        """Check that the parts fit; raises DataLoss naming the one that does not."""
        latents, inputs = self.encoder.shape
        wanted = {"pre_bias": (inputs,), "latent_bias": (latents,), "decoder": (inputs, latents)}
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise DataLoss(f"autoencoder weight {name} has shape {found}, but encoder [Z, n_in] needs {shape}")
        if self.activation is Activation.TOPK and not 0 < (self.k or 0) <= latents:
            raise DataLoss(f"a TopK autoencoder of {latents} latents needs 0 < k <= {latents}, not {self.k}")

    @property
    def n_latents(self) -> int:
        """Z."""
        return self.encoder.shape[0]

    @property
    def n_inputs(self) -> int:
        """Width of what it reads."""
        return self.encoder.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(t.nbytes for t in (self.pre_bias, self.encoder, self.latent_bias, self.decoder))

    def pre_activation(self, x: torch.Tensor) -> torch.Tensor:
        """pre(x) [..., Z] of inputs *x* [..., n_in]."""
        return torch.nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Phi of pre-activations [..., Z]."""
        if self.activation is not Activation.TOPK:
            return _pointwise(self.activation, pre)
        kept, where = pre.topk(self.k or 0, dim=-1)
        return torch.zeros_like(pre).scatter(-1, where, _pointwise(self.postact, kept))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., Z] of inputs *x* [..., n_in]."""
        return self.activate(self.pre_activation(x))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Reconstruction [..., n_in] from *latents* [..., Z]."""
        return torch.nn.functional.linear(latents, self.decoder, self.pre_bias)

    def __repr__(self) -> str:
        """Sizes only."""
        return f"Autoencoder({self.n_inputs} -> {self.n_latents}, {self.activation})"


def _pointwise(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    return x if activation is Activation.IDENTITY else torch.relu(x)
