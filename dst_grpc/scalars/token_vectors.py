"""Vectors of the residual stream at some tokens of a run, and what weights read of them.

The gradient of a loss at the last residual is 0 at all tokens but one. A product of one vector with a layer's weights
takes as long as it takes to fetch the weights from memory, and a product of the vectors of many runs hardly longer: so
what weights read of the vectors of runs that ran together is computed for all of these at once, and once only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.scalars.write_directions import LinearWrite

_FEW = 2
"""Vectors of a run that are few: a loss has one, a score between two tokens has two."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """A vector for each token of a run, most of which may be 0."""

    tokens: torch.Tensor
    """The tokens whose vectors are not 0, [n], ascending."""
    vectors: torch.Tensor
    """Their vectors, [n, d]."""
    stack: _Stack | None = None
    """The vectors of all runs that ran together, if these are few."""
    first: int = 0
    """Where they begin in it."""

    @classmethod
    def of(cls, x: torch.Tensor) -> TokenVectors:
        """The vectors *x* [T, d]."""
        tokens = x.any(dim=-1).nonzero().squeeze(-1)
        return cls(tokens, x[tokens])

    @property
    def none(self) -> TokenVectors:
        """The same with all vectors 0."""
        return TokenVectors(self.tokens[:0], self.vectors[:0])

    def read_by(self, weights: LinearWrite) -> torch.Tensor:
        """Inner products of the vectors with the write directions of *weights*, [n, K]."""
        if self.stack is None:
            return weights.project(self.vectors)
        return self.stack.read_by(weights)[self.first : self.first + len(self.vectors)]


class _Stack:
    """Vectors of several runs. What weights read of them is kept as long as any of the runs' answers."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors
        self._read: dict[LinearWrite, torch.Tensor] = {}

    def read_by(self, weights: LinearWrite) -> torch.Tensor:
        if weights not in self._read:
            self._read[weights] = weights.project(self._vectors)
        return self._read[weights]


def stacked(runs: Sequence[TokenVectors]) -> list[TokenVectors]:
    """The same vectors of runs that ran together, to be read at once and once; those of runs that have many are read
    alone, each time."""
    few = [one for one in runs if len(one.tokens) <= _FEW]
    if not few:
        return list(runs)
    stack = _Stack(torch.cat([one.vectors for one in few]))
    firsts = dict(zip(few, accumulate(map(len, (one.tokens for one in few)), initial=0), strict=False))
    return [replace(one, stack=stack, first=firsts[one]) if one in firsts else one for one in runs]
