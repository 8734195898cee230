"""The catalogue's entry of a derived scalar type."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.scalar_facts import Backward
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedScalarTypeInfo:
    """One derived scalar type, as the server computes it."""

    dst: DerivedScalarType
    """The type."""
    name: str
    """Its name in the reference implementation."""
    dimensions: tuple[Dimension, ...]
    """Axes of one tensor, outermost first."""
    flattened: bool
    """Whether the first axis runs over token pairs of the lower triangle."""
    node_type: NodeType
    """Type of the nodes along the last axis."""
    once_per_model: bool
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
    """Its formula, in words and symbols."""
    note: str
    """A remark where the formula alone would mislead; else empty."""

    @classmethod
    def of(cls, dst: DerivedScalarType) -> DerivedScalarTypeInfo:
        """The entry of *dst*, from its row of facts."""
        facts = FACTS[dst]
        return cls(
            dst=dst,
            name=dst.value,
            dimensions=facts.dimensions,
            flattened=facts.is_flattened,
            node_type=facts.node_type,
            once_per_model=facts.once,
            requires_grad_for_forward_pass=facts.requires_grad_for_forward_pass,
            accepts_derive_gradients=facts.backward is not Backward.REFUSED,
            yields_backward=facts.backward in {Backward.GRADIENT, Backward.RATIO},
            needs_autoencoder=facts.autoencoder,
            needs_fields=facts.required_config_fields,
            formula=facts.formula,
            note=facts.note,
        )
