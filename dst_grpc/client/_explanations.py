"""What makes an Explanation of the parts that Explain and TopK answer with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from dst_grpc.domain.explanations import (
    Explanation,
    ExplanationPart,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    RunExplanation,
    RunHeader,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
)
from dst_grpc.errors import DataLoss, Reason

MessageT = TypeVar("MessageT")


@dataclass(slots=True)
class _Run:
    """What has come of one run."""

    header: RunHeader
    tables: dict[PartKind, NodeTable] = field(default_factory=dict)
    sums: list[ScalarSum] = field(default_factory=list)
    scored: dict[str, list[NodeTokens]] = field(default_factory=dict)
    ways: dict[str, ScoredTokens] = field(default_factory=dict)
    pairs: list[NodeTokenPairs] | None = None

    def finished(self) -> RunExplanation:
        """All of it as one value."""
        return RunExplanation(
            header=self.header,
            node_table=self.tables.get(PartKind.NODE_TABLE),
            component_sums=self.tables.get(PartKind.COMPONENT_SUMS),
            sums=tuple(self.sums),
            scored_tokens=tuple(
                ScoredTokens(part=way.part, nodes=tuple(self.scored[key])) for key, way in self.ways.items()
            ),
            token_pairs=None if self.pairs is None else TokenPairs(nodes=tuple(self.pairs)),
            top_logits=self.tables.get(PartKind.TOP_LOGITS),
        )


class ExplanationCollector(Generic[MessageT]):
    """Messages to an Explanation, checked: nothing is missing, doubled or out of order when it is handed out."""

    def __init__(self, n_runs: int, read: Callable[[MessageT], ExplanationPart | None]) -> None:
        self._read = read
        self._runs: list[_Run | None] = [None] * n_runs
        self._count = 0

    def add(self, message: MessageT) -> Explanation | None:
        """Take the next message; see Collector."""
        return self.take(self._read(message))

    def take(self, part: ExplanationPart | None) -> Explanation | None:
        """Take the next part, or None for one of a kind that is not known here.

        Returns:
            The explanation, if this part is the trailer.

        Raises:
            DataLoss: If the part contradicts what came before (ANSWER_CORRUPT), or messages are missing
                (ANSWER_TRUNCATED).
        """
        self._count += 1
        if part is None:
            return None
        if part.kind is PartKind.TRAILER:
            return self._finished(part, cast("RunsTrailer", part.value))
        if part.run_index >= len(self._runs):
            raise _corrupt(f"a part of run {part.run_index} came, and there are {len(self._runs)} runs")
        run = self._runs[part.run_index]
        if part.kind is PartKind.HEADER:
            if run is not None:
                raise _corrupt(f"run {part.run_index} has two headers")
            self._runs[part.run_index] = _Run(cast("RunHeader", part.value))
        elif run is None:
            raise _corrupt(f"the {part.kind} of run {part.run_index} came before its header")
        else:
            _add(run, part)
        return None

    def _finished(self, part: ExplanationPart, trailer: RunsTrailer) -> Explanation:
        missing = [i for i, run in enumerate(self._runs) if run is None]
        if missing or trailer.frame_count != self._count:
            what = f"{self._count} of {trailer.frame_count} messages came"
            raise DataLoss(f"the answer is truncated: {what}", reason=Reason.ANSWER_TRUNCATED)
        runs = tuple(run.finished() for run in self._runs if run is not None)
        return Explanation(request_id=part.request_id, runs=runs, trailer=trailer)


def _add(run: _Run, part: ExplanationPart) -> None:
    value = part.value
    table = run.tables.get(PartKind.NODE_TABLE)
    n_nodes = 0 if table is None else len(table.nodes)
    if isinstance(value, NodeTable):
        if part.kind in run.tables:
            raise _corrupt(f"run {part.run_index} has two parts {part.kind}")
        run.tables[part.kind] = value
    elif isinstance(value, ScalarSum):
        run.sums.append(value)
    elif isinstance(value, ScoredTokens):
        _check_nodes(part, [tokens.node for tokens in value.nodes], n_nodes)
        run.ways.setdefault(value.part, value)
        run.scored.setdefault(value.part, []).extend(value.nodes)
    elif isinstance(value, TokenPairs):
        _check_nodes(part, [pairs.node for pairs in value.nodes], n_nodes)
        run.pairs = [*(run.pairs or []), *value.nodes]


def _check_nodes(part: ExplanationPart, nodes: list[int], n_nodes: int) -> None:
    if any(node >= n_nodes for node in nodes):
        raise _corrupt(f"the {part.kind} of run {part.run_index} names a node beyond the {n_nodes} of its table")


def _corrupt(what: str) -> DataLoss:
    return DataLoss(f"the answer is corrupt: {what}", reason=Reason.ANSWER_CORRUPT)
