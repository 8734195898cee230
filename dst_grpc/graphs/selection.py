"""Which features matter while not all edges are known.

Shapes: m row that is known, N node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dst_grpc.graphs.nodes import Floats, Integers

_COLUMNS_AT_ONCE = 1 << 16
_SMALLEST_SUM = 1e-8
"""What a smaller sum of a row is taken for."""


def partial_influence(rows: Floats, nodes: Integers, weights: Floats) -> Floats:
    """The influence of each node on the targets along edges that are known, [N]; see `influence`.

    Args:
        rows: direct effects on the nodes whose edges are known, [m, N].
        nodes: these nodes, [m].
        weights: of all nodes, [N]: 0 but of targets.
    """
    columns = [slice(first, first + _COLUMNS_AT_ONCE) for first in range(0, rows.shape[1], _COLUMNS_AT_ONCE)]
    sums = np.zeros(len(rows))
    for some in columns:
        sums += np.abs(rows[:, some]).sum(axis=1, dtype=np.float64)
    scale = 1 / np.maximum(sums, _SMALLEST_SUM)
    among = np.abs(rows[:, nodes]) * scale[:, None].astype(np.float32)
    reaching, total = weights[nodes], np.zeros(len(nodes))
    while reaching.any():
        total += reaching
        reaching = reaching @ among
    shares = (total * scale).astype(np.float32)
    return np.concatenate([shares @ np.abs(rows[:, some]) for some in columns])
