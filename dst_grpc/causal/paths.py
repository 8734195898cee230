"""Paths of integrated gradients: the points at which gradients are taken, and their weights.

A path leads from alpha = 0, the other input, to alpha = 1, the prompt's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.attribute import PathRule

if TYPE_CHECKING:
    from collections.abc import Sequence

Points = tuple[tuple[float, float], ...]
"""Alpha and weight of each point; the weights add up to 1."""


def points(rule: PathRule, steps: int) -> Points:
    """The points of *rule* with *steps* steps; the trapezoidal rule has one more point than steps."""
    match rule:
        case PathRule.LEFT:
            return _equal([k / steps for k in range(steps)])
        case PathRule.RIGHT:
            return _equal([k / steps for k in range(1, steps + 1)])
        case PathRule.MIDDLE:
            return _equal([(k + 0.5) / steps for k in range(steps)])
        case PathRule.TRAPEZOID:
            ends = (0, steps)
            return tuple((k / steps, (0.5 if k in ends else 1.0) / steps) for k in range(steps + 1))
        case PathRule.GAUSS_LEGENDRE:
            nodes, weights = np.polynomial.legendre.leggauss(steps)
            return tuple(((1 + float(x)) / 2, float(w) / 2) for x, w in zip(nodes, weights, strict=True))


def _equal(alphas: Sequence[float]) -> Points:
    return tuple((alpha, 1 / len(alphas)) for alpha in alphas)
