"""What the catalogue says of a derived scalar type."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc._gen.dst.v1 import catalog_pb2 as pb
from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, DIMENSION, NODE_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedScalarTypeInfo:
    """One derived scalar type, as the server computes it."""

    dst: DerivedScalarType
    """The type."""
    dimensions: tuple[Dimension, ...]
    """Axes of one tensor, outermost first."""
    is_flattened: bool
    """Whether the first axis runs over token pairs of the lower triangle."""
    node_type: NodeType
    """What the entries along the last axis are."""
    has_no_layers: bool
    """Whether there is one tensor per model rather than one per layer."""
    requires_grad_for_forward_pass: bool
    """Whether even the value needs the backward pass of an origin."""
    accepts_derive_gradients: bool
    """Whether `derive_gradients` is accepted."""
    yields_backward: bool
    """Whether `derive_gradients` adds a BACKWARD tensor."""
    needs_autoencoder: NodeType | None
    """Type of autoencoder needed, AUTOENCODER_LATENT for exactly one of any type; None if none is."""
    needs_fields: tuple[str, ...]
    """Fields of DstConfig that must be set."""
    formula: str
    """The value in words and symbols."""
    note: str
    """What is peculiar about it; empty if nothing is."""

    @classmethod
    def from_wire(cls, message: pb.DerivedScalarTypeInfo) -> DerivedScalarTypeInfo | None:
        """The type; None if it, or a word that describes it, is newer than this client, which cannot ask for it."""
        dst = DERIVED_SCALAR_TYPE.from_wire(message.dst)
        node_type = NODE_TYPE.from_wire(message.node_type)
        dimensions = [DIMENSION.from_wire(number) for number in message.dimensions]
        known = [dimension for dimension in dimensions if dimension is not None]
        if dst is None or node_type is None or len(known) < len(dimensions):
            return None
        return cls(
            dst=dst,
            dimensions=tuple(known),
            is_flattened=message.is_flattened,
            node_type=node_type,
            has_no_layers=message.has_no_layers,
            requires_grad_for_forward_pass=message.requires_grad_for_forward_pass,
            accepts_derive_gradients=message.accepts_derive_gradients,
            yields_backward=message.yields_backward,
            needs_autoencoder=NODE_TYPE.from_wire(message.needs_autoencoder),
            needs_fields=tuple(message.needs_fields),
            formula=message.formula,
            note=message.note,
        )
