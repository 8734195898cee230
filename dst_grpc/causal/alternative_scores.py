"""Scores of edges and nodes for any alternative: EAP-IG towards what cut edges carry, or what cut nodes are.

A score of an edge is the change of a source's write to the alternative, times the mean gradient of the metric at a
reader, along a path of token embeddings from the alternative's, without it, to the prompt's own, included. Where the
alternative is the run of another prompt, that is EAP-IG with inputs. For a mean, edges count that carry what differs
from the mean, also where both prompts of a pair are the same. A score of a node is its change, times the mean gradient
at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.compared import GradientRuns
from dst_grpc.causal.edges import Changes, EdgeScores, reads_of, sites_of_reads
from dst_grpc.causal.node_runs import values_at
from dst_grpc.causal.passes import Batch, points_at_once, run
from dst_grpc.causal.paths import points
from dst_grpc.causal.writes import real_tokens, zero_at_pads
from dst_grpc.domain.attribute import PathRule
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.norm import wide
from dst_grpc.engine.propagation import PLAIN
from dst_grpc.engine.taps import site_entering

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.node_space import NodeSpace
    from dst_grpc.causal.writes import RecordedRuns, Writes
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin


@dataclass(frozen=True, eq=False)
class AlternativePath:
    """The path of embeddings from those of the alternative to the prompts' own, and what is scored along it."""

    decoder: Decoder
    """The model."""
    base: RecordedRuns
    """The runs of p prompts, with nothing cut."""
    alternative: Writes
    """What is cut carries or is this instead, for the same prompts."""
    metrics: Sequence[Origin]
    """The metric of each prompt."""
    steps: int
    """Points of the path."""
    references: Sequence[torch.Tensor | None] = ()
    """The logits [V] that each metric is a divergence from; None for others."""
    splices: Mapping[Site, Splice] | None = None
    """Autoencoders to splice in, by the site that each reconstructs."""
    check: Check = never_cancelled
    """Raises Cancelled to end a pass."""

    def edge_scores(self, graph: Graph) -> tuple[torch.Tensor, int]:
        """Scores [S, D] of all edges of *graph*, the sum over prompts, 0 where there is no edge; and how many passes it
        took."""
        decoder, changes = self.decoder, self._changes()
        of_sources = Changes(
            changes.embedding,
            dict(enumerate(changes.heads)),
            dict(enumerate(changes.mlps)),
            {i: wide(heads) for i, heads in enumerate(self.base.writes.heads)},
        )
        values, gradients = sites_of_reads(graph, has_post_norms=decoder.config.post_norms)
        scores = torch.zeros(graph.mask.shape, dtype=changes.embedding.dtype, device=decoder.device)
        n_passes = 0
        for runs in self._runs(changes.embedding, values, gradients, reads_mlps=True):
            scores += EdgeScores(decoder, graph, PLAIN).of(of_sources, reads_of(decoder, runs, PLAIN))
            n_passes += 1
        return scores, n_passes

    def node_scores(self, space: NodeSpace) -> tuple[torch.Tensor, int]:
        """Scores [N] of all nodes of *space*, the sum over prompts; and how many passes it took."""
        changes = self._changes()
        scores = torch.zeros(space.count, dtype=changes.embedding.dtype, device=self.decoder.device)
        n_passes = 0
        for runs in self._runs(changes.embedding, frozenset(), frozenset(group.site for group in space.groups)):
            for group in space.groups:
                product = (values_at(group.site, changes) * runs.mean_gradient(0, group.site)).sum(dim=(0, 1))
                # [H, c] of heads; [Z] of latents; the channels of a single node.
                scores[group.places] += product.reshape(group.count, -1).sum(dim=1)
            n_passes += 1
        return scores, n_passes

    def _runs(
        self,
        change: torch.Tensor,
        values: frozenset[Site],
        gradients: frozenset[Site],
        *,
        reads_mlps: bool = False,
    ) -> Iterator[GradientRuns]:
        """The runs, as many at a time as fit; *change* [p, T, d] is that of the embeddings."""
        base = self.base
        lengths = (base.last + 1).tolist()
        prompts = [tuple(row[:length]) for row, length in zip(base.tokens.tolist(), lengths, strict=True)]
        path = points(PathRule.RIGHT, self.steps)
        at_once = points_at_once(self.decoder.device, base.tokens.numel())
        for start in range(0, self.steps, at_once):
            block = path[start : start + at_once]
            shifts = torch.cat([(1 - alpha) * change for alpha, _ in block]).to(self.decoder.dtype)
            batch = Batch(
                tokens=prompts * len(block),
                metrics=[*self.metrics] * len(block),
                differentiated=[True] * (len(prompts) * len(block)),
                values=values,
                gradients=gradients,
                reads_mlps=reads_mlps,
                references=[*self.references] * len(block),
                changes=base.changes,
                shifts={site_entering(0): shifts},
            )
            ran = run(batch, self.decoder, splices=self.splices, check=self.check)
            yield GradientRuns(ran, len(prompts), tuple(weight for _, weight in block))

    def _changes(self) -> Writes:
        """The changes of what sources write, and of parts; none at pads."""
        n_tokens = self.base.tokens.shape[1]
        real = real_tokens(self.base.last, n_tokens)

        def change(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return zero_at_pads(wide(other[:, :n_tokens]) - wide(own), real)

        return self.base.writes.both(self.alternative, change)
