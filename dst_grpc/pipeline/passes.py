"""One batch: the forward pass of several runs of one model, and the gradient passes after it.

Prompts are padded on the right; every row keeps its own interventions and origins. Gradient passes of the same number
run together: the sum of the rows' scalars is differentiated once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.results import RunStatistics
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.interventions import RowIntervention
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import Internal, require
from dst_grpc.pipeline.not_finite import Watch, gradient_not_finite, not_finite, watched
from dst_grpc.pipeline.plan import last_layer_of
from dst_grpc.pipeline.recording import Recording
from dst_grpc.scalars.explained_model import AutoencoderSet, ExplainedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.domain.results import NotFinite
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.runs import Run
    from dst_grpc.scalars.origins import Origin
    from dst_grpc.scalars.topology import Topology


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One run of a batch, and what to record of it."""

    run: Run
    """What runs."""
    values: frozenset[Site]
    """Sites whose value to record."""
    gradients: frozenset[Site] = frozenset()
    """Sites whose gradient to record."""
    sources: Mapping[str, Mapping[Site, torch.Tensor]] = field(default_factory=dict)
    """What the runs that it reads recorded, by the names that its interventions give them."""

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.run.token_ids)

    @property
    def sites(self) -> frozenset[Site]:
        """Sites whose value is needed: to be recorded, or for an origin."""
        return self.values | self.run.values

    @property
    def attached(self) -> frozenset[Site]:
        """Sites that must be in the graph: those of recorded gradients and, if there are any, those of the origins."""
        return self.gradients | self.run.attached if self.gradients else self.gradients

    @property
    def stop_after_layer(self) -> int | None:
        """Last layer that has to run; None if logits are needed."""
        return None if self.run.needs_logits else last_layer_of(self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The cost of runs that ran together."""

    size: int
    """Number of runs."""
    statistics: RunStatistics
    """Passes and time of all together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """Results of the forward pass of one row, for its origins."""

    row: int
    n_tokens: int
    taps: Taps
    last_logits: torch.Tensor | None
    """Of every row's own last token, [b, V]."""
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]

    def logits(self) -> torch.Tensor:
        if self.last_logits is None:
            raise Internal("an origin reads logits that it did not say it needs")
        return self.last_logits[self.row]

    def value(self, site: Site) -> torch.Tensor:
        return _own(site, self.taps.values[site], self.row, self.n_tokens)

    def attached(self, site: Site) -> torch.Tensor:
        return _own(site, self.taps.attached.get(site, self.taps.values[site]), self.row, self.n_tokens)

    def model(self, topology: Topology, autoencoders: Sequence[str]) -> ExplainedModel:
        return ExplainedModel(self.decoder, topology, tuple(self.sets[name] for name in autoencoders))


def run_batch(
    rows: Sequence[Row],
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
    *,
    splices: Mapping[Site, Autoencoder],
    propagation: Propagation = PLAIN,
    check: Check = never_cancelled,
) -> tuple[Batch, list[Recording]]:
    """Run *rows* together.

    Args:
        rows: the runs.
        decoder: the model.
        sets: the autoencoders that origins name.
        splices: the autoencoders to splice in, by the site that each reads.
        propagation: the propagation rule of gradients.
        check: raises Cancelled to end the batch.

    Raises:
        Cancelled: what *check* raises.
    """
    started = time.perf_counter()
    taps = Taps(
        values=frozenset().union(*(row.sites for row in rows)),
        gradients=frozenset().union(*(row.attached for row in rows)),
        interventions=_interventions(rows, decoder),
        splices=splices,
        propagation=propagation,
        check=check,
    )
    tokens, last = _padded(rows, decoder)
    stops = [row.stop_after_layer for row in rows]
    stop = None if None in stops else max(s for s in stops if s is not None)
    try:
        logits = decoder.forward(tokens, taps, logits_at=last, stop_after_layer=stop)
        with torch.set_grad_enabled(any(row.gradients for row in rows)):
            last_logits = None if logits is None else _last(logits, last)
            forwards = [_Pass(i, row.n_tokens, taps, last_logits, decoder, sets) for i, row in enumerate(rows)]
            scalars = [_scalars(row.run, forward) for row, forward in zip(rows, forwards, strict=True)]
        reported = [[scalars[i][origin].item() for origin in row.run.origins] for i, row in enumerate(rows)]
        passes = list(_gradients(rows, taps, scalars))
    finally:
        taps.attached.clear()
    found = _found_not_finite(rows, taps, reported, passes, decoder)
    statistics = RunStatistics(
        forward_passes=1, backward_passes=len(passes), pass_duration=time.perf_counter() - started
    )
    recordings = [
        Recording.of(
            _cut(row.values, taps.values, i, row.n_tokens),
            [_cut(row.gradients, found, i, row.n_tokens) for found in passes[: _n_passes(row)]],
            [one.weight for one in row.run.passes[: _n_passes(row)]],
            n_tokens=row.n_tokens,
            gradient_sites=row.gradients,
            scalars=reported[i],
            not_finite=found.get(i),
        )
        for i, row in enumerate(rows)
    ]
    return Batch(len(rows), statistics), recordings


def _n_passes(row: Row) -> int:
    """How many gradient passes a row has."""
    return len(row.run.passes) if row.gradients else 0


def _interventions(rows: Sequence[Row], decoder: Decoder) -> Iterator[RowIntervention]:
    """The interventions of every row, forward and in each of its gradient passes."""
    tensors: dict[RequestTensor, torch.Tensor] = {}
    for i, row in enumerate(rows):
        add = partial(RowIntervention, row=i, n_tokens=row.n_tokens, tensors=tensors, runs=row.sources)
        for one in row.run.interventions:
            _load(one, tensors, decoder)
            yield add(intervention=one)
        for number, one_pass in enumerate(row.run.passes[: _n_passes(row)]):
            for one in one_pass.interventions:
                _load(one, tensors, decoder)
                yield add(intervention=one, gradient_pass=number)


def _load(intervention: Intervention, tensors: dict[RequestTensor, torch.Tensor], decoder: Decoder) -> None:
    """Move the tensors that *intervention* reads to the device, each once, as float32 or wider."""
    wide = torch.promote_types(decoder.dtype, torch.float32)
    for tensor in intervention.action.tensors.values():
        if tensor not in tensors:
            if tensor.tensor is None:
                raise Internal("a tensor's numbers were not looked up before it was used")
            tensors[tensor] = torch.tensor(tensor.tensor, device=decoder.device, dtype=wide)


def _padded(rows: Sequence[Row], decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [b, T], padded on the right with 0, and the position [b] of each prompt's own last token."""
    lengths = [row.n_tokens for row in rows]
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : lengths[i]] = torch.tensor(row.run.token_ids)
    last = torch.tensor(lengths) - 1
    return tokens.to(decoder.device), last.to(decoder.device)


def _last(logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Of *logits* [b, T, V], or [b, 1, V] if there are no others, those at position *last* [b] of each row, [b, V].

    All rows at once: one by one, each would have a gradient of the size of all logits.
    """
    return logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(logits), device=logits.device), last]


def _scalars(run: Run, forward: _Pass) -> dict[Origin, torch.Tensor]:
    return {origin: origin.scalar(forward) for origin in run.all_origins}


def _gradients(
    rows: Sequence[Row], taps: Taps, scalars: Sequence[Mapping[Origin, torch.Tensor]]
) -> Iterator[Mapping[Site, torch.Tensor]]:
    """Gradients [b, ...] of each gradient pass, of all rows that have that many."""
    count = max(map(_n_passes, rows))
    for number in range(count):
        started_from = [
            scalars[i][row.run.passes[number].origin] for i, row in enumerate(rows) if number < _n_passes(row)
        ]
        total = torch.stack(started_from).sum()
        yield taps.gradients(total, gradient_pass=number, keeps_graph=number + 1 < count)


def _found_not_finite(
    rows: Sequence[Row],
    taps: Taps,
    reported: Sequence[Sequence[float]],
    passes: Sequence[Mapping[Site, torch.Tensor]],
    decoder: Decoder,
) -> dict[int, NotFinite]:
    """What is said of the rows that have values that are not finite."""
    found: dict[int, NotFinite] = {}
    residual = require(taps.last_residual)
    is_clean = is_finite(residual)
    for i, row in enumerate(rows):
        if not (is_clean or is_finite(residual[i, : row.n_tokens])) or not all(map(math.isfinite, reported[i])):
            changed, plain = (
                _watched(one, taps, decoder) for one in (row, replace(row, run=replace(row.run, interventions=())))
            )
            found[i] = not_finite(changed, plain, decoder)
        elif decoder.dtype is torch.float16:  # whose range is so small that gradients leave it alone
            for one in passes[: _n_passes(row)]:
                gradient = gradient_not_finite(_cut(row.gradients, one, i, row.n_tokens), decoder)
                if gradient is not None:
                    found.setdefault(i, gradient)
    return found


def _watched(row: Row, taps: Taps, decoder: Decoder) -> Watch:
    """The forward pass of one row by itself, watched, in which the same happens as in that of *taps*."""
    watch = Watch(
        interventions=_interventions([row], decoder),
        splices=taps.splices,
        propagation=taps.propagation,
        check=taps.check,
    )
    tokens, _ = _padded([row], decoder)
    return watched(watch, tokens, decoder, stop_after_layer=row.stop_after_layer)


def _cut(
    sites: Iterable[Site], found: Mapping[Site, torch.Tensor], row: int, n_tokens: int
) -> dict[Site, torch.Tensor]:
    """One row of the tensors *found* at *sites*."""
    return {site: _own(site, found[site], row, n_tokens) for site in sites if site in found}


def _own(site: Site, x: torch.Tensor, row: int, n_tokens: int) -> torch.Tensor:
    """One row of *x* [b, ...], without pads."""
    x = x[row]
    for axis, dimension in enumerate(site[0].dimensions):
        if dimension.is_sequence_token_dimension:
            x = x.narrow(axis, 0, n_tokens)
    return x
