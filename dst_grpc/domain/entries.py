"""Whether the entries of a derived scalar are nodes, and the index of the node at an entry.

Most types have one axis per entry of their node's index. Two forms of attention heads differ: in the flattened one the
first axis runs over pairs of tokens, and for heads at a query token the node is the head's whole row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.nodes import NODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.scalar_facts import ScalarFacts


def entries_are_nodes(facts: ScalarFacts) -> bool:
    """Whether each entry of a type is, or stands for, one node that an index can name."""
    if facts.node_type is NodeType.ATTENTION_HEAD and facts.dimensions[-1] is Dimension.ATTN_HEADS:
        return True
    return not facts.is_flattened and NODES[facts.node_type].rank in {None, len(facts.dimensions)}


def is_of_token_pairs(facts: ScalarFacts) -> bool:
    """Whether entries are at a query token and a key token, so that those of later keys are not nodes."""
    return facts.is_flattened or (
        facts.dimensions[:2] == (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
    )


def node_at(facts: ScalarFacts, layer: int | None, entry: Sequence[int]) -> NodeIndex:
    """The node at an entry of one layer's tensor; pairs of tokens are given as (t, u) in either form."""
    indices: tuple[int | None, ...] = tuple(entry)
    if len(indices) == 2 and facts.node_type is NodeType.ATTENTION_HEAD:
        indices = (indices[0], None, indices[1])
    return NodeIndex(node_type=facts.node_type, tensor_indices=indices, layer_index=layer)
