"""What is peculiar about some derived scalar types: remarks for the catalogue, where the formula alone would mislead.

The peculiarities are the research code's, kept because published numbers have them. Computation does not read this.
"""

from __future__ import annotations

from dst_grpc.domain.scalar_types import DerivedScalarType

_T = DerivedScalarType

_PRECEDENCE = (
    "A component counts only if it lies strictly before the place where the gradient is read, and is 0 otherwise. "
)
_OFFLINE = (
    "Latents of an autoencoder of the MLP's write are computed from a[t,n] Wout[n] without the MLP's bias, which the "
    "ONLINE types include."
)
_SIGNED = "The sign of the activation is kept, so that this is negative where the activation is."
_PAIRS = (
    "The first axis is declared as tokens, but runs over the token pairs (t, u) with u <= t and is T(T+1)/2 long: "
    "(0,0), (1,0), (1,1), (2,0), ..."
)
_LATENT_NODES = "The node type is the latent's, although the last axis runs over residual channels."
_CHANNEL_NODES = (
    "The node type is residual_stream_channel; that of the same type for the autoencoder of the MLPs or of attention "
    "is the latent's."
)

NOTES: dict[DerivedScalarType, str] = {
    _T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: _PRECEDENCE
    + "So the last layer's residual is 0 for a loss, although it is the very residual whose gradient is read, while "
    "the residual of the layer before an attention trace counts.",
    _T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: _PRECEDENCE
    + "So the residual before a traced neuron's MLP is 0, although it is the very residual whose gradient is read.",
    _T.AUTOENCODER_LATENT: _OFFLINE,
    _T.MLP_AUTOENCODER_LATENT: _OFFLINE,
    _T.AUTOENCODER_WRITE_NORM: f"{_SIGNED} {_OFFLINE}",
    _T.MLP_AUTOENCODER_WRITE_NORM: f"{_SIGNED} {_OFFLINE}",
    _T.ATTENTION_AUTOENCODER_WRITE_NORM: _SIGNED,
    _T.MLP_WRITE_NORM: _SIGNED,
    _T.ONLINE_AUTOENCODER_WRITE_NORM: _SIGNED,
    _T.ONLINE_MLP_AUTOENCODER_WRITE_NORM: _SIGNED,
    _T.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM: _SIGNED,
    _T.ONLINE_MLP_AUTOENCODER_ERROR_WRITE_NORM: "The sign of the error is kept.",
    _T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN: (
        "Any lone autoencoder is accepted. With one of the MLP's write the numbers mean little: heads write before "
        "what it reads."
    ),
    _T.ONLINE_AUTOENCODER_WRITE: _CHANNEL_NODES,
    _T.ONLINE_MLP_AUTOENCODER_WRITE: _LATENT_NODES,
    _T.ONLINE_ATTENTION_AUTOENCODER_WRITE: _LATENT_NODES,
    _T.FLATTENED_ATTN_POST_SOFTMAX: _PAIRS,
    _T.ATTN_WRITE_NORM: _PAIRS,
    _T.ATTN_ACT_TIMES_GRAD: _PAIRS,
    _T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: _PAIRS,
    _T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: _PAIRS,
    _T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS_BATCHED: _PAIRS,
}
"""The types that have something peculiar about them."""
