"""The answer to Attribute: a header, the metrics of pairs and the scores, block by block of pairs, then a summary.

Scores are summed up over blocks, so that an answer holds no more than they take and the recordings of one block.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.causal.attribution import Metrics
from dst_grpc.causal.verification import ExactEffects, correlation, largest
from dst_grpc.domain.attribute_answers import (
    AttributedPairs,
    AttributeHeader,
    AttributePart,
    AttributePartKind,
    AttributeProgress,
    PairMetrics,
    ScoredKind,
    ScoreValues,
    VerifiedEdges,
)
from dst_grpc.engine.element_types import is_finite, out_of_range, why_out_of_range
from dst_grpc.errors import require
from dst_grpc.pipeline.attribute_planner import AttributePlan
from dst_grpc.pipeline.attribute_scoring import GraphScoring, TokenScoring
from dst_grpc.pipeline.stepped_answer import SteppedAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.attribute_answers import AttributeValue
    from dst_grpc.pipeline.attribute_scoring import Scoring
    from dst_grpc.pipeline.run import RunResult

    Array = np.ndarray[Any, Any]

_P = AttributePartKind
_ELEMENTS_OF_A_PART = 1 << 17
Parts = list[AttributePart]


class AttributeAnswer(SteppedAnswer[AttributePlan, AttributePart]):
    """The answer to one request, computed in steps."""

    def __init__(
        self,
        asked: AttributePlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """As of any answer about pairs."""
        super().__init__(asked, results, model, sets)
        self._scoring = self._scoring_of(asked)
        self._n_exact_passes = 0

    def _scoring_of(self, asked: AttributePlan) -> Scoring:
        decoder, check = self._model.decoder, self._first.check
        if asked.request.of_tokens:
            return TokenScoring(asked, decoder, self._splices, check)
        handles = {info.input.spliced_at: self._sets[info.name].handle for info in asked.plan.spliced}
        return GraphScoring(asked, decoder, self._splices, handles, check)

    @property
    def _n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far, without the first run."""
        n_forward, n_backward = self._scoring.n_passes
        return n_forward + self._n_exact_passes, n_backward

    @property
    def _batch_size(self) -> int:
        """Both runs of the pairs that run together."""
        return 2 * max(map(len, self._asked.blocks()))

    def _work(self) -> Iterator[Parts]:
        """The parts of each step, in order."""
        yield [_part(_P.HEADER, self._header())]
        pairs, found = self._asked.pairs, list[PairMetrics]()
        total = len(pairs) * (2 if self._asked.request.verify else 1)
        for block in self._asked.blocks():
            found += self._scoring.add([pairs[i] for i in block])
            self._check_metrics(found)
            yield [_part(_P.PROGRESS, AttributeProgress(done=len(found), total=total))]
        yield [_part(_P.PAIRS, AttributedPairs(pairs=tuple(found)))]
        edges: Array | None = None
        for info, scores in zip(self._scoring.infos, self._scoring.arrays(), strict=True):
            if not is_finite(scores):
                raise self._not_finite("scores")
            flat = np.ascontiguousarray(scores.float().cpu().numpy()).reshape(-1)
            if info.kind is ScoredKind.EDGES:
                edges = flat.reshape(-1, *info.shape[-2:]).sum(axis=0)
            for start in range(0, max(len(flat), 1), _ELEMENTS_OF_A_PART):
                piece = ScoreValues(info.tensor_id, flat[start : start + _ELEMENTS_OF_A_PART], start)
                yield [_part(_P.VALUES, piece)]
        if self._asked.request.verify:
            yield from self._verified(require(edges), found, total)

    def _header(self) -> AttributeHeader:
        request, graph, plan = self._asked.request, self._asked.graph, self._asked.plan
        return AttributeHeader(
            model=self._model.handle,
            sources=tuple(map(str, graph.sources)),
            readers=tuple(map(str, graph.readers)),
            edge_count=graph.n_edges,
            pair_count=len(self._asked.pairs),
            orientation=request.orientation,
            method=request.method,
            rule=request.rule,
            meaning=_meaning(self._asked),
            token_ids=plan.token_ids,
            token_strings=plan.token_strings,
            scores=self._scoring.infos,
        )

    def _check_metrics(self, found: Sequence[PairMetrics]) -> None:
        for one in found:
            if not all(value is None or math.isfinite(value) for value in (one.base, one.source, one.residual)):
                raise self._not_finite("metrics")

    def _not_finite(self, what: str) -> Exception:
        dtype = self._model.decoder.dtype
        return out_of_range(f"the {what} are not finite: {why_out_of_range(dtype)}", dtype)

    def _verified(self, scores: Array, metrics: Sequence[PairMetrics], total: int) -> Iterator[Parts]:
        """Exact effects of the edges with the largest *scores* [S, D], block by block of pairs."""
        graph, pairs = self._asked.graph, self._asked.pairs
        edges = largest(scores, graph.mask, self._asked.request.verify)
        exact = ExactEffects(self._model.decoder, graph, edges, self._splices, self._first.check)
        effects = np.zeros(len(edges[0]))
        done = len(pairs)
        for block in self._asked.blocks():
            of_block = [Metrics(metrics[i].base, require(metrics[i].source)) for i in block]
            found, n_passes = exact.of([pairs[i] for i in block], of_block)
            effects += found.sum(axis=0)
            self._n_exact_passes += n_passes
            done += len(block)
            yield [_part(_P.PROGRESS, AttributeProgress(done=done, total=total))]
        effects /= len(pairs)
        estimates = scores[edges].astype(np.float64)
        verified = VerifiedEdges(
            sources=tuple(edges[0].tolist()),
            readers=tuple(edges[1].tolist()),
            scores=tuple(estimates.tolist()),
            effects=tuple(effects.tolist()),
            correlation=correlation(estimates, effects),
        )
        yield [_part(_P.VERIFIED, verified)]


def _meaning(asked: AttributePlan) -> str:
    """What a score estimates, in words, with its sign."""
    request = asked.request
    if request.of_tokens:
        return "share of a token in metric(base) - metric(baseline)"
    change = "metric(base with the source run's value) - metric(base)"
    return f"magnitude of {change}" if request.grad_drop or request.magnitudes else change


def _part(kind: AttributePartKind, value: AttributeValue) -> AttributePart:
    return AttributePart(kind=kind, value=value)
