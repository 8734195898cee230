"""Runs of Patch's cells upon blocks of pairs: which cells of which pair each pass has, and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.ioi_paths import HeadPath, IoiPaths
from dst_grpc.causal.patching import Cell, MeanOfRuns, PatchedRuns, record_pairs
from dst_grpc.causal.writes import Alternative, MeanWrites, Writes, record
from dst_grpc.domain import pairs
from dst_grpc.pipeline.directions import naming, vectors_of
from dst_grpc.pipeline.pair_planner import length_of_mean
from dst_grpc.pipeline.passes import load_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from dst_grpc.causal.attribution import Pair
    from dst_grpc.causal.patching import PairRuns, Recorded
    from dst_grpc.causal.read_logits import Positions, ReadRows
    from dst_grpc.causal.writes import RecordedRuns
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.patch_paths import PathCell
    from dst_grpc.pipeline.patch_planner import PatchPlan
    from dst_grpc.scalars.explained_model import AutoencoderSet

    Places = np.ndarray[Any, np.dtype[np.intp]]

_PATHS = 64
"""Paths through MLPs of one step."""


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """One changed run."""

    pair: int
    """Its pair, by its place in the block."""
    cells: Sequence[tuple[int, int]]
    """The cells that it is, of all grids: grid and number."""


class PatchRuns:
    """Runs the cells of one request."""

    def __init__(
        self,
        asked: PatchPlan,
        decoder: Decoder,
        sets: Mapping[str, AutoencoderSet],
        splices: Mapping[Site, Splice],
        check: Check,
    ) -> None:
        """Run nothing yet.

        Args:
            asked: the request.
            decoder: the model.
            sets: the autoencoders that directions name.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        self._asked, self._decoder, self._sets = asked, decoder, sets
        self._splices, self._check = splices, check
        self.n_passes = 0
        """Forward passes so far."""
        self._means: dict[int | None, Recorded] = {}
        """Of what is read, by the length of their prompts; None for prompts of any length."""
        self._written: dict[int | None, Writes] = {}
        """Of what sources write, likewise."""

    def recorded(self, block: range) -> PairRuns:
        """The runs of a block of pairs without any change."""
        asked = [self._asked.pairs[i] for i in block]
        has_mean = bool(self._asked.request.reads_mean and self._asked.sites)
        means = [self._mean(pair) for pair in asked] if has_mean else None
        self.n_passes += 1
        return record_pairs(
            [pair.base for pair in asked],
            [pair.source for pair in asked] if self._asked.has_sources else None,
            self._decoder,
            self._asked.sites,
            read_at=[pair.read_at for pair in asked],
            means=means,
            splices=self._splices,
            check=self._check,
        )

    def batches(self, block: range, runs: PairRuns) -> Iterator[tuple[list[Ran], ReadRows]]:
        """The changed runs of a block of pairs, pass by pass, with the logits that are read of them."""
        yield from self._of_nodes(runs)
        if self._asked.paths:
            yield from self._of_paths(block)

    # Nodes, and the request's own cells

    def _of_nodes(self, runs: PairRuns) -> Iterator[tuple[list[Ran], ReadRows]]:
        changes = {length: self._asked.changes(length) for length in set(runs.lengths)}
        cells: list[Cell] = []
        ran: list[Ran] = []
        for pair, length in enumerate(runs.lengths):
            for interventions, places in changes[length]:
                cells.append(Cell(pair, interventions))
                ran.append(Ran(pair, places))
        patched = PatchedRuns(
            self._decoder,
            runs,
            tensors=self._tensors,
            vectors=self._vectors,
            splices=self._splices,
            check=self._check,
        )
        paths = {
            at: path
            for plans in self._asked.cells.values()
            for one in plans
            for at, path in one.direction_paths.items()
        }
        with naming(paths):
            for places_of_pass, logits in patched.batches(cells):
                self.n_passes += 1
                yield [ran[i] for i in places_of_pass], logits

    @property
    def _changes(self) -> Iterator[Intervention]:
        """What the request's own cells change."""
        for plans in self._asked.cells.values():
            for plan in plans:
                yield from plan.run.interventions

    @cached_property
    def _tensors(self) -> Mapping[RequestTensor, torch.Tensor]:
        """The tensors that cells read, on the device."""
        found: dict[RequestTensor, torch.Tensor] = {}
        for one in self._changes:
            load_tensors(one, found, self._decoder)
        return found

    @cached_property
    def _vectors(self) -> Mapping[Any, torch.Tensor]:
        """The rows of weights that cells have as directions, on the device."""
        return vectors_of(self._changes, self._decoder, self._sets)

    def _mean(self, pair: Pair) -> Recorded:
        """The mean over the reference prompts of a pair of what is read."""
        length = length_of_mean(pair, self._asked.request.alternative)
        if length not in self._means:
            mean = MeanOfRuns(by_position=self._asked.request.alternative is not pairs.Alternative.MEAN)
            for prompts in self._asked.reference_batches(length):
                mean.add(prompts, self._decoder, self._asked.sites, splices=self._splices, check=self._check)
                self.n_passes += 1
            self._means[length] = mean.mean(self._decoder.dtype)
        return self._means[length]

    # Paths

    def _of_paths(self, block: range) -> Iterator[tuple[list[Ran], ReadRows]]:
        asked = [self._asked.pairs[i] for i in block]
        record_all = partial(record, decoder=self._decoder, splices=self._splices, check=self._check)
        base = record_all([pair.base for pair in asked])
        is_patching = self._asked.request.alternative is pairs.Alternative.PATCHING
        source = record_all([pair.source for pair in asked]) if is_patching else None
        self.n_passes += 1 + is_patching
        for number, grid in enumerate(self._asked.paths, len(self._asked.nodes)):
            of_block = [(i, cell) for i in range(len(block)) for cell in grid.cells]
            read_at = [pair.read_at for pair in asked]
            if grid.goes_through_mlps and source is not None:
                yield from self._through_mlps(number, of_block, base, source, read_at)
            else:
                yield from self._direct(number, of_block, base, self._writes(asked, source), read_at)

    def _writes(self, asked: Sequence[Pair], source: RecordedRuns | None) -> Writes:
        """What cut edges of some pairs carry instead."""
        if source is not None:
            return source.writes
        if self._asked.request.alternative is pairs.Alternative.ZERO:
            return Writes.zero(self._decoder)
        return Writes.stacked([self._mean_writes(pair) for pair in asked])

    def _direct(
        self,
        grid: int,
        cells: Sequence[tuple[int, PathCell]],
        base: RecordedRuns,
        writes: Writes,
        read_at: Sequence[Positions],
    ) -> Iterator[tuple[list[Ran], ReadRows]]:
        graph = self._asked.graph
        is_zero = self._asked.request.alternative is pairs.Alternative.ZERO
        alternative = Alternative.of(writes, self._decoder, base.tokens.shape[1], is_zero=is_zero)
        runs = CutRuns(self._decoder, graph, base, alternative, splices=self._splices, check=self._check)
        rows = []
        for prompt, cell in cells:
            readers = sorted(graph.index_of_reader(receiver) for receiver in cell.receivers)
            sources = [graph.index_of_source(cell.sender)] * len(readers)
            rows.append(CutRow.of_edges((_places(sources), _places(readers)), prompt))
        for places, passed in runs.batches(rows):
            self.n_passes += 1
            read = passed.read([read_at[cells[i][0]] for i in places])
            yield [Ran(cells[i][0], ((grid, cells[i][1].cell),)) for i in places], read

    def _through_mlps(
        self,
        grid: int,
        cells: Sequence[tuple[int, PathCell]],
        base: RecordedRuns,
        source: RecordedRuns,
        read_at: Sequence[Positions],
    ) -> Iterator[tuple[list[Ran], ReadRows]]:
        paths = IoiPaths(self._decoder, base, source, splices=self._splices, check=self._check)
        ordered = sorted(cells, key=lambda one: (one[1].sender.layer or 0, one[0], one[1].sender.head or 0))
        for start in range(0, len(ordered), _PATHS):
            self._check()
            some = ordered[start : start + _PATHS]
            read = paths.read([HeadPath(prompt, cell.sender, cell.receivers) for prompt, cell in some], read_at)
            self.n_passes += 2
            yield [Ran(prompt, ((grid, cell.cell),)) for prompt, cell in some], read

    def _mean_writes(self, pair: Pair) -> Writes:
        """The mean over the reference prompts of a pair of what sources write."""
        length = length_of_mean(pair, self._asked.request.alternative)
        if length not in self._written:
            mean = MeanWrites(by_position=self._asked.request.alternative is not pairs.Alternative.MEAN)
            for prompts in self._asked.reference_batches(length):
                mean.add(record(prompts, self._decoder, splices=self._splices, check=self._check))
                self.n_passes += 1
            self._written[length] = mean.mean(self._decoder.dtype)
        return self._written[length]


def _places(numbers: Sequence[int]) -> Places:
    return np.array(numbers, dtype=np.intp)
