"""Score the tokens of the vocabulary by their inner products with vectors of the residual stream.

A list of vectors takes one product with the vocabulary, in chunks of bounded memory. Vectors that are multiples of one
another, such as those of one head's keys at different tokens, take part in it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.scalars.extremes import Columns, RunningExtremes, in_columns

_CHUNK_TOKENS, _FEWEST_TOKENS, _CHUNK_SCORES = 4096, 512, 1 << 18
"""Tokens scored at a time, and about how many scores: bounds the memory, and keeps operands in the CPU's caches."""
_ROUNDING = 4
"""Units of rounding by which entries of unit vectors may differ that are multiples of one another."""


@dataclass(frozen=True, slots=True)
class TokenExtremes:
    """For each of N vectors the tokens of the highest and of the lowest scores."""

    top: torch.Tensor
    """Scores [N, count], descending."""
    top_ids: torch.Tensor
    """Their tokens."""
    bottom: torch.Tensor
    """Scores [N, count], ascending."""
    bottom_ids: torch.Tensor
    """Their tokens."""

    def rows(self, start: int, stop: int) -> TokenExtremes:
        """Those of the vectors from *start* to before *stop*."""
        return TokenExtremes(
            self.top[start:stop], self.top_ids[start:stop], self.bottom[start:stop], self.bottom_ids[start:stop]
        )

    def minus(self, means: torch.Tensor) -> TokenExtremes:
        """The same tokens with *means* [N] taken off their scores."""
        by_row = means.unsqueeze(1)
        return TokenExtremes(self.top - by_row, self.top_ids, self.bottom - by_row, self.bottom_ids)

    def times(self, rows: torch.Tensor, factors: torch.Tensor) -> TokenExtremes:
        """For vectors that are the given *rows*, [M], times *factors*, [M]: a negative one swaps the ends."""
        swapped, by_row = (factors < 0).unsqueeze(1), factors.unsqueeze(1)
        top, top_ids, bottom, bottom_ids = (x[rows] for x in (self.top, self.top_ids, self.bottom, self.bottom_ids))
        return TokenExtremes(
            torch.where(swapped, bottom, top) * by_row,
            torch.where(swapped, bottom_ids, top_ids),
            torch.where(swapped, top, bottom) * by_row,
            torch.where(swapped, top_ids, bottom_ids),
        )


def extreme_tokens(
    vectors: torch.Tensor,
    vocabulary: torch.Tensor,
    count: int,
    *,
    lengths: torch.Tensor | None = None,
    check: Check = never_cancelled,
) -> TokenExtremes:
    """The tokens with the highest and lowest inner products.

    Args:
        vectors: [N, d].
        vocabulary: a column per token, [d, V].
        count: tokens at each end.
        lengths: what to divide the products of each token by, [V]; None = nothing.
        check: called before each chunk; raises Cancelled if the request is cancelled.
    """
    n_tokens = vocabulary.shape[1]
    count = min(count, n_tokens)
    if not len(vectors):
        none, no_ids = vectors.new_zeros(0, count).float(), torch.zeros(0, count, dtype=torch.long)
        return TokenExtremes(none, no_ids, none, no_ids)
    directions, rows, factors = distinct_directions(vectors)
    del vectors  # which the caller may have let go of
    top, bottom = (RunningExtremes(count, largest=largest) for largest in (True, False))

    def see(columns: Columns) -> None:  # and let go of the scores before the next are made
        scores = (directions @ vocabulary[:, columns.start : columns.stop]).float()
        if lengths is not None:
            scores /= lengths[columns.start : columns.stop]
        top.see(scores, columns)
        bottom.see(scores, columns)

    for columns in in_columns(n_tokens, count, _chunk(len(directions))):
        check()
        see(columns)
    return TokenExtremes(*top.best(), *bottom.best()).times(rows, factors)


def scoring_bytes(n_vectors: int, n_tokens: int, count: int) -> int:
    """Estimated bytes that `extreme_tokens` takes besides its arguments: the scores of a chunk, and candidates."""
    chunk = next(iter(in_columns(n_tokens, min(count, n_tokens), _chunk(n_vectors))), None)
    columns = 0 if chunk is None else chunk.stop - chunk.start
    candidates = 0 if chunk is None else 2 * count * chunk.block
    return 4 * n_vectors * (columns + candidates)


def _chunk(n_vectors: int) -> int:
    return min(_CHUNK_TOKENS, max(_FEWEST_TOKENS, _CHUNK_SCORES // max(n_vectors, 1)))


def distinct_directions(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Those of *vectors* [N, d] that are no multiples of others, up to rounding.

    Returns:
        The distinct ones, [M, d]; and for each vector its row among them, and its factor, which is 1 for those chosen
        and for vectors of length 0.
    """
    exact = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    lengths = torch.linalg.vector_norm(exact, dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    units = exact / lengths.unsqueeze(1)
    signs = units.gather(1, units.abs().argmax(dim=1, keepdim=True)).sign().squeeze(1)
    signs = torch.where(signs == 0, 1.0, signs)
    units *= signs.unsqueeze(1)
    # Equal units have almost the same projection, so that sorting by it puts them next to one another.
    order = (units @ _projection(units.shape[1]).to(units)).argsort()
    units = units[order]
    tolerance = _ROUNDING * torch.finfo(vectors.dtype).eps
    is_new = torch.ones(len(units), dtype=torch.bool, device=units.device)
    is_new[1:] = (units[1:] - units[:-1]).abs_().amax(dim=1) > tolerance
    rows = torch.empty_like(order)
    rows[order] = is_new.cumsum(0) - 1
    chosen = order[is_new]
    lengths *= signs
    return vectors[chosen], rows, (lengths / lengths[chosen][rows]).float()


@cache
def _projection(d: int) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(0))
