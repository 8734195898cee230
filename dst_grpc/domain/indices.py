"""Indices: which entries of which tensor. Frozen, hashable, independent of any model.

In every index `tensor_indices` follows the axes of the tensor it points into; None selects the whole axis, and
omitted trailing axes are whole too. The reference's `"All"` is our None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dst_grpc.domain.components import AttentionTraceType, NodeType, PassType
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest, Violations

_HEAD_INPUTS = tuple(tap for tap in ActivationLocationType if tap.facts.head_input is not None)
TensorIndices = tuple[int | None, ...]
"""One entry per axis: a position from 0, or None for the whole axis."""

MAX_INDEX = 2**32 - 1
"""Largest index that a message can carry (uint32)."""


def check_number(
    problems: Violations, field: str, number: int | None, *, least: int = 0, most: int = MAX_INDEX
) -> None:
    """Note a *number* below *least*, or above the *most* that its message can carry; None is none.

    The other bound is not told: that of a message is none that anybody expects of layers or tokens.
    """
    if number is not None and not least <= number <= most:
        bound = f"at most {most}" if number > most else f"{least} or more"
        problems.add(field, f"must be {bound}, not {number}")


def check_token_ids(problems: Violations, field: str, ids: Sequence[int]) -> None:
    """Note the *ids* that no vocabulary has. A prompt may have a million."""
    if not ids or 0 <= min(ids) <= max(ids) <= MAX_INDEX:
        return
    for i, token in enumerate(ids):
        check_number(problems, f"{field}[{i}]", token)


def check_indices(problems: Violations, indices: TensorIndices, layer_index: int | None, rank: int | None) -> None:
    """Note what is wrong with an index's numbers; *rank* None means that the rank is not known."""
    for i, index in enumerate(indices):
        check_number(problems, f"tensor_indices[{i}]", index)
    check_number(problems, "layer_index", layer_index)
    if rank is not None and len(indices) > rank:
        problems.add("tensor_indices", f"has {len(indices)} entries, but the tensor has only {rank} axes")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIndex:
    """A node, or several: an attention head at (t, u, h), a neuron at (t, n), a latent at (t, j), ..."""

    node_type: NodeType
    """The kind of node."""
    tensor_indices: TensorIndices = ()
    """Position along each axis of the node's reference tensor; None selects all."""
    layer_index: int | None = None
    """Layer from 0; None for a node outside any layer."""
    pass_type: PassType = PassType.FORWARD
    """Value, or gradient."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_indices(problems, self.tensor_indices, self.layer_index, NODES[self.node_type].rank)
        problems.raise_if_any()

    @property
    def ndim(self) -> int:
        """Number of axes left open, never negative (rule 16); raises InvalidRequest for a type without a tensor."""
        rank = NODES[self.node_type].rank
        if rank is None:
            raise InvalidRequest.of("node_type", f"{self.node_type} has no reference tensor to count the axes of")
        return rank - sum(index is not None for index in self.tensor_indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttnSubNodeIndex(NodeIndex):
    """The query, key or value of an attention head."""

    q_k_or_v: ActivationLocationType
    """ATTN_QUERY, ATTN_KEY or ATTN_VALUE."""

    def __post_init__(self) -> None:
        """Check rule 11 besides the numbers."""
        problems = Violations()
        check_indices(problems, self.tensor_indices, self.layer_index, NODES[self.node_type].rank)
        problems.check(
            self.node_type is NodeType.ATTENTION_HEAD,
            "node_type",
            f"must be {json_name(NodeType.ATTENTION_HEAD)}, not {json_name(self.node_type)}",
        )
        problems.check(
            self.q_k_or_v.facts.head_input is not None,
            "q_k_or_v",
            f"must be {json_names(_HEAD_INPUTS)}, not {json_name(self.q_k_or_v)}",
        )
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationIndex:
    """Entries of a tapped tensor."""

    activation_location_type: ActivationLocationType
    """Which tap."""
    tensor_indices: TensorIndices = ()
    """Position along each axis of the tap; None selects all."""
    layer_index: int | None = None
    """Layer from 0; None for a tap outside any layer."""
    pass_type: PassType = PassType.FORWARD
    """Value, or gradient."""

    def __post_init__(self) -> None:
        """Check the numbers and rule 14; raises InvalidRequest."""
        problems = Violations()
        rank = len(self.activation_location_type.dimensions)
        check_indices(problems, self.tensor_indices, self.layer_index, rank)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttnSubActivationIndex(ActivationIndex):
    """Entries of an attention tap as reached through the query or the key."""

    q_or_k: ActivationLocationType
    """ATTN_QUERY or ATTN_KEY."""

    def __post_init__(self) -> None:
        """Check rule 12 besides the numbers."""
        problems = Violations()
        location = self.activation_location_type
        check_indices(problems, self.tensor_indices, self.layer_index, len(location.dimensions))
        problems.check(
            location.node_type is NodeType.ATTENTION_HEAD,
            "activation_location_type",
            f"must be a tap of attention heads, not {json_name(location)}",
        )
        problems.check(
            self.q_or_k.facts.head_input in {AttentionTraceType.Q, AttentionTraceType.K},
            "q_or_k",
            f"must be {json_names(_HEAD_INPUTS[:2])}, not {json_name(self.q_or_k)}",
        )
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedScalarIndex:
    """Entries of a derived scalar."""

    dst: DerivedScalarType
    """Which derived scalar."""
    tensor_indices: TensorIndices = ()
    """Position along each of its axes; None selects all."""
    layer_index: int | None = None
    """Layer from 0; None for a type outside any layer."""
    pass_type: PassType = PassType.FORWARD
    """Value, or gradient."""

    def __post_init__(self) -> None:
        """Check the numbers and rule 14; raises InvalidRequest."""
        problems = Violations()
        check_indices(problems, self.tensor_indices, self.layer_index, len(FACTS[self.dst].dimensions))
        problems.raise_if_any()
