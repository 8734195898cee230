"""The QK fix of AtP*: the effect of a query or key through its attention patterns, which are recomputed.

A softmax that is saturated has almost no gradient, though another key may move all of it. So only what lies behind the
pattern is linearized. All arguments are float32 or wider:

    I = sum over t, u of (P~ - P)[t, u] dM/dP[t, u]         (Kramár et al., 2024, https://arxiv.org/abs/2403.00745)

For a query, P~ is its row with that query; for a key, P~ are all rows with that one key, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dst_grpc.engine.layer import Layer

_SMALLEST = torch.finfo(torch.float32).tiny
"""In place of 0, where one key has all the probability and would lose it."""


def query_effects(
    layer: Layer, queries: torch.Tensor, keys: torch.Tensor, other: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Effects [n, T, H] of replacing each query.

    Args:
        layer: their layer.
        queries: of the base run, as they enter the scores [n, T, H, c].
        keys: of the base run [n, U, H, c].
        other: the queries that replace them [n, T, H, c].
        gradient: dM/dP in the base run [n, T, U, H].
    """
    before, after = (layer.attn_probs(layer.attn_scores(each, keys)) for each in (queries, other))
    return ((after - before) * gradient).sum(dim=-2)


def key_effects(
    layer: Layer, queries: torch.Tensor, keys: torch.Tensor, other: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Effects [n, U, H] of replacing each key, in all rows that see it; arguments as of `query_effects`.

    One score of a row changes, by x, and the row is normed again. With its probability p of that key:
    p~ = p exp(x) / (1 + p (exp(x) - 1)), and all others are divided by the same, so that a row changes the metric by
    (p~ - p) / (1 - p) (g[u] - sum of p g), g being its gradient; (p~ - p) / (1 - p) = p (e^x - 1) / (1 + p (e^x - 1)).
    """
    scores, replaced = (layer.attn_scores(queries, each) for each in (keys, other))
    probs = layer.attn_probs(scores)
    change = (replaced - scores).nan_to_num(nan=0.0)  # of masked scores
    # For x > 0 both terms of the fraction are divided by exp(x), which may be infinite.
    shrunk = torch.exp(-change.abs())
    gained, lost = probs * (1 - shrunk), probs * (shrunk - 1)
    moved = torch.where(change > 0, gained / (shrunk + gained), lost / (1 + lost).clamp(min=_SMALLEST))
    centred = gradient - (probs * gradient).sum(dim=-2, keepdim=True)
    return (moved * centred).sum(dim=-3)
