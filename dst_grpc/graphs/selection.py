"""Which features matter while not all edges are known.

Shapes: m row that is known, N node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dst_grpc.graphs.influence import Doubles
    from dst_grpc.graphs.nodes import Floats, Integers

_COLUMNS_AT_ONCE = 1024
"""Of these, magnitudes are held at once."""
_SMALLEST_SUM = 1e-8
"""What a smaller sum of a row is taken for."""


def partial_influence(rows: Floats, nodes: Integers, sums: Doubles, weights: Floats) -> Doubles:
    """The influence of each node on the targets along edges that are known, [N]; see `influence`.

    Args:
        rows: direct effects on the nodes whose edges are known, [m, N].
        nodes: these nodes, [m].
        sums: the sum of magnitudes of each row, [m].
        weights: of all nodes, [N]: 0 but of targets.
    """
    scale = 1 / np.maximum(sums, _SMALLEST_SUM)
    among = np.abs(rows[:, nodes]) * scale[:, None]
    reaching, total = weights[nodes].astype(np.float64), np.zeros(len(nodes))
    while reaching.any() and np.isfinite(reaching).all():  # what is not finite would never end
        total += reaching
        reaching = reaching @ among
    shares = (total * scale).astype(np.float32)
    found = np.empty(rows.shape[1])
    for first in range(0, rows.shape[1], _COLUMNS_AT_ONCE):
        some = slice(first, first + _COLUMNS_AT_ONCE)
        found[some] = shares @ np.abs(rows[:, some])
    return found
