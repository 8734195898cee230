"""The answer to TopK and Explain: parts about each run, then a summary.

Each step is short, so that parts are sent as soon as they are ready and other callers' work fits in between. Results of
earlier steps (tensors, the table's nodes) are kept until the end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from dst_grpc.domain.explanations import ExplainPart, ExplanationPart, NodeTokenPairs, PartKind, TokenPairs
from dst_grpc.domain.results import RunHeader, RunSummary
from dst_grpc.pipeline.node_tables import NodeTables
from dst_grpc.pipeline.not_finite import error_of
from dst_grpc.pipeline.own_time import own_time
from dst_grpc.pipeline.provenance import provenance_of
from dst_grpc.pipeline.run import RunResult, total_statistics
from dst_grpc.pipeline.scored_tokens import TokenScorer
from dst_grpc.pipeline.top_logits import top_logits
from dst_grpc.scalars.attended_tokens import attended_tokens
from dst_grpc.scalars.explained_model import ExplainedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.explanations import NodeTable, ScalarSum, ScoredTokens
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.pipeline.explain_plan import ExplainPlan

    PartValue = RunHeader | NodeTable | ScalarSum | ScoredTokens | TokenPairs

_P = ExplainPart
_PAIRS_OF_A_MESSAGE = 50_000
Parts = list[ExplanationPart]


class ExplanationAnswer:
    """The answer to one request, computed in steps."""

    held_bytes: ClassVar[int | None] = None
    """It takes what its plan says."""
    step_operations: ClassVar[int | None] = None
    """Likewise."""

    def __init__(
        self,
        asked: ExplainPlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """Compute nothing yet; *results* are those of the plans of *asked*.

        Raises:
            OutOfRange: if a run has values that are not finite, which nothing can be chosen by.
        """
        for result in results:
            if result.recording.not_finite is not None:
                raise error_of(result.recording.not_finite, model.decoder.dtype)
        self._asked, self._results, self._model, self._sets = asked, results, model, sets
        self._explained = [
            ExplainedModel(model.decoder, result.plan.topology, tuple(sets[info.name] for info in result.plan.spliced))
            for result in results
        ]
        self._nodes: list[tuple[NodeIndex, ...]] = []
        """Nodes of each run's table."""
        self._scorer = TokenScorer(asked, results, self._explained, model)
        self._seconds = 0.0
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""
        return self._is_complete

    def steps(self) -> Iterator[Parts]:
        """The parts of each step; some have none."""
        work = self._work()
        step: Callable[[], Parts] | None = next(work)
        while step is not None:
            self._results[0].check()
            started = own_time()
            with torch.no_grad():
                parts = step()
            self._seconds += own_time() - started
            step = next(work, None)
            self._is_complete = step is None
            yield parts

    def _work(self) -> Iterator[Callable[[], Parts]]:
        """The steps, in order; later ones use results of earlier ones."""
        parts, runs = self._asked.parts, range(len(self._results))
        yield self._headers
        if _P.NODE_TABLE in parts or _P.COMPONENT_SUMS in parts:
            tables = NodeTables(self._asked, self._results, self._model.tokenizer)
            yield partial(_without_parts, tables.scan)
            yield partial(_without_parts, tables.look_up)
            if _P.NODE_TABLE in parts:
                yield partial(self._tables_of_groups, tables)
            if _P.COMPONENT_SUMS in parts:
                yield partial(self._component_sums, tables)
            if self._asked.with_sums:
                yield from (partial(self._sums, tables, i) for i in runs)
            del tables  # and what it scanned
        if _P.TOP_LOGITS in parts:
            yield self._top_logits
        if _P.TOKEN_PAIRS in parts:
            yield from (partial(self._token_pairs, i) for i in runs)
        scoring = [part for part in ExplainPart if part.scores_tokens and part in parts]
        if scoring:
            step = self._asked.nodes_of_a_message
            for start in range(0, max(*map(len, self._nodes), 1), step):
                yield from (partial(self._scored, part, start, start + step) for part in scoring)

    def summary(self) -> RunSummary:
        """The cost of all runs together, and the provenance of the numbers."""
        queue_duration = max(result.queue_duration for result in self._results)
        batches = [batch for result in self._results for batch in result.batches]
        statistics = replace(total_statistics(batches, queue_duration=queue_duration), derive_duration=self._seconds)
        return RunSummary(
            statistics=statistics,
            provenance=provenance_of(
                self._asked.plans,
                self._model,
                self._sets,
                digest=self._asked.digest(self._model.handle, [one.handle for one in self._sets.values()]),
                batch_size=max(result.batch_size for result in self._results),
            ),
        )

    def _parts(self, kind: PartKind, values: Sequence[PartValue]) -> Parts:
        """One part about each run."""
        return [self._part(kind, i, value) for i, value in enumerate(values)]

    def _part(self, kind: PartKind, run_index: int, value: PartValue) -> ExplanationPart:
        return ExplanationPart(kind=kind, value=value, run_index=run_index)

    def _headers(self) -> Parts:
        return self._parts(PartKind.HEADER, [self._header(result) for result in self._results])

    def _header(self, result: RunResult) -> RunHeader:
        return RunHeader(
            model=self._model.handle,
            token_ids=result.plan.token_ids,
            token_strings=result.plan.token_strings,
            loss=result.loss,
            activation_value=result.activation_value,
            detach_final_layer_norm_scale=bool(result.plan.request.detach_final_layer_norm_scale),
        )

    def _tables_of_groups(self, tables: NodeTables) -> Parts:
        found = tables.tables(self._asked.groups)
        self._nodes = [table.nodes for table in found]
        return self._parts(PartKind.NODE_TABLE, found)

    def _component_sums(self, tables: NodeTables) -> Parts:
        return self._parts(PartKind.COMPONENT_SUMS, tables.tables(self._asked.component_groups))

    def _sums(self, tables: NodeTables, i: int) -> Parts:
        return [self._part(PartKind.SCALAR_SUM, i, one) for one in tables.sums(i)]

    def _top_logits(self) -> Parts:
        return self._parts(PartKind.TOP_LOGITS, top_logits(self._asked, self._results, self._model))

    def _token_pairs(self, i: int) -> Parts:
        nodes, count = self._nodes[i], self._asked.token_pair_count
        found = attended_tokens(self._explained[i], self._results[i].recording.taps, nodes, count)
        pairs = [NodeTokenPairs(node=node, attended_tokens=tuple(tokens)) for node, tokens in found]
        step = max(_PAIRS_OF_A_MESSAGE // count, 1)
        return [
            self._part(PartKind.TOKEN_PAIRS, i, TokenPairs(nodes=tuple(pairs[start : start + step])))
            for start in range(0, max(len(pairs), 1), step)
        ]

    def _scored(self, part: ExplainPart, start: int, stop: int) -> Parts:
        """The tokens of the nodes of one message, of all runs together."""
        return self._parts(PartKind.SCORED_TOKENS, self._scorer.scored(part, self._nodes, start, stop))


def _without_parts(work: Callable[[], None]) -> Parts:
    """A step that sends nothing."""
    work()
    return []
