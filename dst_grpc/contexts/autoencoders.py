"""Loaded autoencoder sets: one autoencoder per layer, all reading the same derived scalar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import AutoencoderInput, input_of
from dst_grpc.domain.components import NodeType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.stored_transcoder import StoredTranscoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.domain.resolution import LayerCheck
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.transcoders import Transcoders


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
    """The derived scalar that it reads."""
    by_layer: Mapping[int | None, Autoencoder]
    """The autoencoders by layer; the layer is None for one that exists once per model. Empty for transcoders that stay
    in their files."""
    digest: str
    """SHA-256 of its files."""
    device: str
    """Device of the weights."""
    parameter_bytes: int
    """Bytes of its weights."""
    measured: tuple[LayerCheck, ...]
    """Its figures on the prompts of the self-check; empty if its input is not a tap."""
    output: DerivedScalarType | None = None
    """For transcoders, the derived scalar that they predict; None if the input is reconstructed."""
    transcoders: Transcoders | None = None
    """The same weights as transcoders of the model's MLPs; None if they are none."""

    @property
    def input(self) -> AutoencoderInput:
        """The row of facts of its input."""
        return input_of(self.dst, self.output)

    @property
    def node_type(self) -> NodeType:
        """Type of its latents."""
        return self.input.node_type

    @property
    def has_write_scale(self) -> bool:
        """Whether a latent's write depends on its token's input too."""
        return any(autoencoder.has_write_scale for autoencoder in self.by_layer.values())

    @property
    def coders(self) -> Mapping[int | None, Autoencoder | StoredTranscoder]:
        """The same, and transcoders that stay in their files."""
        if self.by_layer or self.transcoders is None:
            return self.by_layer
        return {layer: one for layer, one in self.transcoders.by_layer.items() if isinstance(one, StoredTranscoder)}

    @property
    def parts(self) -> tuple[object, ...]:
        """The objects that hold its weights."""
        return tuple(self.coders.values())

    def __repr__(self) -> str:
        """Handle and size."""
        return f"AutoencoderContext({self.handle}, {len(self.parts)} layers, {self.parameter_bytes} bytes)"
