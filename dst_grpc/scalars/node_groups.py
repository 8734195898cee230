"""Lists of nodes by type and layer, as index tensors: sorted once, looked up by each derived scalar of the type."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.nodes import NODES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.components import NodeType
    from dst_grpc.domain.indices import NodeIndex


@dataclass(frozen=True, slots=True, eq=False)
class NodeGroup:
    """The nodes of a list that have one type, one layer, and as many indices."""

    node_type: NodeType
    layer: int | None
    positions: torch.Tensor
    """Their positions in the list, [n]."""
    entries: torch.Tensor
    """Their indices in a tensor of the type, [n, axes]; axes that are open are left out."""
    _places: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False)
    """What `places_in` returned."""

    @property
    def is_of_entries(self) -> bool:
        """Whether each node is one entry of its type's tensor: no axis is open."""
        return NODES[self.node_type].rank in {None, self.entries.shape[1]}

    def places_in(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the nodes a tensor of *shape* has, and where; the same tensors for each derived scalar of the type.

        Args:
            shape: sizes of the axes; if there is one fewer than indices, the first is of pairs of tokens, t-major.

        Returns:
            The positions in the list of the nodes that are inside, and their entries counted row by row, both [m].
        """
        if shape not in self._places:
            entries = self.entries
            if len(shape) < entries.shape[1]:
                t, u, rest = entries[:, :1], entries[:, 1:2], entries[:, 2:]
                entries = torch.cat((t * (t + 1) // 2 + u, rest), dim=1)
            inside = (entries < torch.tensor(shape)).all(dim=1)
            strides = torch.tensor([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])
            self._places[shape] = self.positions[inside], entries[inside] @ strides
        return self._places[shape]


class NodeGroups:
    """The groups of a list of nodes."""

    def __init__(self, nodes: Sequence[NodeIndex]) -> None:
        """Sort *nodes*."""
        self.count = len(nodes)
        """Nodes in the list."""
        found: dict[tuple[NodeType, int | None, int], tuple[list[int], list[tuple[int, ...]]]] = {}
        for i, node in enumerate(nodes):
            entry = tuple(index for index in node.tensor_indices if index is not None)
            positions, entries = found.setdefault((node.node_type, node.layer_index, len(entry)), ([], []))
            positions.append(i)
            entries.append(entry)
        self._by_key = {
            key: NodeGroup(key[0], key[1], torch.tensor(positions), torch.tensor(entries))
            for key, (positions, entries) in found.items()
        }

    def of(self, node_type: NodeType, layer: int | None, n_axes: int) -> NodeGroup | None:
        """The nodes of a type and layer with *n_axes* indices; None if there are none."""
        return self._by_key.get((node_type, layer, n_axes))

    def __iter__(self) -> Iterator[NodeGroup]:
        """Every group, in the order of their first nodes."""
        return iter(self._by_key.values())
