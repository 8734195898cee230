"""Runs of circuits: many sets of cut edges as rows of few passes, each from the first layer that it changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch

from dst_grpc.causal.cut_edges import CircuitTaps, CutEdges
from dst_grpc.causal.read_logits import ReadRows, diverges_from_source
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.splice import first_layer_of
from dst_grpc.errors import require
from dst_grpc.scalars.origins import LastLogits

if TYPE_CHECKING:
    from dst_grpc.causal.cut_edges import CutRow
    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.read_logits import Positions
    from dst_grpc.causal.writes import Alternative, RecordedRuns
    from dst_grpc.domain.architecture import ModelDimensions
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin

BATCH_BYTES = 192 << 20
"""Most bytes of a pass, unless a single row takes more."""
BATCH_TOKENS = 2048
"""Most tokens of a pass, pads included, unless a single prompt is longer."""
_BYTES = 4


def row_bytes(dimensions: ModelDimensions, graph: Graph, n_tokens: int, *, n_inputs: int, n_held: int) -> int:
    """About the memory that a row of a pass takes, where so many readers of a layer have inputs of their own, and the
    changes of so many sources are held."""
    d = dimensions
    numbers = n_tokens * (d.d_model * (3 * n_inputs + n_held) + 2 * d.d_mlp) + d.vocab_size
    return _BYTES * numbers + graph.mask.size


@dataclass(frozen=True, slots=True, eq=False)
class RanRows:
    """What came of the rows of a pass."""

    decoder: Decoder
    """The model."""
    last: torch.Tensor
    """Logits [n, V] at the last token of each prompt."""
    final: torch.Tensor
    """What the logits read, [n, T, d]."""

    def read(self, read_at: Sequence[Positions]) -> ReadRows:
        """The logits that are read of the rows, at positions of each."""
        if all(len(positions) == 1 for positions in read_at):
            return ReadRows(self.last, (1,) * len(read_at))
        return ReadRows.of([self.logits(row, positions) for row, positions in enumerate(read_at)])

    def logits(self, row: int, positions: Sequence[int]) -> torch.Tensor:
        """Logits [len(positions), V] of a row at *positions*."""
        return self.decoder.unembed(self.decoder.final_norm(self.final[row, list(positions)]))


@dataclass(frozen=True, slots=True, eq=False)
class RowLogits(LastLogits):
    """The logits of a row of a pass with cut edges, for a metric."""

    ran: RanRows
    row: int
    other: torch.Tensor | None = None
    """If the metric is a divergence, the logits [V] that it is from."""

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        """Logits [len(positions), V] at *positions*; without, those of the last token, [V]."""
        return self.ran.logits(self.row, positions) if positions else self.last

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        """The logits [V] that the metric diverges from."""
        return self.other if self.other is not None else LastLogits.logits_of(self, run, position)


def reference_logits(
    decoder: Decoder, metrics: Sequence[Origin], base: RecordedRuns, source: RecordedRuns | None
) -> list[torch.Tensor | None]:
    """The logits [V] that each of *metrics*, of the prompts of *base*, is a divergence from; None for other metrics.

    *source* has the other prompt of each pair; None if no metric is a divergence from it.
    """
    found: list[torch.Tensor | None] = []
    for i, metric in enumerate(metrics):
        if metric.reference is None:
            found.append(None)
            continue
        runs = require(source) if diverges_from_source(metric) else base
        found.append(decoder.unembed(decoder.final_norm(runs.residuals[-1][i, metric.reference[1]])))
    return found


class OfPrompt(Protocol):
    """A row of a pass: one of the prompts, changed."""

    @property
    def prompt(self) -> int:
        """Its place among the prompts."""


R = TypeVar("R", bound=OfPrompt)


class LateRuns(ABC, Generic[R]):
    """Runs rows upon recorded runs of their prompts, each from the first layer that it changes."""

    def __init__(
        self,
        decoder: Decoder,
        base: RecordedRuns,
        *,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Take what rows start from.

        Args:
            decoder: the model.
            base: the runs of the prompts; what is changed in them is changed in all rows.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        self._decoder, self._base = decoder, base
        self._splices, self._check = splices, check

    def logits(self, rows: Sequence[R]) -> torch.Tensor:
        """Logits [n, V] of each of *rows* at the last token of its prompt."""
        found = self._decoder.embedding.new_empty(len(rows), self._decoder.config.vocab_size)
        for places, ran in self.batches(rows):
            found[places] = ran.last
        return found

    def batches(self, rows: Sequence[R]) -> Iterator[tuple[list[int], RanRows]]:
        """For each pass, the places of its rows among *rows*, and what came of them. Rows that start late come
        first."""
        splices = (self._splices or {}).values()
        firsts = [first_layer_of(self._first_layer(row), splices) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: (-firsts[i], rows[i].prompt))
        for first_layer, places in groupby(order, key=firsts.__getitem__):
            for batch in self._split(list(places), rows, first_layer):
                self._check()
                yield batch, self._run([rows[i] for i in batch], first_layer)

    @abstractmethod
    def _first_layer(self, row: R) -> int:
        """The first layer that a row changes; the number of layers if that is none."""

    @abstractmethod
    def _split(self, places: Sequence[int], rows: Sequence[R], first_layer: int) -> Iterator[list[int]]:
        """The rows at *places*, which start at the same layer, in batches of about the most bytes and tokens."""

    @abstractmethod
    def _taps(self, rows: Sequence[R], first_layer: int) -> CircuitTaps:
        """The taps of a pass of *rows*."""

    def _entering(self, rows: Sequence[R], prompts: torch.Tensor, first_layer: int) -> torch.Tensor:
        """The residual [b, T, d] that enters the first layer."""
        del rows
        return self._base.residuals[first_layer][prompts]

    def _run(self, rows: Sequence[R], first_layer: int) -> RanRows:
        """The pass of *rows*, of ascending prompts, which start at *first_layer*."""
        prompts = torch.tensor([row.prompt for row in rows], device=self._base.tokens.device)
        taps = self._taps(rows, first_layer)
        logits = self._decoder.forward(
            self._base.tokens[prompts],
            taps,
            entering=(first_layer, self._entering(rows, prompts, first_layer)),
            logits_at=self._base.last[prompts],
        )
        return RanRows(self._decoder, require(logits)[:, 0], require(taps.final))


class CutRuns(LateRuns["CutRow"]):
    """Runs rows with cut edges."""

    def __init__(
        self,
        decoder: Decoder,
        graph: Graph,
        base: RecordedRuns,
        alternative: Alternative,
        *,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """As of any rows.

        Args:
            decoder: the model.
            graph: its graph.
            base: the runs of the prompts, without cut edges; what is changed in them is changed in all rows.
            alternative: what a cut edge carries instead, for the same prompts.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        super().__init__(decoder, base, splices=splices, check=check)
        self._graph, self._alternative = graph, alternative

    def _first_layer(self, row: CutRow) -> int:
        """The first layer with a reader that a row changes; the number of layers if that is the logits, or none."""
        per_layer = self._graph.first_reader_of(1)
        return int(row.readers[0]) // per_layer if len(row.readers) else self._graph.n_layers

    def _split(self, places: Sequence[int], rows: Sequence[CutRow], first_layer: int) -> Iterator[list[int]]:
        """The rows at *places*, which start at the same layer, in batches of about the most bytes and tokens."""
        n_tokens = self._base.tokens.shape[1]
        written_before = self._graph.sources_before(first_layer)
        bytes_of_row = partial(
            row_bytes,
            self._decoder.config.dimensions,
            self._graph,
            n_tokens,
            n_inputs=3 * self._graph.n_heads if first_layer < self._graph.n_layers else 1,
        )
        held = np.zeros(len(self._graph.sources), dtype=bool)
        batch: list[int] = []
        for place in places:
            more = held.copy()
            more[rows[place].terms[0]] = True
            per_row = bytes_of_row(n_held=int(more[written_before:].sum()))
            size = len(batch) + 1
            if batch and (size * per_row > BATCH_BYTES or size * n_tokens > BATCH_TOKENS):
                yield batch
                batch, more = [], np.zeros_like(held)
                more[rows[place].terms[0]] = True
            batch, held = [*batch, place], more
        yield batch

    def _taps(self, rows: Sequence[CutRow], first_layer: int) -> CutEdges:
        return CutEdges(
            self._decoder,
            self._graph,
            rows,
            base=self._base,
            alternative=self._alternative,
            first_layer=first_layer,
            splices=self._splices,
            check=self._check,
        )
