"""The answer to Circuit: scores, evaluations of circuits, a search, each in short steps that say how far they are.

Pairs are recorded block by block, and all circuits whose edges are known run upon a block before the next: each
recording is made once. Only a search keeps all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from dst_grpc.causal.acdc import MAX_AHEAD, acdc
from dst_grpc.causal.circuits import areas, faithfulness, pruned
from dst_grpc.domain.circuit import (
    CircuitEdges,
    CircuitEvaluation,
    CircuitHeader,
    CircuitKind,
    CircuitNodes,
    CircuitPart,
    CircuitPartKind,
    CircuitParts,
    CircuitProgress,
    CircuitStage,
    CurveSummary,
)
from dst_grpc.errors import require
from dst_grpc.pipeline.circuit_planner import CircuitPlan
from dst_grpc.pipeline.circuit_trials import Trials, selected
from dst_grpc.pipeline.stepped_answer import SteppedAnswer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from dst_grpc.causal.circuits import Mask, Scores
    from dst_grpc.causal.node_space import NodesAt, SplicedLayer
    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.circuit import AcdcSearch, CircuitCurve, CircuitValue
    from dst_grpc.pipeline.run import RunResult

T = TypeVar("T")

_K = CircuitKind
_P = CircuitPartKind
Parts = list[CircuitPart]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """A circuit to evaluate."""

    kind: CircuitKind
    index: int
    chosen: Mask
    """The edges that it was to keep."""
    kept: Mask
    """Those that it keeps."""
    fraction: float | None = None


class CircuitAnswer(SteppedAnswer[CircuitPlan, CircuitPart]):
    """The answer to one request, computed in steps."""

    def __init__(
        self,
        asked: CircuitPlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """As of any answer about pairs."""
        super().__init__(asked, results, model, sets)
        self._graph = asked.graph
        self._trials = Trials.of(asked, model.decoder, self._splices, self._first.check)

    @property
    def _n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far, without the first run."""
        return self._trials.n_passes, self._trials.n_gradient_passes

    @property
    def _batch_size(self) -> int:
        """The pairs."""
        return len(self._asked.pairs)

    def _work(self) -> Iterator[Parts]:
        """The parts of each step, in order."""
        request = self._asked.request
        yield [_part(_P.HEADER, self._header())]
        scores: Scores | None = None
        if request.curve is not None:
            scores = yield from self._scores(request.curve)
        trials = [
            self._trial(_K.WHOLE, 0, self._asked.whole),
            self._trial(_K.EMPTY, 0, np.zeros_like(self._asked.whole)),
            *(self._trial(_K.GIVEN, i, circuit) for i, circuit in enumerate(self._asked.circuits)),
        ]
        if request.curve is not None:
            trials += self._curve(request.curve, require(scores))
        found = yield from self._evaluated(trials)
        yield [_part(_P.EVALUATION, evaluation) for evaluation in found]
        if request.curve is not None:
            on_curve = [(t, e) for t, e in zip(trials, found, strict=True) if t.kind is _K.CURVE]
            yield self._summary_of(request.curve, require(scores), on_curve)
        if request.acdc is not None:
            yield from self._searched(request.acdc, found[0].metric, found[1].metric)

    def _header(self) -> CircuitHeader:
        request, nodes = self._asked.request, self._asked.nodes
        return CircuitHeader(
            model=self._model.handle,
            sources=tuple(map(str, self._graph.sources if nodes is None else nodes.sources)),
            readers=tuple(map(str, self._graph.readers)),
            edge_count=self._graph.n_edges,
            d_model=self._model.decoder.config.d_model,
            pair_count=len(self._asked.pairs),
            orientation=request.orientation,
            alternative=request.alternative,
            prune=request.is_pruned,
            node_count=0 if nodes is None else nodes.count,
            parts=() if nodes is None else tuple(self._part_of(one, latents) for one, latents in nodes.parts),
        )

    def _part_of(self, one: SplicedLayer, latents: NodesAt) -> CircuitParts:
        return CircuitParts(
            autoencoder=self._sets[one.autoencoder].handle,
            name=f"{one.place}{one.layer}",
            first_node=latents.first,
            latent_count=latents.count,
            has_error=True,
        )

    # Scores

    def _scores(self, curve: CircuitCurve) -> Generator[Parts, None, Scores]:
        """The scores of the curve: those given, or of EAP-IG."""
        if curve.scores is not None:
            return require(curve.scores.tensor)
        found = yield from _reported(CircuitStage.SCORES, self._trials.scored(curve.steps), len(self._asked.pairs))
        return found

    def _curve(self, curve: CircuitCurve, scores: Scores) -> Iterator[_Trial]:
        """The circuits of the curve."""
        request = self._asked.request
        orientation = curve.scores_orientation
        if curve.scores is None:
            orientation = request.orientation.other if request.is_of_distance else request.orientation
        n_all = self._graph.n_edges if scores.ndim == 2 else len(scores)
        graph = self._graph if self._asked.nodes is None else None
        for i, fraction in enumerate(self._asked.fractions):
            chosen = selected(graph, scores, curve.selection, orientation, int(fraction * n_all))
            yield self._trial(_K.CURVE, i, chosen, fraction)

    # Evaluations

    def _trial(self, kind: CircuitKind, index: int, chosen: Mask, fraction: float | None = None) -> _Trial:
        kept = pruned(self._graph, chosen) if self._asked.request.is_pruned else chosen
        return _Trial(kind=kind, index=index, chosen=chosen, kept=kept, fraction=fraction)

    def _evaluated(self, trials: Sequence[_Trial]) -> Generator[Parts, None, list[CircuitEvaluation]]:
        """The evaluation of each of *trials*, of which the first two are of all edges and of none."""
        total = len(trials) * len(self._asked.pairs)
        work = self._trials.evaluated([trial.kept for trial in trials])
        metrics = yield from _reported(CircuitStage.EVALUATION, work, total)
        whole, empty = (float(one) for one in metrics[:2].mean(axis=1))
        return [
            self._evaluation(trial, [float(one) for one in found], whole, empty)
            for trial, found in zip(trials, metrics, strict=True)
        ]

    def _evaluation(self, trial: _Trial, metrics: list[float], whole: float, empty: float) -> CircuitEvaluation:
        metric = float(np.mean(metrics))
        is_of_edges = self._asked.nodes is None
        return CircuitEvaluation(
            kind=trial.kind,
            index=trial.index,
            chosen_edge_count=int(trial.chosen.sum()) if is_of_edges else 0,
            edge_count=int(trial.kept.sum()) if is_of_edges else 0,
            node_count=int((trial.kept.any(axis=1) if is_of_edges else trial.kept).sum()),
            metric=metric,
            metrics=tuple(metrics),
            fraction=trial.fraction,
            faithfulness=faithfulness(metric, clean=whole, empty=empty),
        )

    def _summary_of(
        self, curve: CircuitCurve, scores: Scores, found: Sequence[tuple[_Trial, CircuitEvaluation]]
    ) -> Parts:
        """The curve as a whole, and the edges that are wanted."""
        values = [evaluation.faithfulness for _, evaluation in found]
        known = [value for value in values if value is not None]
        has_area = 1 < len(values) == len(known)
        cpr, cmd = areas(self._asked.fractions, known) if has_area else (None, None)
        wanted = curve.wanted_faithfulness
        chosen = next((i for i, value in enumerate(values) if value is not None and value >= wanted), None)
        summary = CurveSummary(
            selection=curve.selection, of_nodes=scores.ndim == 1, cpr=cpr, cmd=cmd, chosen_index=chosen
        )
        parts = [_part(_P.CURVE, summary)]
        if self._asked.nodes is not None:
            if chosen is not None:
                parts.append(_part(_P.NODES, _nodes(found[chosen][0].kept, scores, is_sorted=True)))
            if curve.with_scores:
                parts.append(_part(_P.NODE_SCORES, _nodes(self._asked.whole, scores)))
            return parts
        of_edges = scores if scores.ndim == 2 else np.broadcast_to(scores[:, None], self._graph.mask.shape)
        if chosen is not None:
            parts.append(_part(_P.CIRCUIT, _edges(found[chosen][0].kept, of_edges, is_sorted=True)))
        if curve.with_scores:
            parts.append(_part(_P.SCORES, _edges(self._graph.mask, of_edges)))
        return parts

    # The search

    def _searched(self, asked: AcdcSearch, whole: float, empty: float) -> Iterator[Parts]:
        """The steps of a search, the circuit that it found, and its evaluation."""
        search = self._trials.searched()
        measure = search.fall if asked.of_metric else search.divergence
        max_ahead = max(MAX_AHEAD // len(self._asked.pairs), 1)
        kept, total = self._asked.whole, self._asked.item_count
        for step in acdc(search.candidates, measure, asked.threshold, absolute=asked.absolute, max_ahead=max_ahead):
            kept, self.step_operations = step.kept, self._asked.operations_of_a_circuit * step.ahead
            yield [_progress(CircuitStage.SEARCH, step.n_tried, total, int(kept.sum()), step.metric)]
        trial = self._trial(_K.ACDC, 0, kept)
        evaluation = self._evaluation(trial, search.metrics(trial.kept), whole, empty)
        if self._asked.nodes is None:
            found = _part(_P.FOUND, _edges(trial.kept))
        else:
            found = _part(_P.FOUND_NODES, _nodes(trial.kept))
        yield [_part(_P.EVALUATION, evaluation), found]


def _reported(stage: CircuitStage, work: Generator[int, None, T], total: int) -> Generator[Parts, None, T]:
    """The result of *work*, which yields how much of *total* is done."""
    while True:
        try:
            done = next(work)
        except StopIteration as end:
            return cast("T", end.value)
        yield [_progress(stage, done, total)]


def _edges(kept: Mask, scores: Scores | None = None, *, is_sorted: bool = False) -> CircuitEdges:
    """The edges of a circuit, with their *scores* [S, D]; sorted by magnitude, or in the order of the graph."""
    sources, readers = np.nonzero(kept)
    if scores is None:
        return CircuitEdges(sources=tuple(sources.tolist()), readers=tuple(readers.tolist()))
    values = scores[sources, readers].astype(np.float32)
    order = np.argsort(-np.abs(values), kind="stable") if is_sorted else slice(None)
    return CircuitEdges(
        sources=tuple(sources[order].tolist()),
        readers=tuple(readers[order].tolist()),
        scores=tuple(values[order].tolist()),
    )


def _nodes(kept: Mask, scores: Scores | None = None, *, is_sorted: bool = False) -> CircuitNodes:
    """The nodes of a circuit, with their *scores* [N]; sorted by magnitude, or in their order."""
    (nodes,) = np.nonzero(kept)
    if scores is None:
        return CircuitNodes(nodes=tuple(nodes.tolist()))
    values = scores[nodes].astype(np.float32)
    order = np.argsort(-np.abs(values), kind="stable") if is_sorted else slice(None)
    return CircuitNodes(nodes=tuple(nodes[order].tolist()), scores=tuple(values[order].tolist()))


def _part(kind: CircuitPartKind, value: CircuitValue) -> CircuitPart:
    return CircuitPart(kind=kind, value=value)


def _progress(
    stage: CircuitStage, done: int, total: int, kept: int | None = None, metric: float | None = None
) -> CircuitPart:
    value = CircuitProgress(stage=stage, done=done, total=total, kept_edge_count=kept, metric=metric)
    return _part(_P.PROGRESS, value)
