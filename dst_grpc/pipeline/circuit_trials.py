"""Runs of a request's circuits upon its pairs of prompts, and their metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.causal.acdc import EdgeCandidates, NodeCandidates
from dst_grpc.causal.alternative_scores import AlternativePath
from dst_grpc.causal.circuit_runs import CutRuns, RowLogits, reference_logits
from dst_grpc.causal.circuits import edges_of_nodes, greedy_edges, top, top_edges
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.node_runs import NodeRow, NodeRuns
from dst_grpc.causal.read_logits import diverges_from_source
from dst_grpc.causal.writes import Alternative, MeanWrites, Writes, record
from dst_grpc.domain import pairs
from dst_grpc.domain.circuit import CircuitSelection
from dst_grpc.domain.pairs import Orientation
from dst_grpc.errors import require
from dst_grpc.pipeline.pair_planner import length_of_mean

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from typing import Any

    from dst_grpc.causal.acdc import Candidates
    from dst_grpc.causal.attribution import Pair
    from dst_grpc.causal.circuit_runs import LateRuns
    from dst_grpc.causal.circuits import Mask, Scores
    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.node_space import NodeSpace
    from dst_grpc.causal.writes import RecordedRuns
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.circuit_planner import CircuitPlan

    Metrics = np.ndarray[Any, np.dtype[np.float64]]
    References = Sequence[torch.Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class BlockRuns:
    """What circuits run upon: a block of pairs."""

    block: range
    """Places of the pairs."""
    runs: LateRuns[Any]
    """Runs rows upon them."""
    references: References
    """The logits [V] that each pair's metric is a divergence from; None of other metrics."""


class Trials(ABC):
    """Runs circuits upon blocks of pairs."""

    @staticmethod
    def of(asked: CircuitPlan, decoder: Decoder, splices: Mapping[Site, Splice], check: Check) -> Trials:
        """Those of a request, whose circuits are of edges or of nodes; arguments are those of the classes."""
        if asked.nodes is None:
            return EdgeTrials(asked, decoder, splices, check)
        return NodeTrials(asked, decoder, splices, check, asked.nodes)

    def __init__(self, asked: CircuitPlan, decoder: Decoder, splices: Mapping[Site, Splice], check: Check) -> None:
        """Run nothing yet.

        Args:
            asked: the request.
            decoder: the model.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        self._asked, self._decoder, self._splices, self._check = asked, decoder, splices, check
        self.n_passes = 0
        """Forward passes so far."""
        self.n_gradient_passes = 0
        """Those of them with gradients."""
        self._means: dict[int | None, Writes] = {}
        """By the length of their prompts; None for prompts of any length."""

    def evaluated(self, circuits: Sequence[Mask]) -> Generator[int, None, Metrics]:
        """Run *circuits* upon all pairs; yields how many runs are done, and returns metrics [n, pairs]."""
        found = np.empty((len(circuits), len(self._asked.pairs)))
        rows = [self._row(circuit) for circuit in circuits]
        done = 0
        for block in self._asked.blocks():
            for ran in self._passes(rows, self._runs(block)):
                for circuit, pair, read in ran:
                    found[circuit, block[pair]] = self._metric(block[pair], read)
                done += len(ran)
                yield done
        return found

    def searched(self) -> Search:
        """All pairs, recorded for a search."""
        blocks = [self._runs(block) for block in self._asked.blocks()]
        is_of_distance = self._asked.request.is_of_distance
        return Search(self, blocks, self._candidates(blocks), is_of_distance=is_of_distance)

    def last_logits(self, circuits: Sequence[Mask], runs: BlockRuns) -> torch.Tensor:
        """Logits [n, pairs, V] of *circuits* upon a block of pairs, at the last token of each."""
        rows = [self._row(circuit) for circuit in circuits]
        found = self._decoder.embedding.new_empty(len(rows), len(runs.block), self._decoder.config.vocab_size)
        for ran in self._passes(rows, runs):
            for circuit, pair, read in ran:
                found[circuit, pair] = read.last
        return found

    def metrics(self, circuits: Sequence[Mask], runs: BlockRuns) -> Metrics:
        """Metrics [n, pairs] of *circuits* upon a block of pairs."""
        rows = [self._row(circuit) for circuit in circuits]
        found = np.empty((len(rows), len(runs.block)))
        for ran in self._passes(rows, runs):
            for circuit, pair, read in ran:
                found[circuit, pair] = self._metric(runs.block[pair], read)
        return found

    def _passes(self, rows: Sequence[Any], runs: BlockRuns) -> Iterator[list[tuple[int, int, RowLogits]]]:
        """For each pass, the circuit and the pair of each of its rows, and what the row's metric reads."""
        for places, ran in runs.runs.batches([replace(row, prompt=i) for i in range(len(runs.block)) for row in rows]):
            self.n_passes += 1
            yield [
                (place % len(rows), place // len(rows), RowLogits(last, ran, i, runs.references[place // len(rows)]))
                for i, (place, last) in enumerate(zip(places, ran.last, strict=True))
            ]

    def _metric(self, pair: int, read: RowLogits) -> float:
        return float(self._asked.pairs[pair].metric.scalar(read))

    @property
    def _is_zero(self) -> bool:
        return self._asked.request.alternative is pairs.Alternative.ZERO

    @abstractmethod
    def _row(self, circuit: Mask) -> CutRow | NodeRow:
        """The row of a circuit."""

    @abstractmethod
    def _candidates(self, blocks: Sequence[BlockRuns]) -> Candidates:
        """What a search upon *blocks* of pairs tries to cut."""

    @abstractmethod
    def _upon(self, base: RecordedRuns, writes: Writes) -> LateRuns[Any]:
        """Runs rows upon *base*, with *writes* where something is cut."""

    @abstractmethod
    def _scores(self, path: AlternativePath) -> tuple[torch.Tensor, int]:
        """The scores of everything that may be kept, summed over prompts, and the passes that it took."""

    @property
    def _parts(self) -> tuple[Site, ...]:
        """Sites of latents and errors that are recorded."""
        return ()

    def scored(self, steps: int) -> Generator[int, None, Scores]:
        """Score everything that may be kept; yields how many pairs are done, and returns the mean scores over pairs."""
        total = torch.zeros(self._asked.whole.shape, dtype=torch.float64)
        for block in self._asked.blocks():
            base, writes, references = self._recorded(block)
            metrics = [self._asked.pairs[i].metric for i in block]
            path = AlternativePath(
                self._decoder, base, writes, metrics, steps, references, splices=self._splices, check=self._check
            )
            found, n_passes = self._scores(path)
            total += found.cpu()
            self.n_passes += n_passes
            self.n_gradient_passes += n_passes
            yield block.stop
        scores: Scores = (total / len(self._asked.pairs)).float().numpy()
        return scores

    def _recorded(self, block: range) -> tuple[RecordedRuns, Writes, References]:
        """The runs of a block of pairs, what cut edges carry instead, and what metrics are divergences from."""
        asked = [self._asked.pairs[i] for i in block]
        metrics = [pair.metric for pair in asked]
        base, source = self._record([pair.base for pair in asked]), None
        is_patching = self._asked.request.alternative is pairs.Alternative.PATCHING
        if is_patching or any(map(diverges_from_source, metrics)):
            source = self._record([pair.source for pair in asked])
        references = reference_logits(self._decoder, metrics, base, source)
        if is_patching:
            return base, require(source).writes, references
        if self._is_zero:
            return base, Writes.zero(self._decoder, self._parts), references
        return base, Writes.stacked([self._mean(pair) for pair in asked]), references

    def _runs(self, block: range) -> BlockRuns:
        """The runs of circuits upon a block of pairs."""
        base, writes, references = self._recorded(block)
        return BlockRuns(block, self._upon(base, writes), references)

    def _mean(self, pair: Pair) -> Writes:
        """The mean over the reference prompts of a pair."""
        alternative = self._asked.request.alternative
        length = length_of_mean(pair, alternative)
        if length not in self._means:
            mean = MeanWrites(by_position=alternative is not pairs.Alternative.MEAN)
            for prompts in self._asked.reference_batches(length):
                mean.add(self._record(prompts))
            self._means[length] = mean.mean(self._decoder.dtype)
        return self._means[length]

    def _record(self, prompts: Sequence[tuple[int, ...]]) -> RecordedRuns:
        """The runs of *prompts*, with what the request changes."""
        self.n_passes += 1
        changes = self._asked.plan.run.interventions
        return record(
            prompts, self._decoder, parts=self._parts, changes=changes, splices=self._splices, check=self._check
        )


class EdgeTrials(Trials):
    """Runs circuits of edges, [S, D]."""

    def _row(self, circuit: Mask) -> CutRow:
        return CutRow.of_circuit(self._asked.graph, circuit, 0, is_zero=self._is_zero)

    def _candidates(self, blocks: Sequence[BlockRuns]) -> EdgeCandidates:
        del blocks
        return EdgeCandidates(self._asked.graph)

    def _upon(self, base: RecordedRuns, writes: Writes) -> CutRuns:
        alternative = Alternative.of(writes, self._decoder, base.tokens.shape[1], is_zero=self._is_zero)
        graph = self._asked.graph
        return CutRuns(self._decoder, graph, base, alternative, splices=self._splices, check=self._check)

    def _scores(self, path: AlternativePath) -> tuple[torch.Tensor, int]:
        return path.edge_scores(self._asked.graph)


class NodeTrials(Trials):
    """Runs circuits of nodes with latents, [N]."""

    def __init__(
        self,
        asked: CircuitPlan,
        decoder: Decoder,
        splices: Mapping[Site, Splice],
        check: Check,
        space: NodeSpace,
    ) -> None:
        """As of any trials; *space* has the nodes."""
        super().__init__(asked, decoder, splices, check)
        self._space = space

    @property
    def _parts(self) -> tuple[Site, ...]:
        return self._space.part_sites

    def _row(self, circuit: Mask) -> NodeRow:
        return NodeRow(0, ~circuit)

    def _candidates(self, blocks: Sequence[BlockRuns]) -> NodeCandidates:
        differs = [one.runs.differs() for one in blocks if isinstance(one.runs, NodeRuns)]
        return NodeCandidates(self._space, np.any(differs, axis=0))

    def _upon(self, base: RecordedRuns, writes: Writes) -> NodeRuns:
        return NodeRuns(self._decoder, self._space, base, writes, splices=self._splices, check=self._check)

    def _scores(self, path: AlternativePath) -> tuple[torch.Tensor, int]:
        return path.node_scores(self._space)


class Search:
    """What a search measures of circuits, over all pairs."""

    def __init__(
        self, trials: Trials, blocks: Sequence[BlockRuns], candidates: Candidates, *, is_of_distance: bool
    ) -> None:
        """Measure upon *blocks* of pairs that are recorded; *candidates* are what is tried, and *is_of_distance* says
        whether the metric grows as the behaviour is lost."""
        self._is_of_distance = is_of_distance
        self.candidates = candidates
        self._trials, self._blocks = trials, blocks
        self._whole: list[torch.Tensor] = []
        """The log-probabilities [pairs, V] of the whole model, for each block."""

    def divergence(self, circuits: Sequence[Mask]) -> list[float]:
        """KL(whole model, circuit) of the last token's distributions, in nats, the mean over pairs."""
        if not self._whole:
            for runs in self._blocks:
                self._whole.append(_log_probabilities(self._trials.last_logits([self.candidates.whole], runs)[0]))
        total, n_pairs = np.zeros(len(circuits)), 0
        for runs, whole in zip(self._blocks, self._whole, strict=True):
            found = _log_probabilities(self._trials.last_logits(circuits, runs))
            total += (whole.exp() * (whole - found)).sum(dim=(-1, -2)).cpu().numpy()
            n_pairs += len(runs.block)
        return [float(each) for each in total / n_pairs]

    def fall(self, circuits: Sequence[Mask]) -> list[float]:
        """The mean metric over pairs, with its sign turned unless it is a distance."""
        sign = 1.0 if self._is_of_distance else -1.0
        return [sign * float(metric) for metric in self._metrics(circuits).mean(axis=1)]

    def metrics(self, circuit: Mask) -> list[float]:
        """The metric of each pair."""
        return [float(metric) for metric in self._metrics([circuit])[0]]

    def _metrics(self, circuits: Sequence[Mask]) -> Metrics:
        """The metrics [n, pairs] of each circuit."""
        return np.concatenate([self._trials.metrics(circuits, runs) for runs in self._blocks], axis=1)


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(dim=-1)


def selected(
    graph: Graph | None, scores: Scores, selection: CircuitSelection, orientation: Orientation, n: int
) -> Mask:
    """The circuit of *n* edges or nodes, before pruning: [S, D], or [N] of nodes with latents.

    Args:
        graph: the model's; None for nodes with latents.
        scores: of edges [S, D] or of nodes [S], with latents [N].
        selection: which are kept.
        orientation: which sign of the scores matters.
        n: how many are kept.
    """
    if selection is CircuitSelection.SIGNED:
        values = -scores if orientation is Orientation.NOISING else scores
    else:
        values = np.abs(scores)
    if graph is None:
        return top(values, n)
    if scores.ndim == 1:
        return edges_of_nodes(graph, top(values, n))
    return (greedy_edges if selection is CircuitSelection.GREEDY else top_edges)(graph, values, n)
