"""The default groups of Explain: a type of each for the embedding, the MLPs and attention; or the residual stream."""

from __future__ import annotations

from dst_grpc.domain.scalar_types import DerivedScalarType

_T = DerivedScalarType

DEFAULT_GROUPS = {
    "write_norm": (
        _T.RESID_POST_EMBEDDING_NORM,
        (_T.MLP_WRITE_NORM, _T.ONLINE_MLP_AUTOENCODER_WRITE_NORM),
        (_T.UNFLATTENED_ATTN_WRITE_NORM, _T.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM),
    ),
    "act_times_grad": (
        _T.TOKEN_ATTRIBUTION,
        (_T.MLP_ACT_TIMES_GRAD, _T.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD),
        (_T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, _T.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD),
    ),
    "direction_write": (
        _T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
        (_T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, _T.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD),
        (
            _T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
            _T.ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        ),
    ),
    "activation": (
        _T.ALWAYS_ONE,
        (_T.MLP_POST_ACT, _T.ONLINE_MLP_AUTOENCODER_LATENT),
        (_T.ATTN_QK_PROBS, _T.ONLINE_ATTENTION_AUTOENCODER_LATENT),
    ),
}
"""Group to its types: embedding; MLPs as neurons or as latents; attention as heads or as latents."""

RESIDUAL_GROUPS = {
    "residual_write_norm": (_T.ONLINE_AUTOENCODER_WRITE_NORM, _T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_NORM),
    "residual_act_times_grad": (
        _T.ONLINE_AUTOENCODER_ACT_TIMES_GRAD,
        _T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_ACT_TIMES_GRAD,
    ),
    "residual_direction_write": (
        _T.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        _T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD,
    ),
    "residual_activation": (_T.ONLINE_AUTOENCODER_LATENT,),
}
"""Group to its types, if latents describe the residual stream: latents, and errors."""
