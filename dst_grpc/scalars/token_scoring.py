"""Score the tokens of the vocabulary by their inner products with vectors of the residual stream.

Each list of vectors takes one product with the vocabulary, in chunks of bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.scalars.extremes import extremes

CHUNK_TOKENS = 4096
"""Tokens scored at a time: bounds the memory, and keeps the operands in the CPU's caches."""


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


def extreme_tokens(
    vectors: torch.Tensor,
    vocabulary: torch.Tensor,
    count: int,
    *,
    centred: bool,
    lengths: torch.Tensor | None = None,
    check: Check = never_cancelled,
) -> TokenExtremes:
    """The tokens with the highest and lowest inner products.

    Args:
        vectors: [N, d].
        vocabulary: a column per token, [d, V].
        count: tokens at each end.
        centred: whether each vector's mean over all tokens is subtracted.
        lengths: what to divide the products of each token by, [V]; None = nothing.
        check: called before each chunk; raises Cancelled if the request is cancelled.
    """
    n_tokens = vocabulary.shape[1]
    # Different runs have vectors in common: write directions of the same neurons and latents.
    vectors, which = vectors.unique(dim=0, return_inverse=True)
    found: tuple[list[torch.Tensor], ...] = ([], [], [], [])
    sums = vectors.new_zeros(len(vectors), 1, dtype=torch.float64)
    for start in range(0, n_tokens, CHUNK_TOKENS):
        check()
        scores = (vectors @ vocabulary[:, start : start + CHUNK_TOKENS]).float()
        if lengths is not None:
            scores /= lengths[start : start + CHUNK_TOKENS]
        if centred:
            sums += scores.sum(dim=1, keepdim=True)
        for end, largest in enumerate((True, False)):
            values, ids = extremes(scores, count, largest=largest)
            found[2 * end].append(values)
            found[2 * end + 1].append(ids + start)
    mean = (sums / n_tokens).float()
    ends = []
    for end, largest in enumerate((True, False)):
        values, ids = torch.cat(found[2 * end], dim=1), torch.cat(found[2 * end + 1], dim=1)
        values, places = values.topk(min(count, n_tokens), dim=1, largest=largest)
        ends += [(values - mean)[which], ids.gather(1, places)[which]]
    return TokenExtremes(*ends)
