"""Assembles an Explanation from the parts of an answer of Explain or TopK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from dst_grpc._gen.dst.v1.explain_pb2 import ExplainFrame, ExplainResponse, TopKFrame, TopKResponse
from dst_grpc.domain.explanations import (
    Explanation,
    ExplanationPart,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    RunExplanation,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
)
from dst_grpc.domain.results import RunHeader
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.assembly import PartReader
from dst_grpc.wire.pieces import corrupt


@dataclass(slots=True)
class _Run:
    """The parts of one run so far."""

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


class ExplanationCollector:
    """From messages to an Explanation, checked: nothing is missing, repeated or out of order."""

    def __init__(self, request_id: str, n_runs: int) -> None:
        self._request_id = request_id
        self._reader = PartReader()
        self._runs: list[_Run | None] = [None] * n_runs

    def add(self, message: TopKResponse | ExplainResponse) -> Explanation | None:
        """Take the next message; see Collector."""
        whole: Explanation | None = None
        for frame in message.frames:
            part = self.read(frame)
            whole = whole if part is None else self.take(part)
        return whole

    def read(self, frame: TopKFrame | ExplainFrame) -> ExplanationPart | None:
        """The part that the next frame completes, if any; raises DataLoss if it cannot be read."""
        return self._reader.read(frame)

    def take(self, part: ExplanationPart) -> Explanation | None:
        """Take the next part.

        Returns:
            The explanation, if this part is the trailer.

        Raises:
            DataLoss: If the part contradicts earlier ones (ANSWER_CORRUPT), or frames are missing (ANSWER_TRUNCATED).
        """
        if part.kind is PartKind.TRAILER:
            return self._finished(cast("RunsTrailer", part.value))
        if part.run_index >= len(self._runs):
            raise corrupt(f"a part of run {part.run_index} came, and there are {len(self._runs)} runs")
        run = self._runs[part.run_index]
        if part.kind is PartKind.HEADER:
            if run is not None:
                raise corrupt(f"run {part.run_index} has two headers")
            self._runs[part.run_index] = _Run(cast("RunHeader", part.value))
        elif run is None:
            raise corrupt(f"the {part.kind} of run {part.run_index} came before its header")
        else:
            _add(run, part)
        return None

    def _finished(self, trailer: RunsTrailer) -> Explanation:
        missing = [i for i, run in enumerate(self._runs) if run is None]
        if missing or trailer.frame_count != self._reader.count:
            what = f"{self._reader.count} of {trailer.frame_count} frames came"
            raise DataLoss(f"the answer is truncated: {what}", reason=Reason.ANSWER_TRUNCATED)
        runs = tuple(run.finished() for run in self._runs if run is not None)
        return Explanation(request_id=self._request_id, runs=runs, trailer=trailer)


def _add(run: _Run, part: ExplanationPart) -> None:
    value = part.value
    table = run.tables.get(PartKind.NODE_TABLE)
    n_nodes = 0 if table is None else len(table.nodes)
    if isinstance(value, NodeTable):
        if part.kind in run.tables:
            raise corrupt(f"run {part.run_index} has two parts {part.kind}")
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
        raise corrupt(f"the {part.kind} of run {part.run_index} names a node beyond the {n_nodes} of its table")
