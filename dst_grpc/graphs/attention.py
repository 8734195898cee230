"""Why a head looks where it looks: the parts of a score that pairs of nodes contribute.

The score of query t and key u is bilinear in the residuals at both tokens if the scales of norms are constant, also of
those of queries and keys. Each residual is the sum of what nodes add to it in the local replacement model, and of
constants (biases, positions), so that the score is the sum over pairs

    score = sum over i, j of  q_i . k_j        i at or before t, or the constants; j at or before u, or the constants

where q_i is what node i adds to the query, and k_j what node j adds to the key.

Shapes: N node that is not a target (all active units, errors, embeddings), c channel of a head, d residual channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.engine.layer import softcapped
from dst_grpc.graphs.local_model import Block
from dst_grpc.graphs.units import Stage

if TYPE_CHECKING:
    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import Floats, Integers

_PAIRS_AT_ONCE = 1 << 22
CONSTANT = -1
"""Stands for the constants in place of a node."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionScore:
    """What a score is made of."""

    score: float
    """The score before a soft-cap."""
    capped: float
    """The score as it enters the softmax."""
    probability: float
    """The attention."""
    queries: Integers
    """The node of each pair at the query [n], by its place among all active units, errors and embeddings;
    `CONSTANT` for the constants."""
    keys: Integers
    """The same at the key, [n]."""
    contributions: Floats
    """What each pair adds to the score, [n]; of the largest magnitude first."""
    remainder: float
    """What all other pairs add together."""


@torch.no_grad()
def attention_score(model: LocalModel, layer: int, head: int, query: int, key: int, top_k: int) -> AttentionScore:
    """The *top_k* pairs of nodes that contribute most to the score of *head* of *layer* from token *query* to *key*.

    Args:
        model: the local replacement model of the prompt.
        layer: the layer.
        head: the query head.
        query: the token that attends.
        key: the token that is attended to, at or before *query* and within its window.
        top_k: how many pairs, at least 1.
    """
    q_parts, q = _parts(model, AttentionTraceType.Q, layer, head, query)
    k_parts, k = _parts(model, AttentionTraceType.K, layer, head, key)
    score = q @ k
    queries, keys, values = _largest_pairs(q_parts, k_parts, top_k)
    weights = model.decoder.layers[layer]
    normed = weights.attn_norm(model.recording.layers[layer].entering[: query + 1])
    one = torch.tensor([head], device=model.device)
    all_q, all_k = (weights.inputs_of_heads(part, one, normed) for part in (AttentionTraceType.Q, AttentionTraceType.K))
    pattern = weights.attn_probs(weights.attn_scores(all_q[-1:], all_k))[0, :, 0]
    n_nodes = model.n_sources
    return AttentionScore(
        score=float(score),
        capped=float(softcapped(score, model.decoder.config.attn_softcap)),
        probability=float(pattern[key]),
        queries=_nodes(queries, n_nodes),
        keys=_nodes(keys, n_nodes),
        contributions=values.float().cpu().numpy(),
        remainder=float(score - values.sum()),
    )


def _nodes(places: torch.Tensor, n_nodes: int) -> Integers:
    """*places* among nodes and, last, the constants."""
    found: Integers = torch.where(places == n_nodes, CONSTANT, places).cpu().numpy()
    return found


def _parts(
    model: LocalModel, part: AttentionTraceType, layer: int, head: int, token: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each node, and last the constants, add to the query or key of *head* at *token* [N + 1, c]; the sum [c]."""
    weights, entering = model.decoder.layers[layer], model.recording.layers[layer].entering[token]
    matrix, whole = weights.frozen_head_input(part, head, weights.attn_norm(entering), token)
    rows = weights.attn_norm.unit_transposed(matrix.t()) / weights.attn_norm.scale(entering)
    at = torch.full((len(rows),), token, device=model.device)
    of_nodes = model.effects(Block([(layer, Stage.ATTENTION)] * len(rows), at, rows, token + 1, enters=True)).t()
    return torch.cat((of_nodes, (whole - of_nodes.sum(dim=0))[None])), whole


def _largest_pairs(
    queries: torch.Tensor, keys: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The *top_k* pairs of *queries* [n, c] and *keys* [m, c] with the products of largest magnitude, in descending
    order, and these products.

    Queries go by their length: once it times that of the longest key is less than the smallest product found, none of
    the rest is larger.
    """
    lengths, longest = torch.linalg.vector_norm(queries, dim=1), torch.linalg.vector_norm(keys, dim=1).max()
    order = lengths.argsort(descending=True)
    best = queries.new_zeros(0)
    pairs = torch.zeros(2, 0, dtype=torch.long, device=queries.device)
    step = max(_PAIRS_AT_ONCE // len(keys), 1)
    for some in order.split(step):
        if len(best) == top_k and lengths[some[0]] * longest < best[-1].abs():
            break
        products = queries[some] @ keys.t()
        found = products.flatten().abs().topk(min(top_k, products.numel())).indices
        own = torch.stack((some[found // len(keys)], found % len(keys)))
        best, pairs = torch.cat((best, products.flatten()[found])), torch.cat((pairs, own), dim=1)
        kept = best.abs().argsort(descending=True, stable=True)[:top_k]
        best, pairs = best[kept], pairs[:, kept]
    return pairs[0], pairs[1], best
