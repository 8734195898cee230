"""The nonlinearity of an autoencoder, and the norms applied to its input."""

from __future__ import annotations

from enum import StrEnum


class AutoencoderActivation(StrEnum):
    """The nonlinearity phi of an autoencoder; values are the native file format's names."""

    RELU = "ReLU"
    TOP_K = "TopK"
    """Only the k largest latents of a token are kept."""
    JUMP_RELU = "JumpReLU"
    """A latent is kept where it is above its threshold."""
    IDENTITY = "Identity"


class InputNormalization(StrEnum):
    """How an autoencoder normalizes each input vector before encoding; undone after decoding."""

    NONE = "none"
    """Not at all."""
    CENTRED = "centred"
    """The mean over channels is subtracted."""
    LAYER_NORM = "layer_norm"
    """The mean is subtracted, and the result divided by its standard deviation (of a sample: n - 1) plus 1e-5."""
    CONSTANT_NORM = "constant_norm"
    """It is scaled to a norm of sqrt(n), n being its size."""

    @property
    def scales(self) -> bool:
        """Whether it divides by a scale, so that a latent's write depends on its token's input too."""
        return self in {InputNormalization.LAYER_NORM, InputNormalization.CONSTANT_NORM}


class ModelNorm(StrEnum):
    """The norm of the model that is applied to the recorded tap before an autoencoder reads it."""

    NONE = "none"
    """None: it reads the tap itself."""
    MLP_NORM = "mlp_norm"
    """The norm before the layer's MLP."""
    MLP_NORM_WITHOUT_GAIN = "mlp_norm_without_gain"
    """The same without its gain and bias."""
