"""The answer to Patch: a header, then, block by block of pairs, each pair's own runs and the cells of each pass; last
the means over pairs, and a summary."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.causal.circuits import faithfulness
from dst_grpc.causal.read_logits import ReadLogits
from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.domain.pairs import SOURCE, Orientation
from dst_grpc.domain.patch_answers import (
    PatchedCells,
    PatchedPair,
    PatchHeader,
    PatchMeans,
    PatchPart,
    PatchPartKind,
)
from dst_grpc.engine.element_types import is_finite, out_of_range, why_out_of_range
from dst_grpc.pipeline.patch_planner import PatchPlan
from dst_grpc.pipeline.patch_runs import PatchRuns
from dst_grpc.pipeline.stepped_answer import SteppedAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    import torch

    from dst_grpc.causal.patching import PairRuns
    from dst_grpc.causal.read_logits import ReadRows
    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.patch_answers import PatchValue
    from dst_grpc.pipeline.patch_runs import Ran
    from dst_grpc.pipeline.run import RunResult

    Sums = np.ndarray[Any, np.dtype[np.float64]]

_P = PatchPartKind
Parts = list[PatchPart]


class PatchAnswer(SteppedAnswer[PatchPlan, PatchPart]):
    """The answer to one request, computed in steps."""

    def __init__(
        self,
        asked: PatchPlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """As of any answer about pairs."""
        super().__init__(asked, results, model, sets)
        self._runs = PatchRuns(asked, model.decoder, sets, self._splices, self._first.check)
        self._sums = [_Sums(info.size) for info in asked.infos]

    @property
    def _n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far, without the first run."""
        return self._runs.n_passes, 0

    @property
    def _batch_size(self) -> int:
        """Pairs that are recorded together."""
        return len(next(self._asked.blocks()))

    def _work(self) -> Iterator[Parts]:
        """The parts of each step, in order."""
        yield [_part(_P.HEADER, self._header())]
        for block in self._asked.blocks():
            recorded = self._runs.recorded(block)
            pairs = [self._pair(pair, i, recorded) for i, pair in enumerate(block)]
            yield [_part(_P.PAIR, pair) for pair in pairs]
            for ran, read in self._runs.batches(block, recorded):
                yield self._cells(pairs, recorded, ran, read)
        yield [_part(_P.MEANS, sums.means(i)) for i, sums in enumerate(self._sums)]

    def _header(self) -> PatchHeader:
        request = self._asked.request
        return PatchHeader(
            model=self._model.handle,
            orientation=request.orientation,
            alternative=request.alternative,
            pair_count=len(self._asked.pairs),
            grids=self._asked.infos,
        )

    def _pair(self, pair: int, place: int, recorded: PairRuns) -> PatchedPair:
        """The runs of one pair, at a place of the block, without any change."""
        metric, source = self._metric(pair, place, recorded, recorded.logits.rows[place]), None
        if recorded.source_logits is not None:
            source = self._metric(pair, place, recorded, recorded.source_logits.rows[place])
        tokens = self._model.tokenizer.token_strings(self._asked.pairs[pair].base)
        return PatchedPair(
            pair=pair,
            token_strings=tuple(tokens),
            metric=metric,
            source_metric=source,
            has_recovery=source is not None and faithfulness(metric, clean=source, empty=metric) is not None,
        )

    def _metric(self, pair: int, place: int, recorded: PairRuns, read: torch.Tensor) -> float:
        """The metric of one run of a pair, at a place of the block, from the logits [k, V] that are *read* of it."""
        asked = self._asked.pairs[pair]
        others = {UNCHANGED: recorded.logits.rows[place]}
        if recorded.source_logits is not None:
            others[SOURCE] = recorded.source_logits.rows[place]
        return float(asked.metric.scalar(ReadLogits.of(read, asked.read_at, others)))

    def _cells(self, pairs: Sequence[PatchedPair], recorded: PairRuns, ran: Sequence[Ran], read: ReadRows) -> Parts:
        """The cells of one pass, by grid and pair."""
        if not is_finite(read.flat):
            dtype = self._model.decoder.dtype
            raise out_of_range(f"a changed run has logits that are not finite: {why_out_of_range(dtype)}", dtype)
        logits = read.last
        metrics = [
            self._metric(pairs[one.pair].pair, one.pair, recorded, own) for one, own in zip(ran, read.rows, strict=True)
        ]
        divergences = self._divergences(recorded, ran, logits) if self._asked.request.divergence else None
        found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for row, one in enumerate(ran):
            for grid, cell in one.cells:
                found[grid, one.pair].append((cell, row))
        parts = []
        for (grid, place), cells in found.items():
            numbers, rows = [cell for cell, _ in cells], [row for _, row in cells]
            part = PatchedCells(
                grid=grid,
                pair=pairs[place].pair,
                cells=tuple(numbers),
                metrics=tuple(metrics[row] for row in rows),
                divergences=() if divergences is None else tuple(divergences[row] for row in rows),
                **self._logits(logits[rows]),
            )
            self._sums[grid].add(part, pairs[place])
            parts.append(_part(_P.CELLS, part))
        return parts

    def _logits(self, logits: torch.Tensor) -> dict[str, Any]:
        """The logits [n, V] of some cells, as far as they were asked for."""
        request = self._asked.request
        if request.all_logits:
            return {"logits": tuple(logits.float().flatten().tolist())}
        if request.top_logits:
            values, ids = logits.float().topk(min(request.top_logits, logits.shape[1]), dim=1)
            return {"logits": tuple(values.flatten().tolist()), "logit_ids": tuple(ids.flatten().tolist())}
        return {}

    def _divergences(self, recorded: PairRuns, ran: Sequence[Ran], logits: torch.Tensor) -> list[float]:
        """KL(clean run, changed run) of each of *ran*, in nats."""
        is_noising = self._asked.request.orientation is Orientation.NOISING
        clean = recorded.logits if is_noising or recorded.source_logits is None else recorded.source_logits
        log_p = clean.last.double().log_softmax(dim=-1)[[one.pair for one in ran]]
        found: list[float] = (log_p.exp() * (log_p - logits.double().log_softmax(dim=-1))).sum(dim=-1).tolist()
        return found


class _Sums:
    """Sums over pairs of the cells of one grid."""

    def __init__(self, size: int) -> None:
        """Sums of a grid with *size* places."""
        self._metrics, self._recoveries, self._divergences = (np.zeros(size) for _ in range(3))
        self._counts, self._recovery_counts = (np.zeros(size, dtype=np.int64) for _ in range(2))
        self._has_divergences = False

    def add(self, part: PatchedCells, pair: PatchedPair) -> None:
        """Add cells of a pair."""
        cells = list(part.cells)
        metrics = np.array(part.metrics)
        self._metrics[cells] += metrics
        self._counts[cells] += 1
        if part.divergences:
            self._has_divergences = True
            self._divergences[cells] += part.divergences
        if pair.has_recovery and pair.source_metric is not None:
            self._recoveries[cells] += (metrics - pair.metric) / (pair.source_metric - pair.metric)
            self._recovery_counts[cells] += 1

    def means(self, grid: int) -> PatchMeans:
        """The means."""
        cells = np.flatnonzero(self._counts)
        counts, of_recoveries = self._counts[cells], self._recovery_counts[cells]
        n_recoveries = int(of_recoveries.max(initial=0))

        def mean(sums: Sums, counts: Any) -> tuple[float, ...]:
            return tuple((sums[cells] / counts).tolist())

        return PatchMeans(
            grid=grid,
            cells=tuple(cells.tolist()),
            metrics=mean(self._metrics, counts),
            recoveries=mean(self._recoveries, of_recoveries) if n_recoveries else (),
            divergences=mean(self._divergences, counts) if self._has_divergences else (),
            recovery_pair_count=n_recoveries,
        )


def _part(kind: PatchPartKind, value: PatchValue) -> PatchPart:
    return PatchPart(kind=kind, value=value)
