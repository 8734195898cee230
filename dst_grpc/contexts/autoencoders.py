"""Autoencoder sets: what their kind implies, and a set that is loaded.

A set holds one autoencoder per layer, all reading the same derived scalar. The facts of a kind follow from that scalar;
section 7 of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.domain.architecture import ModelDimensions
    from dst_grpc.domain.resolution import LayerCheck
    from dst_grpc.engine.autoencoder import Autoencoder

_T = DerivedScalarType
_NODE_TYPES = {
    _T.MLP_POST_ACT: NodeType.MLP_AUTOENCODER_LATENT,
    _T.RESID_DELTA_MLP: NodeType.MLP_AUTOENCODER_LATENT,
    _T.RESID_DELTA_MLP_FROM_MLP_POST_ACT: NodeType.MLP_AUTOENCODER_LATENT,
    _T.RESID_DELTA_ATTN: NodeType.ATTENTION_AUTOENCODER_LATENT,
    _T.ATTN_WRITE: NodeType.ATTENTION_AUTOENCODER_LATENT,
}
SPLICEABLE = frozenset(
    {_T.MLP_POST_ACT, _T.RESID_DELTA_MLP, _T.RESID_DELTA_ATTN, _T.RESID_POST_ATTN, _T.RESID_POST_MLP}
)
"""Kinds that can be put into a run; the others only read recorded taps."""

_COLUMNS = frozenset(
    {
        Dimension.RESIDUAL_STREAM_CHANNELS,
        Dimension.MLP_ACTS,
        Dimension.ATTN_HEADS,
        Dimension.QUERY_AND_KEY_CHANNELS,
        Dimension.VALUE_CHANNELS,
        Dimension.VOCAB_SIZE,
    }
)
"""Axes whose entries an autoencoder can read together."""


def node_type_of(dst: DerivedScalarType) -> NodeType:
    """What a latent of an autoencoder of *dst* is."""
    return _NODE_TYPES.get(dst, NodeType.AUTOENCODER_LATENT)


def input_width(dst: DerivedScalarType, dimensions: ModelDimensions) -> int | None:
    """Width of what an autoencoder of *dst* reads in a model; None if none can read it.

    Its rows run over tokens, token pairs or pairs and heads, and its columns over the last axis; only heads at a token
    are read together, [T, H, c] as [T, H c].
    """
    axes = FACTS[dst].dimensions
    if axes[0] is not Dimension.SEQUENCE_TOKENS or axes[-1] not in _COLUMNS:
        return None
    merged = axes[1:] if Dimension.ATTENDED_TO_SEQUENCE_TOKENS not in axes else axes[-1:]
    width = 1
    for axis in merged:
        if axis not in _COLUMNS:
            return None
        width *= dimensions.size_of(axis, n_tokens=0)
    return width


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class AutoencoderContext:
    """A loaded set of autoencoders. Immutable."""

    handle: str
    """Name, revision, element type and device."""
    name: str
    """Registered name."""
    model: str
    """Name of the model that it belongs to."""
    dst: DerivedScalarType
    """What it reads."""
    node_type: NodeType
    """What its latents are."""
    by_layer: Mapping[int | None, Autoencoder]
    """The autoencoders by layer; the layer is None for what exists once per model."""
    digest: str
    """SHA-256 of its files."""
    device: str
    """Where it lives."""
    parameter_bytes: int
    """Bytes of its weights."""
    measured: tuple[LayerCheck, ...]
    """Its figures on the prompts of the self-check; empty for a kind that is no recorded tap."""

    @property
    def has_write_scale(self) -> bool:
        """Whether what a latent writes depends on its token's input, besides on the latent."""
        return any(autoencoder.has_write_scale for autoencoder in self.by_layer.values())

    @property
    def parts(self) -> tuple[object, ...]:
        """What else must be gone before its memory is."""
        return tuple(self.by_layer.values())

    def __repr__(self) -> str:
        """Handle and size."""
        return f"AutoencoderContext({self.handle}, {len(self.by_layer)} layers, {self.parameter_bytes} bytes)"
