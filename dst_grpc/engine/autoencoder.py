"""Sparse autoencoders: the arithmetic, on immutable weights, without any per-call state.

    n(x) = (x - mean) / scale                          what is encoded: x itself unless `normalization` says more
    pre(x) = (n(x) - b_pre) Wenc^T + b_lat             h = phi(pre(x))
    dec(h, x) = scale (h Wdec^T + b_dec) + mean        plus x Wskip^T, for the transcoders that have one

b_dec is b_pre unless the autoencoder has one of its own. Mean and scale of an input are computed when they are needed
and not stored, so that any number of calls may use one autoencoder at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.errors import DataLoss

_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class Autoencoder:
    """The autoencoder, or transcoder, of one layer. Weights are frozen."""

    pre_bias: torch.Tensor
    """b_pre [n_in]."""
    encoder: torch.Tensor
    """Wenc [Z, n_in]."""
    latent_bias: torch.Tensor
    """b_lat [Z]."""
    decoder: torch.Tensor
    """Wdec [n_out, Z]; column j is the write direction of latent j, at a scale of 1."""
    decoder_bias: torch.Tensor | None = None
    """b_dec [n_out]; None if it is b_pre."""
    threshold: torch.Tensor | None = None
    """With JumpReLU: theta [Z], above which a latent is active."""
    skip: torch.Tensor | None = None
    """Wskip [n_out, n_in]; None if the output depends on the input only through the latents."""
    activation: AutoencoderActivation = AutoencoderActivation.RELU
    """phi."""
    k: int | None = None
    """With TopK: how many latents are kept at a token."""
    postact: AutoencoderActivation = AutoencoderActivation.RELU
    """With TopK and JumpReLU: applied to the kept values."""
    normalization: InputNormalization = InputNormalization.NONE
    """n."""
    input_norm: ModelNorm = ModelNorm.NONE
    """The norm of the model applied to the tap before it is read; callers that take x from a tap must apply it."""

    def __post_init__(self) -> None:
        """Check that the weights fit together; raises DataLoss naming the one that does not."""
        latents, inputs = self.encoder.shape
        outputs = inputs if self.decoder_bias is None else len(self.decoder_bias)
        wanted = {
            "pre_bias": (inputs,),
            "latent_bias": (latents,),
            "decoder": (outputs, latents),
            "threshold": (latents,),
            "skip": (outputs, inputs),
        }
        for name, shape in wanted.items():
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != shape:
                found = tuple(part.shape)
                raise DataLoss(f"autoencoder weight {name} has shape {found}, but encoder [Z, n_in] needs {shape}")
        if self.activation is AutoencoderActivation.TOP_K and not 0 < (self.k or 0) <= latents:
            raise DataLoss(f"a TopK autoencoder of {latents} latents needs 0 < k <= {latents}, not {self.k}")
        if (self.threshold is None) is (self.activation is AutoencoderActivation.JUMP_RELU):
            raise DataLoss(
                f"a {self.activation} autoencoder {'needs a' if self.threshold is None else 'has no'} threshold"
            )

    @property
    def n_latents(self) -> int:
        """Z."""
        return self.encoder.shape[0]

    @property
    def n_inputs(self) -> int:
        """Width of its input."""
        return self.encoder.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.device

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights."""
        parts = (self.pre_bias, self.encoder, self.latent_bias, self.decoder)
        others = (self.decoder_bias, self.threshold, self.skip)
        return sum(part.nbytes for part in (*parts, *others) if part is not None)

    @property
    def has_write_scale(self) -> bool:
        """Whether `write_scale` is other than 1."""
        return self.normalization.scales

    def write_scale(self, x: torch.Tensor) -> torch.Tensor | None:
        """The factor of the columns of Wdec at inputs *x* [..., n_in]: [..., 1]; None if that is 1."""
        return self._mean_and_scale(x)[1]

    def input_divisor(self, x: torch.Tensor) -> torch.Tensor | None:
        """What inputs *x* [..., n_in] are divided by before they are encoded: [..., 1]; None if that is 1."""
        mean, scale = self._mean_and_scale(x)
        return scale + _LAYER_NORM_EPSILON if scale is not None and mean is not None else scale

    def pre_activation(self, x: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """pre(x) [..., Z] of inputs *x* [..., n_in]; with *detach_scale*, what n divides by is a constant."""
        mean, divisor = self._mean_and_scale(x)[0], self.input_divisor(x)
        if detach_scale and divisor is not None:
            divisor = divisor.detach()
        if mean is not None:
            x = x - mean
        if divisor is not None:
            x = x / divisor
        return torch.nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)

    def pre_activations_of(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """That of one latent *which* [n] of each input *x* [n, n_in]: [n]."""
        return self.pre_activation(x).gather(1, which.unsqueeze(1)).squeeze(1)

    def encoder_row(self, latent: int) -> torch.Tensor:
        """What a latent reads, [n_in]."""
        return self.encoder[latent]

    def decoder_row(self, latent: int) -> torch.Tensor:
        """What a latent adds to the reconstruction at an activation and scale of 1, [n_out]."""
        return self.decoder[:, latent]

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Phi of pre-activations [..., Z]."""
        return activated(self.activation, pre, threshold=self.threshold, k=self.k, postact=self.postact)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [..., Z] of inputs *x* [..., n_in]."""
        return self.activate(self.pre_activation(x))

    def decode(self, latents: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction [..., n_out] from *latents* [..., Z] of the inputs *x* [..., n_in]."""
        return self._denormalized(torch.nn.functional.linear(latents, self.decoder, self.output_bias), x)

    def offset(self, x: torch.Tensor) -> torch.Tensor:
        """What is decoded of inputs *x* [..., n_in] where no latent is active, [..., n_out]: dec(0, x)."""
        return self._denormalized(self.output_bias.expand(*x.shape[:-1], -1), x)

    @property
    def output_bias(self) -> torch.Tensor:
        """What is decoded where no latent is active, [n_out], but for what the inputs themselves give: b."""
        return self.pre_bias if self.decoder_bias is None else self.decoder_bias

    def _denormalized(self, decoded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """*decoded* [..., n_out] with all that the output takes from the inputs *x* themselves."""
        mean, scale = self._mean_and_scale(x)
        if scale is not None:
            decoded = decoded * scale
        if mean is not None:
            decoded = decoded + mean
        return decoded if self.skip is None else decoded + torch.nn.functional.linear(x, self.skip)

    def _mean_and_scale(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Mean and scale of each input vector [..., 1]; None where nothing is subtracted or divided by."""
        match self.normalization:
            case InputNormalization.NONE:
                return None, None
            case InputNormalization.CENTRED:
                return x.mean(dim=-1, keepdim=True), None
            case InputNormalization.LAYER_NORM:
                return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True, correction=1)
            case InputNormalization.CONSTANT_NORM:
                return None, torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.n_inputs**-0.5

    def __repr__(self) -> str:
        """Sizes only."""
        return f"Autoencoder({self.n_inputs} -> {self.n_latents}, {self.activation})"


def activated(
    activation: AutoencoderActivation,
    pre: torch.Tensor,
    *,
    threshold: torch.Tensor | None = None,
    k: int | None = None,
    postact: AutoencoderActivation = AutoencoderActivation.RELU,
) -> torch.Tensor:
    """Phi of pre-activations *pre* [..., Z].

    Args:
        activation: phi.
        pre: the pre-activations.
        threshold: with JumpReLU, theta [Z].
        k: with TopK, how many latents are kept at a token.
        postact: with TopK and JumpReLU, applied to the kept values.
    """
    if threshold is not None:
        return _pointwise(postact, pre) * (pre > threshold)
    if activation is not AutoencoderActivation.TOP_K:
        return _pointwise(activation, pre)
    kept, where = pre.topk(k or 0, dim=-1)
    return torch.zeros_like(pre).scatter(-1, where, _pointwise(postact, kept))


def _pointwise(activation: AutoencoderActivation, x: torch.Tensor) -> torch.Tensor:
    return x if activation is AutoencoderActivation.IDENTITY else torch.relu(x)
