"""Circuits of the golden cases, and what is kept of a graph, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.circuits import Mask
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.writes import Alternative, MeanWrites, RecordedRuns, Writes, record
from dst_grpc.domain.interventions import Intervention
from dst_grpc.engine.decoder import Decoder
from tests.causal_goldens import GoldenCase, golden_case, golden_decoder


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs of one model, and its graph."""

    decoder: Decoder
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    changes: tuple[Intervention, ...] = ()
    """What is changed in both."""

    @cached_property
    def graph(self) -> Graph:
        return Graph.of(self.decoder.config.dimensions, self.decoder.config.architecture)

    @cached_property
    def base(self) -> RecordedRuns:
        return record([self.clean], self.decoder, changes=self.changes)

    @cached_property
    def other(self) -> RecordedRuns:
        return record([self.corrupt], self.decoder, changes=self.changes)

    def alternative(self, writes: Writes, *, is_zero: bool = False) -> Alternative:
        return Alternative.of(writes, self.decoder, len(self.clean), is_zero=is_zero)

    @cached_property
    def runs(self) -> CutRuns:
        """Runs of the clean prompt in which cut edges carry the corrupt run's values."""
        return CutRuns(self.decoder, self.graph, self.base, self.alternative(self.other.writes))

    @cached_property
    def reverse(self) -> CutRuns:
        """Runs of the corrupt prompt in which cut edges carry the clean run's values."""
        return CutRuns(self.decoder, self.graph, self.other, self.alternative(self.base.writes))

    def circuit(self, kept: Mask, *, is_zero: bool = False) -> CutRow:
        return CutRow.of_circuit(self.graph, kept, 0, is_zero=is_zero)

    def edge(self, source: int, reader: int) -> CutRow:
        return CutRow.of_edges((np.array([source]), np.array([reader])), 0)

    def logits(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """Logits [V] of a plain run at the last token."""
        logits = self.decoder.forward(torch.tensor([tokens]))
        assert logits is not None
        return logits[0, -1]


@dataclass(frozen=True, eq=False)
class GoldenPair(Pair):
    """The pair of a golden case."""

    case: GoldenCase = field(kw_only=True)

    @classmethod
    def of(cls, name: str) -> GoldenPair:
        case = golden_case(name)
        return cls(golden_decoder(case.model), case.clean, case.corrupt, case=case)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[..., self.case.target] - logits[..., self.case.distractor]

    def alternatives(self) -> dict[str, Alternative]:
        """By the names of the golden data, what cut edges carry."""
        found = {
            "patching": self.alternative(self.other.writes),
            "zero": self.alternative(Writes.zero(self.decoder), is_zero=True),
        }
        for name, by_position in (("mean", False), ("mean_by_position", True)):
            mean = MeanWrites(by_position=by_position)
            for prompt in self.case.facts["mean_set_ids"]:
                mean.add(record([prompt], self.decoder))
            found[name] = self.alternative(mean.mean(self.decoder.dtype))
        return found

    def first(self, order: str, count: int) -> Mask:
        """The circuit of the first *count* edges of an order in the golden data."""
        kept = np.zeros_like(self.graph.mask)
        kept[tuple(self.case.tensors[order][:count].T.numpy())] = True
        return kept
