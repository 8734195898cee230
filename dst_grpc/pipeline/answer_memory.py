"""How much memory an answer takes besides what its runs recorded: steps that are ready, and what deriving takes.

An answer is made one step ahead: a step is cut into messages while the next is derived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Component, NodeType
from dst_grpc.domain.scalar_facts import Direction, Form
from dst_grpc.errors import require
from dst_grpc.pipeline.tensor_answer import STEP_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.pipeline.sizes import Sizes

MESSAGE_BYTES = 2 << 20
"""A message of 1 MiB, and gRPC's copy of it."""
_STEPS_HELD = 2
_BYTES_OF_PAIR = 16
"""Indices of a pair of tokens, by which a lower triangle is taken."""
_DENSITY = 1 / 8
"""Of the entries of a latent tensor, those that are not 0: unknown before the run, and less in most autoencoders."""
_DERIVATIVES = 8
"""Tensors of the size of the result that hold the graph of a derivative along a direction, taken by two backward
passes."""


def derive_bytes(sizes: Sizes, scalars: Sequence[PlannedScalar]) -> int:
    """Bytes of making the tensors of *scalars*, dense."""
    total = sum(scalar.output_bytes for scalar in scalars)
    largest = max(map(_held_at_once, scalars), default=0)
    step = largest if largest >= STEP_BYTES else STEP_BYTES + largest
    working = max((_working_bytes(sizes, scalar) for scalar in scalars), default=0)
    return min(total, _STEPS_HELD * step) + working


def sparse_bytes(scalars: Sequence[PlannedScalar]) -> int:
    """Bytes of the tensors of *scalars* that are sent as their nonzero entries, which are all made first."""
    return sum(int(scalar.output_bytes * _DENSITY * (1 + len(scalar.axes))) for scalar in scalars)


def of_layer(scalar: PlannedScalar) -> int:
    """Bytes of one layer's tensor."""
    return scalar.output_bytes // max(len(scalar.layers) * len(scalar.passes), 1)


def _held_at_once(scalar: PlannedScalar) -> int:
    """Bytes of the part of a tensor that is derived at once."""
    whole, facts = of_layer(scalar), scalar.facts
    if facts.is_raw and not require(facts.tap).facts.is_attention_matrix:
        return 0  # it is sent as it was recorded
    if not facts.is_of_vectors or not scalar.axes[0].size:
        return whole
    return min(whole, scalar.rows_of(STEP_BYTES) * whole // scalar.axes[0].size)


def _working_bytes(sizes: Sizes, scalar: PlannedScalar) -> int:
    """Bytes of what a layer's tensor is computed from, besides what is recorded."""
    facts = scalar.facts
    full = of_layer(scalar) * _entries_of_each(sizes, scalar)
    if facts.is_of_vectors:
        # The directions: as many as one token's writes, before these are summed over the heads.
        # Then sums come in another order than they are sent in, and are copied.
        of_token = of_layer(scalar) // max(scalar.axes[0].size, 1)
        working = max(of_token * sizes.model.n_heads, _held_at_once(scalar)) if facts.is_summed else of_token
        if facts.component is Component.NEURON:
            working = 0  # their directions are weights
    elif facts.is_raw:
        working = 0
    else:
        working = full * (_DERIVATIVES if facts.quantity.is_of_in_edges else 1)
    if facts.is_flattened:
        working += _BYTES_OF_PAIR * scalar.axes[0].size
    ends = {Direction.FINAL_ACTIVATION_RESIDUAL_GRAD: _traced(scalar), Direction.SUBNODE_GRAD: scalar.node}
    node = None if facts.direction is None else ends.get(facts.direction)
    return working + (0 if node is None else _recomputed_layer(sizes, node))


def _traced(scalar: PlannedScalar) -> NodeIndex | None:
    return None if scalar.trace is None else scalar.trace.node_index


def _entries_of_each(sizes: Sizes, scalar: PlannedScalar) -> int:
    """How many entries of the full tensor each entry of the result is made of, on average."""
    facts = scalar.facts
    is_of_heads = facts.is_summed and not facts.is_of_vectors and facts.direction is not Direction.ALL_LATENT_READS
    entries = sizes.model.n_heads if is_of_heads else 1
    match facts.form:
        case Form.FLATTENED:
            return 2 * entries
        case Form.SUM_KEYS:
            return sizes.n_tokens * entries
        case Form.SUM_CHANNELS:
            return sizes.model.d_model * entries
        case Form.FULL:
            return entries


def _recomputed_layer(sizes: Sizes, node: NodeIndex) -> int:
    """Bytes of the graph of one layer, which the gradient of one of its nodes is taken in: scores or neurons, with what
    is computed from them and their gradients."""
    is_head = node.node_type is NodeType.ATTENTION_HEAD
    width = sizes.n_tokens * sizes.model.n_heads if is_head else sizes.model.d_mlp
    return 4 * sizes.item_bytes * sizes.n_tokens * width
