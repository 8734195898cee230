"""Scores of edges for any alternative: EAP-IG towards what cut edges carry.

A score is the change of a source's write to the alternative, times the mean gradient of the metric at a reader, along a
path of token embeddings from the alternative's, without it, to the prompt's own, included. Where the alternative is the
run of another prompt, that is EAP-IG with inputs. For a mean, edges count that carry what differs from the mean, also
where both prompts of a pair are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.compared import GradientRuns
from dst_grpc.causal.edges import Changes, EdgeScores, reads_of, sites_of_reads
from dst_grpc.causal.passes import Batch, points_at_once, run
from dst_grpc.causal.paths import points
from dst_grpc.causal.writes import real_tokens, zero_at_pads
from dst_grpc.domain.attribute import PathRule
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.norm import wide
from dst_grpc.engine.propagation import PLAIN
from dst_grpc.engine.taps import site_entering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.writes import RecordedRuns, Writes
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin


def alternative_scores(
    decoder: Decoder,
    graph: Graph,
    base: RecordedRuns,
    alternative: Writes,
    metrics: Sequence[Origin],
    steps: int,
    *,
    references: Sequence[torch.Tensor | None] = (),
    splices: Mapping[Site, Autoencoder] | None = None,
    check: Check = never_cancelled,
) -> tuple[torch.Tensor, int]:
    """Scores [S, D] of all edges, the sum over the prompts of *base*, 0 where there is no edge; and how many passes it
    took.

    Args:
        decoder: the model.
        graph: its graph.
        base: the runs of the prompts, without cut edges.
        alternative: what cut edges carry instead, for the same prompts.
        metrics: the metric of each prompt.
        steps: points of the path.
        references: the logits [V] that each metric is a divergence from; None for others.
        splices: autoencoders to splice in, by the site that each reads.
        check: raises Cancelled to end a pass.
    """
    changes = _changes(base, alternative)
    values, gradients = sites_of_reads(graph, has_post_norms=decoder.config.post_norms)
    lengths = (base.last + 1).tolist()
    prompts = [tuple(row[:length]) for row, length in zip(base.tokens.tolist(), lengths, strict=True)]
    path = points(PathRule.RIGHT, steps)
    at_once = points_at_once(decoder.device, base.tokens.numel())
    blocks = [path[start : start + at_once] for start in range(0, steps, at_once)]
    scores = torch.zeros(graph.mask.shape, dtype=changes.embedding.dtype, device=decoder.device)
    for block in blocks:
        shifts = torch.cat([(1 - alpha) * changes.embedding for alpha, _ in block]).to(decoder.dtype)
        batch = Batch(
            tokens=prompts * len(block),
            metrics=[*metrics] * len(block),
            differentiated=[True] * (len(prompts) * len(block)),
            values=values,
            gradients=gradients,
            reads_mlps=True,
            references=[*references] * len(block),
            changes=base.changes,
            shifts={site_entering(0): shifts},
        )
        ran = run(batch, decoder, splices=splices, check=check)
        runs = GradientRuns(ran, len(prompts), tuple(weight for _, weight in block))
        scores += EdgeScores(decoder, graph, PLAIN).of(changes, reads_of(decoder, runs, PLAIN))
    return scores, len(blocks)


def _changes(base: RecordedRuns, alternative: Writes) -> Changes:
    """The changes of what sources write; none at pads."""
    n_tokens = base.tokens.shape[1]
    real = real_tokens(base.last, n_tokens)

    def change(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return zero_at_pads(wide(other[:, :n_tokens]) - wide(own), real)

    writes = base.writes
    return Changes(
        change(writes.embedding, alternative.embedding),
        {i: change(*both) for i, both in enumerate(zip(writes.heads, alternative.heads, strict=True))},
        {i: change(*both) for i, both in enumerate(zip(writes.mlps, alternative.mlps, strict=True))},
        {i: wide(heads) for i, heads in enumerate(writes.heads)},
    )
