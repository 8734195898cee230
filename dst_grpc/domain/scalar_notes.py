"""Remarks on derived scalar types, for the catalogue, where the formula alone would mislead.

The peculiarities are those of the reference implementation, kept because published numbers have them. Computation does
not read this; the rows of `scalars` say which remark belongs to which type.
"""

from __future__ import annotations

_PRECEDENCE = (
    "A component counts only if it lies strictly before the place where the gradient is read, and is 0 otherwise. "
)
LAST_RESIDUAL = (
    f"{_PRECEDENCE}So the last layer's residual is 0 for a loss, although it is the very residual whose gradient is "
    "read, while the residual of the layer before an attention trace counts."
)
TRACED_RESIDUAL = (
    f"{_PRECEDENCE}So the residual before a traced neuron's MLP is 0, although it is the very residual whose gradient "
    "is read."
)
OFFLINE = (
    "Latents of an autoencoder of the MLP's write are computed from a[t,n] Wout[n] without the MLP's bias, which the "
    "ONLINE types include."
)
SIGNED = "The sign of the activation is kept, so that this is negative where the activation is."
SIGNED_ERROR = "The sign of the error is kept."
PAIRS = (
    "The first axis is declared as tokens, but runs over the token pairs (t, u) with u <= t and is T(T+1)/2 long: "
    "(0,0), (1,0), (1,1), (2,0), ..."
)
ANY_AUTOENCODER = (
    "Any lone autoencoder is accepted. With one of the residual stream these are the heads of the latent's own layer. "
    "With one of the MLP's write the numbers mean little: heads write before what it reads."
)
LATENT_NODES = "The node type is the latent's, although the last axis runs over residual channels."
CHANNEL_NODES = (
    "The node type is residual_stream_channel; that of the same type for the autoencoder of the MLPs or of attention "
    "is the latent's."
)
