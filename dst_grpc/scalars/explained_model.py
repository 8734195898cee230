"""The model that is explained, together with the autoencoders in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.errors import Internal, require
from dst_grpc.scalars.topology import AutoencoderInputs, AutoencoderKind, Topology

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.domain.components import NodeType
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.stored_transcoder import StoredTranscoder


class AutoencoderSet(AutoencoderKind, Protocol):
    """The autoencoders of one input, by layer."""

    @property
    def coders(self) -> Mapping[int | None, Autoencoder | StoredTranscoder]:
        """One per covered layer."""


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """A model, with the autoencoders in use."""

    decoder: Decoder
    """The model."""
    topology: Topology
    """The order of computation in the model, with the inputs of its autoencoders."""
    sets: tuple[AutoencoderSet, ...] = ()
    """The autoencoders, at most one per node type."""

    @property
    def inputs(self) -> AutoencoderInputs:
        """The inputs of the autoencoders."""
        return self.topology.inputs

    def autoencoder(self, node_type: NodeType, layer: int | None) -> Autoencoder | StoredTranscoder:
        """The autoencoder of *layer* whose latents are *node_type*; for a generic latent that of the only set."""
        kind = require(self.inputs.of(node_type))
        return next(s for s in self.sets if s.input is kind).coders[layer]

    def loaded(self, node_type: NodeType, layer: int | None) -> Autoencoder:
        """The same, of a set whose weights are in memory."""
        found = self.autoencoder(node_type, layer)
        if not isinstance(found, Autoencoder):
            raise Internal(f"{found} stays in its files")
        return found
