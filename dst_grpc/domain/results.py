"""Answers of Derive: a header, tensors, a trailer. Plain values; the tensors are numpy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.components import Dimension, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor."""

    dimension: Dimension
    """What it runs over."""
    size: int
    """Its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor without its elements."""

    tensor_id: int
    """Number of the tensor within its answer, from 0."""
    dst: DerivedScalarType
    """The derived scalar it holds."""
    pass_type: PassType
    """Which pass of it."""
    layer_index: int | None
    """Which layer of it; None for a type that exists once per model."""
    axes: tuple[Axis, ...]
    """Axes, outermost first."""
    element_type: TensorElementType = TensorElementType.FLOAT32
    """Type of the elements (of the values, if sparse)."""
    encoding: TensorEncoding = TensorEncoding.DENSE
    """Whether the bytes hold every element or the nonzero ones."""
    nonzero_count: int | None = None
    """Number of entries of a sparse tensor; None if dense."""
    spec_index: int = 0
    """Position, in the request, of the derived scalar that asked for it."""
    zero_by_definition: bool = False
    """Whether it projects a residual that does not lie strictly before where the gradient is read, and so is 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def byte_length(self) -> int:
        """Bytes on the wire: dense elements, or values followed by uint32 coordinates [nnz, rank]."""
        if self.nonzero_count is None:
            return math.prod([axis.size for axis in self.axes]) * self.element_type.byte_width
        return self.nonzero_count * (self.element_type.byte_width + 4 * len(self.axes))


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensor:
    """A tensor with its elements."""

    info: TensorInfo
    """What it is."""
    values: np.ndarray[Any, Any]
    """The elements, in the shape of the axes. A server holds bfloat16 as its bits in uint16, a client as float32."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorRows:
    """Some of the elements of a tensor that is too large to be held whole: entries of its first axis that follow one
    another."""

    info: TensorInfo
    """What the whole tensor is."""
    values: np.ndarray[Any, Any]
    """The elements, in the shape of the axes but for the first."""
    first_row: int
    """Where on the first axis they begin."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseTensor:
    """A tensor as its nonzero entries, ascending in coordinates, without duplicates."""

    info: TensorInfo
    """What it is; its axes are those of the full tensor."""
    values: np.ndarray[Any, Any]
    """Values [nnz]."""
    coordinates: np.ndarray[Any, Any]
    """Positions [nnz, rank], uint32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite:
    """Where a run first has values that are not finite, other than the scores of masked pairs of tokens."""

    description: str
    """Where and why it is likely, in a sentence."""
    activation_location_type: ActivationLocationType | None = None
    """Which tap, in the order in which the pass reaches them; None = none, but what is computed from them."""
    layer_index: int | None = None
    """Its layer; None for a tap outside any layer."""
    token_index: int | None = None
    """The first token there that has such values; None if they are of no token."""
    pass_type: PassType = PassType.FORWARD
    """Backward if the values are finite and only gradients are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """Model, tokens and origin of a run."""

    model: str
    """Handle of the model that ran."""
    token_ids: tuple[int, ...]
    """The prompt."""
    token_strings: tuple[str, ...]
    """Each token decoded alone."""
    loss: float | None = None
    """Value of the loss, which may be NaN; None if none was given."""
    activation_value: float | None = None
    """Value of the traced activation; None without a trace."""
    detach_final_layer_norm_scale: bool = False
    """Whether no gradient flowed through the final norm's scale."""

    @property
    def convention(self) -> str:
        """How effects on the loss are to be read, in words; empty without a loss, which alone the final norm is before.

        With the norm frozen they add up to a logit difference, but for biases; else they are those of a small change,
        which the norm takes back a part of.
        """
        if self.loss is None:
            return ""
        return "final norm frozen" if self.detach_final_layer_norm_scale else "final norm not frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHeader(RunHeader):
    """The start of an answer: its run, and the tensors that follow."""

    tensors: tuple[TensorInfo, ...]
    """Every tensor that follows, in order."""
    not_finite: NotFinite | None = None
    """Where the run first has values that are not finite; None if it is finite."""


class AttentionImplementation(StrEnum):
    """How attention is computed."""

    EAGER = "eager"
    """Step by step: scores, probabilities, and their products with values."""
    SDPA = "sdpa"
    """By a fused kernel that does not store the attention matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the numbers depend on."""

    model: str
    """Handle of the model."""
    model_digest: str
    """SHA-256 of its files."""
    autoencoder_digests: tuple[tuple[str, str], ...] = ()
    """Handle and SHA-256 of each autoencoder set used."""
    element_type: TensorElementType = TensorElementType.FLOAT32
    """Element type of the weights."""
    device: str = "cpu"
    """Device of the run."""
    library_versions: tuple[tuple[str, str], ...] = ()
    """Name and version of the libraries that computed."""
    config_digest: str = ""
    """SHA-256 of the canonical request."""
    attention: AttentionImplementation = AttentionImplementation.EAGER
    """How attention was computed."""
    batch_size: int = 1
    """Prompts in the batch that this one ran in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """The cost of a run."""

    forward_passes: int
    """Forward passes run for this answer; 0 if the recording of an earlier run was used."""
    backward_passes: int
    """Backward passes run for this answer."""
    queue_duration: float = 0.0
    """Time spent waiting for the device, in seconds."""
    pass_duration: float = 0.0
    """Time of the forward and backward passes, in seconds."""
    derive_duration: float = 0.0
    """Time of computing derived scalars from recorded taps, in seconds."""


@dataclass(frozen=True, slots=True)
class MadeAnswer:
    """A whole answer in the form in which it is sent."""

    messages: tuple[bytes, ...]
    """Its messages, without the id of the request."""

    @property
    def byte_count(self) -> int:
        """Bytes of them."""
        return sum(map(len, self.messages))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The trailer of an answer without the counts of what was sent."""

    statistics: RunStatistics
    """The cost of a run."""
    provenance: Provenance
    """What the numbers depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTrailer(RunSummary):
    """The end of an answer. Without it the answer is truncated."""

    tensor_count: int
    """Tensors sent."""
    byte_count: int
    """Bytes of tensors sent."""
    checksums: tuple[int, ...]
    """CRC-32 (IEEE 802.3) of each tensor's bytes, by tensor id."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AssembledAnswer:
    """A whole answer, reassembled."""

    request_id: str
    """The request's own id."""
    header: AnswerHeader
    """Its header."""
    trailer: AnswerTrailer
    """Its trailer."""
    tensors: tuple[DenseTensor | SparseTensor, ...] = field(default_factory=tuple)
    """The tensors, by tensor id."""
