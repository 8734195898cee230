"""ModelContext: a loaded model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dst_grpc.domain.components import TensorElementType
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class ModelContext:
    """A loaded model. Immutable; a reference to it outside a lease keeps its memory from being freed."""

    handle: str
    """Name, revision, element type and device."""
    name: str
    """Registered name."""
    decoder: Decoder
    """The model."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    digest: str
    """SHA-256 of its files."""
    device: str
    """Device of the weights."""
    element_type: TensorElementType
    """Type of its weights."""
    parameter_bytes: int
    """Bytes of its weights."""

    @property
    def parts(self) -> tuple[object, ...]:
        """The objects that hold its weights."""
        return (self.decoder,)

    def __repr__(self) -> str:
        """Handle and size."""
        return f"ModelContext({self.handle}, {self.parameter_bytes} bytes)"
