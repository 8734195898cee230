"""Patched runs: many small changes of a few prompts' runs, as rows of few passes.

A row begins at the first layer that it changes, with what entered that layer in the unchanged run, and at the first
token that it changes, whose past is that run's keys and values. What is taken from the other run of a pair differs from
the unchanged one only from the first token on at which the prompts differ.

Shapes: p prompt, b row of a pass, T token, d residual channel, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.read_logits import ReadRows, rows_and_positions
from dst_grpc.causal.writes import padded, real_tokens, zero_at_pads
from dst_grpc.domain.interventions import UNCHANGED, CopyFromRun
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.pairs import SOURCE
from dst_grpc.domain.patch import MEAN
from dst_grpc.domain.selections import PositionList, PositionRange
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.interventions import RowIntervention
from dst_grpc.engine.late_rows import LateRow
from dst_grpc.engine.past import Past, PastTaps
from dst_grpc.engine.splice import first_layer_of
from dst_grpc.engine.taps import Taps, of_row, site_entering
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from dst_grpc.causal.read_logits import Positions
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.domain.selections import AxisSelection
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site

    Recorded = Mapping[Site, torch.Tensor]

_L = ActivationLocationType
BATCH_TOKENS = 2048
"""Most tokens of a pass, pads included, unless a single row has more."""
BATCH_LOGIT_BYTES = 64 << 20
"""Most bytes of the logits of a pass, unless a single row has more."""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A changed run of one of the prompts."""

    prompt: int
    """Which."""
    interventions: tuple[Intervention, ...]
    """The changes of values, in order. Each is at one layer, if its tap has layers, and may read the runs UNCHANGED,
    SOURCE and MEAN."""


@dataclass(frozen=True, slots=True, eq=False)
class PairRuns:
    """The runs of p pairs of prompts: what patched runs start from, and what they read."""

    tokens: torch.Tensor
    """Ids [p, T] of the base prompts, padded with 0."""
    lengths: tuple[int, ...]
    """Tokens of each prompt."""
    differ_from: tuple[int, ...]
    """The first token at which each pair's prompts differ; their length if they do not."""
    residuals: tuple[torch.Tensor, ...]
    """The residual that enters each layer of the base runs, [p, T, d]; one more, after the last."""
    keys: Mapping[int, torch.Tensor]
    """Keys of the base runs by layer, [p, T, KV, c], as they enter the scores."""
    values: Mapping[int, torch.Tensor]
    """Values of the base runs by layer, [p, T, KV, c]."""
    read_at: tuple[Positions, ...]
    """The positions whose logits are read of each prompt."""
    logits: ReadRows
    """Logits of the base runs there."""
    source_logits: ReadRows | None
    """Those of the source runs; None if there are none."""
    runs: tuple[Mapping[str, Recorded], ...]
    """What can be read, for each prompt, by the name of the run."""


def record_pairs(
    bases: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None,
    decoder: Decoder,
    sites: Iterable[Site],
    *,
    read_at: Sequence[Positions] | None = None,
    means: Sequence[Recorded] | None = None,
    splices: Mapping[Site, Splice] | None = None,
    check: Check = never_cancelled,
) -> PairRuns:
    """Run both prompts of pairs as one batch.

    Args:
        bases: token ids of the prompts that are changed.
        sources: those of the others, of the same lengths; None if there are none.
        decoder: the model.
        sites: what patched runs read.
        read_at: the positions whose logits are read of both prompts of each pair; None for those of the last tokens.
        means: for each pair, the mean over reference prompts at these sites, [T or 1, ...].
        splices: autoencoders to splice in, by the site that each reconstructs.
        check: raises Cancelled to end the pass.
    """
    n = len(bases)
    tokens, _ = padded([*bases, *(sources or ())], decoder)
    wanted = frozenset(sites)
    entering = [site_entering(layer) for layer in range(decoder.config.n_layers + 1)]
    taps = PastTaps(values=wanted.union(entering), splices=splices, check=check)
    lengths = tuple(map(len, bases))
    read = [(length - 1,) for length in lengths] if read_at is None else list(read_at)
    at = rows_and_positions(read if sources is None else read * 2, decoder.device)
    flat, counts = require(decoder.forward(tokens, taps, logits_at=at))[:, 0], tuple(map(len, read))
    n_base = sum(counts)

    def recorded(row: int, n_tokens: int) -> Recorded:
        return {site: of_row(site, taps.values[site], row, n_tokens) for site in wanted}

    runs: list[dict[str, Recorded]] = [{UNCHANGED: recorded(i, length)} for i, length in enumerate(lengths)]
    for i, length in enumerate(lengths):
        if sources is not None:
            runs[i][SOURCE] = recorded(n + i, length)
        if means is not None:
            runs[i][MEAN] = {site: _for_prompt(site, x, length) for site, x in means[i].items()}
    return PairRuns(
        tokens=tokens[:n],
        lengths=lengths,
        differ_from=tuple(
            0 if sources is None else first_difference(base, other)
            for base, other in zip(bases, sources or bases, strict=True)
        ),
        residuals=tuple(taps.values[site][:n] for site in entering),
        keys={layer: keys[:n] for layer, keys in taps.keys.items()},
        values={layer: values[:n] for layer, values in taps.past_values.items()},
        read_at=tuple(read),
        logits=ReadRows(flat[:n_base], counts),
        source_logits=None if sources is None else ReadRows(flat[n_base:], counts),
        runs=tuple(runs),
    )


def _for_prompt(site: Site, mean: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """A mean [T or 1, ...] for a prompt of *n_tokens*."""
    if len(mean) == 1:
        return mean.expand(n_tokens, *mean.shape[1:])
    return of_row(site, mean.unsqueeze(0), 0, n_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A cell, and where it begins."""

    cell: Cell
    layer: int
    """The first layer that it runs; the number of layers for none."""
    token: int
    """The first token that it runs; the prompt's length if it changes nothing."""


class PatchedRuns:
    """Runs cells upon recorded runs of their prompts."""

    def __init__(
        self,
        decoder: Decoder,
        pairs: PairRuns,
        *,
        tensors: Mapping[RequestTensor, torch.Tensor] | None = None,
        vectors: Mapping[Any, torch.Tensor] | None = None,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Take what cells start from.

        Args:
            decoder: the model.
            pairs: the recorded runs.
            tensors: the tensors that interventions read, on the device.
            vectors: the vectors [n] of directions that are rows of weights.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        self._decoder, self._pairs = decoder, pairs
        self._tensors, self._vectors = tensors or {}, vectors or {}
        self._splices, self._check = splices, check

    def batches(self, cells: Sequence[Cell]) -> Iterator[tuple[list[int], ReadRows]]:
        """For each pass, the places of its rows among *cells*, and the logits that are read of them. Cells that change
        nothing come first, without a pass."""
        rows = [self._row(cell) for cell in cells]
        unchanged = [i for i, row in enumerate(rows) if row.token == self._pairs.lengths[row.cell.prompt]]
        of_base = self._pairs.logits.rows
        for start in range(0, len(unchanged), BATCH_TOKENS):
            places = unchanged[start : start + BATCH_TOKENS]
            yield places, ReadRows.of([of_base[rows[i].cell.prompt] for i in places])
        left = set(range(len(rows))).difference(unchanged)
        order = sorted(left, key=lambda i: (rows[i].token, rows[i].layer, rows[i].cell.prompt))
        for token, same in groupby(order, key=lambda i: rows[i].token):
            places = list(same)
            step = self.rows_at_once(self._pairs.tokens.shape[1] - token)
            for start in range(0, len(places), step):
                self._check()
                batch = places[start : start + step]
                yield batch, self._run([rows[i] for i in batch], token)

    def rows_at_once(self, n_tokens: int) -> int:
        """How many rows of *n_tokens* run together."""
        flat, most = self._pairs.logits.flat, max(self._pairs.logits.counts)
        bytes_of_row = most * flat.shape[1] * flat.element_size()
        return max(min(BATCH_TOKENS // n_tokens, BATCH_LOGIT_BYTES // bytes_of_row), 1)

    def _row(self, cell: Cell) -> _Row:
        """*cell*, and where it begins."""
        prompt, n_layers = cell.prompt, self._decoder.config.n_layers
        layer, token = start_of(
            cell.interventions, self._pairs.differ_from[prompt], self._pairs.lengths[prompt], n_layers
        )
        return _Row(cell, first_layer_of(layer, (self._splices or {}).values()), token)

    def _run(self, rows: Sequence[_Row], token: int) -> ReadRows:
        """The logits that are read of *rows*, by ascending layers, which begin at *token*."""
        pairs = self._pairs
        prompts = torch.tensor([row.cell.prompt for row in rows], device=pairs.tokens.device)
        interventions = [
            RowIntervention(
                row=i,
                intervention=one,
                n_tokens=pairs.lengths[row.cell.prompt],
                tensors=self._tensors,
                vectors=self._vectors,
                runs=pairs.runs[row.cell.prompt],
                first_layer=row.layer,
                first_token=token,
            )
            for i, row in enumerate(rows)
            for one in row.cell.interventions
        ]
        starts = [self._entering(layer, list(same), prompts, token, interventions) for layer, same in _by_layer(rows)]
        (first, entering), *later = starts
        read = [[at - token for at in pairs.read_at[row.cell.prompt] if at >= token] for row in rows]
        at = rows_and_positions(read, pairs.tokens.device)
        taps = Taps(interventions=interventions, splices=self._splices, check=self._check)
        logits = self._decoder.forward(
            pairs.tokens[prompts, token:],
            taps,
            entering=(first, entering),
            late=[LateRow(layer, x) for layer, residuals in later for x in residuals],
            logits_at=at,
            past=Past(token, pairs.keys, pairs.values, prompts) if token else None,
        )
        # Where logits are changed, all of them are made.
        flat = require(logits)[*at] if taps.touches(_L.LOGITS, None) else require(logits)[:, 0]
        own, of_base = ReadRows(flat, tuple(map(len, read))), pairs.logits.rows
        before = [of_base[row.cell.prompt][: -len(later)] for row, later in zip(rows, read, strict=True)]
        return (
            ReadRows.of([torch.cat(of_row) for of_row in zip(before, own.rows, strict=True)])
            if any(map(len, before))
            else own
        )

    def _entering(
        self,
        layer: int,
        rows: Sequence[int],
        prompts: torch.Tensor,
        token: int,
        interventions: Sequence[RowIntervention],
    ) -> tuple[int, torch.Tensor]:
        """*layer*, and the residuals [n, T, d] that enter it in *rows*, changed there if they are to be."""
        x = self._pairs.residuals[layer][prompts[rows], token:]
        for one in interventions:
            if rows[0] <= one.row <= rows[-1] and one.intervention.at.site == site_entering(layer):
                replace(one, row=one.row - rows[0]).change(x)
        return layer, x


def _by_layer(rows: Sequence[_Row]) -> Iterator[tuple[int, Iterator[int]]]:
    """The places of *rows* that begin at each layer."""
    return groupby(range(len(rows)), key=lambda i: rows[i].layer)


def start_of(interventions: Sequence[Intervention], differ_from: int, length: int, n_layers: int) -> tuple[int, int]:
    """The first layer and the first token that a changed run has to compute.

    Args:
        interventions: the changes.
        differ_from: the first token at which the pair's prompts differ.
        length: tokens of the prompts: the first token, if nothing changes.
        n_layers: layers of the model: the first layer, if none has to run.
    """
    layer = min((_first_layer(one, n_layers) for one in interventions), default=n_layers)
    copies = all(isinstance(one.action, CopyFromRun) and one.action.run == SOURCE for one in interventions)
    least = differ_from if copies else 0
    return layer, min((_first_token(one, least, length) for one in interventions), default=length)


def first_difference(base: Sequence[int], other: Sequence[int]) -> int:
    """The first token at which two prompts differ; their length if they do not."""
    return next((t for t, (a, b) in enumerate(zip(base, other, strict=True)) if a != b), len(base))


def _first_layer(change: Intervention, n_layers: int) -> int:
    """The first layer that has to run for *change*; the number of layers if none has."""
    location, layer = change.at.site
    if layer is None:
        return n_layers if location.facts.is_after_layers else 0
    return layer + 1 if location is _L.RESID_POST_MLP else layer


def _first_token(change: Intervention, least: int, length: int) -> int:
    """The first token from *least* on that *change* selects; *length* if there is none."""
    axis: AxisSelection = change.at.all_axes[0]
    match axis:
        case int():
            return axis if axis >= least else length
        case PositionRange():
            return max(axis.start, least) if axis.stop > least else length
        case PositionList():
            return min((one for one in axis.positions if one >= least), default=length)
    return least


@dataclass(slots=True)
class MeanOfRuns:
    """The mean of values over prompts, by position over those that are long enough, or over all positions too."""

    by_position: bool
    """Whether it is by position."""
    _sums: dict[Site, torch.Tensor] = field(default_factory=dict)
    _counts: torch.Tensor | None = None

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        decoder: Decoder,
        sites: Iterable[Site],
        *,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Run *prompts*, token ids, as one batch, and add what they have at *sites*; no prompt is longer than one that
        was added before."""
        tokens, last = padded(prompts, decoder)
        taps = Taps(values=sites, splices=splices, check=check)
        decoder.forward(tokens, taps, stop_after_layer=decoder.config.n_layers - 1)
        real = real_tokens(last, tokens.shape[1])
        counts = real.sum(dim=0) if self.by_position else real.sum().reshape(1)
        self._counts = counts if self._counts is None else _plus(self._counts, counts)
        for site, x in taps.values.items():
            total = zero_at_pads(x, real).sum(dim=0 if self.by_position else (0, 1), dtype=torch.float64)
            total = total if self.by_position else total.unsqueeze(0)
            self._sums[site] = _plus(self._sums[site], total) if site in self._sums else total

    def mean(self, dtype: torch.dtype) -> Recorded:
        """The mean at each site, [T, ...] of the longest prompt, or [1, ...] over positions."""
        counts = require(self._counts)
        return {site: (x / counts.view(-1, *(1,) * (x.dim() - 1))).to(dtype) for site, x in self._sums.items()}


def _plus(longer: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of two tensors, of which the first has at least as many entries along each axis."""
    found = longer.clone()
    found[tuple(slice(size) for size in other.shape)] += other
    return found
