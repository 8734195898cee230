"""What an autoencoder does to what it reads: its nonlinearity, and the norms before it."""

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
    """What an autoencoder does to each input vector before it encodes it, and undoes after it decoded."""

    NONE = "none"
    """Nothing."""
    CENTRED = "centred"
    """The mean over channels is subtracted."""
    LAYER_NORM = "layer_norm"
    """The same, and it is divided by its standard deviation (of a sample: n - 1) plus 1e-5."""
    CONSTANT_NORM = "constant_norm"
    """It is scaled to a length of root n."""

    @property
    def scales(self) -> bool:
        """Whether it divides by a scale, so that what a latent writes depends on its token's input too."""
        return self in {InputNormalization.LAYER_NORM, InputNormalization.CONSTANT_NORM}


class ModelNorm(StrEnum):
    """The norm of the model that stands between the recorded tap and what an autoencoder reads."""

    NONE = "none"
    """None: it reads the tap itself."""
    MLP_NORM = "mlp_norm"
    """The norm before the layer's MLP."""
    MLP_NORM_WITHOUT_GAIN = "mlp_norm_without_gain"
    """The same without its gain and bias."""
