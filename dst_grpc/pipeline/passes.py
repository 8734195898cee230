"""One batch: the forward pass of several runs of one model, and the gradient passes after it.

Prompts are padded on the right; every row keeps its own interventions and origins. Gradient passes of the same number
run together: the sum of the rows' scalars is differentiated once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.results import RunStatistics
from dst_grpc.domain.work import PassesDone
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.interventions import Beside, RowIntervention
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Taps, of_row
from dst_grpc.errors import Internal, require
from dst_grpc.pipeline.directions import vector_of, vectors_of
from dst_grpc.pipeline.not_finite import Watch, gradient_not_finite, not_finite, watched
from dst_grpc.pipeline.own_time import own_time
from dst_grpc.pipeline.recording import Recording
from dst_grpc.pipeline.rows import Entering, Row, places_of, with_sources
from dst_grpc.scalars.explained_model import AutoencoderSet, ExplainedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dst_grpc.domain.directions import Direction
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.domain.results import NotFinite
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.runs import Run
    from dst_grpc.scalars.origins import Origin
    from dst_grpc.scalars.topology import Topology


_L = ActivationLocationType


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The cost of runs that ran together."""

    size: int
    """Number of runs."""
    statistics: RunStatistics
    """Passes and time of all together."""
    done: PassesDone
    """The same, and how much of it was padding."""


@dataclass(frozen=True, slots=True, eq=False)
class _Logits:
    """Logits of the tokens of a batch that need them."""

    of_tokens: torch.Tensor | None
    """[n, V]: of the rows one after the other, each at its positions; None if there are none."""
    firsts: Sequence[int]
    """By number of the row, which of them is its first."""
    positions: Sequence[Sequence[int]]
    """By number of the row, its positions."""

    def of(self, row: int, positions: Sequence[int]) -> torch.Tensor:
        """Logits [n, V] of a row at *positions*."""
        if self.of_tokens is None:
            raise Internal("an origin reads logits that it did not say it needs")
        own = self.of_tokens[self.firsts[row] : self.firsts[row] + len(self.positions[row])]
        places = [self.positions[row].index(position) for position in positions]
        return own if len(places) == len(own) else own[places]


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """Results of the forward pass of one row, for its origins."""

    number: int
    """Of the row among the rows of the batch."""
    place: int
    """Where it is in the tensors of the batch."""
    row: Row
    taps: Taps
    all_logits: _Logits
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]

    @property
    def n_tokens(self) -> int:
        return self.row.n_tokens

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        found = self.all_logits.of(self.number, positions or (self.n_tokens - 1,))
        return found if positions else found[0]

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        found = self.row.references[run]
        return self.all_logits.of(found, [position])[0].detach() if isinstance(found, int) else found[position]

    def vector(self, direction: Direction) -> torch.Tensor:
        wide = torch.promote_types(self.decoder.dtype, torch.float32)
        if direction.vector is None:
            found = vector_of(direction.direction, self.decoder, self.sets)  # type: ignore[arg-type]  # of no runs
        else:
            found = torch.tensor(direction.vector.tensor)
        found = found.to(self.decoder.device, wide)
        return found / torch.linalg.vector_norm(found) if direction.normalize else found

    def value(self, site: Site) -> torch.Tensor:
        return of_row(site, self.taps.values[site], self.place, self.n_tokens)

    def attached(self, site: Site) -> torch.Tensor:
        return of_row(site, self.taps.attached.get(site, self.taps.values[site]), self.place, self.n_tokens)

    def model(self, topology: Topology, autoencoders: Sequence[str]) -> ExplainedModel:
        return ExplainedModel(self.decoder, topology, tuple(self.sets[name] for name in autoencoders))


def run_batch(
    rows: Sequence[Row],
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
    *,
    splices: Mapping[Site, Splice],
    propagation: Propagation = PLAIN,
    check: Check = never_cancelled,
) -> tuple[Batch, list[Recording]]:
    """Run *rows* together.

    Args:
        rows: the runs; those that others read, or begin with, come before them.
        decoder: the model.
        sets: the autoencoders that origins name.
        splices: the autoencoders to splice in, by the site that each reconstructs.
        propagation: the propagation rule of gradients.
        check: raises Cancelled to end the batch.

    Raises:
        Cancelled: what *check* raises.
    """
    started = own_time()
    taps = Taps(
        values=frozenset().union(*(row.sites for row in rows)),
        gradients=frozenset().union(*(row.attached for row in rows)),
        interventions=_interventions(rows, decoder, sets),
        splices=splices,
        propagation=propagation,
        check=check,
    )
    places = places_of(rows)
    batch = Entering.of(rows, places, decoder)
    positions = [row.logit_positions for row in rows]
    where = _tokens_at(places, positions, decoder.device)
    stops = [row.stop_after_layer for row in rows]
    stop = None if None in stops else max(s for s in stops if s is not None)
    try:
        logits = decoder.forward(
            batch.tokens, taps, entering=batch.entering, late=batch.late, logits_at=where, stop_after_layer=stop
        )
        with torch.set_grad_enabled(any(row.gradients for row in rows)):
            if logits is not None:
                # All at once: one by one, each would have a gradient of the size of all logits.
                logits = logits[where[0], where[1]] if taps.touches(_L.LOGITS, None) else logits[:, 0]
            firsts = list(accumulate(map(len, positions), initial=0))
            of_tokens = _Logits(logits, firsts, positions)
            forwards = [
                _Pass(i, place, row, taps, of_tokens, decoder, sets)
                for i, (place, row) in enumerate(zip(places, rows, strict=True))
            ]
            scalars = [_scalars(row.run, forward) for row, forward in zip(rows, forwards, strict=True)]
        reported = [[scalars[i][origin].item() for origin in row.run.origins] for i, row in enumerate(rows)]
        forward_ended = own_time()
        passes = list(_gradients(rows, taps, scalars))
    finally:
        taps.attached.clear()
    found = _found_not_finite(rows, places, taps, reported, passes, decoder, sets)
    ended = own_time()
    statistics = RunStatistics(forward_passes=1, backward_passes=len(passes), pass_duration=ended - started)
    n_tokens = [row.n_tokens for row in rows]
    done = PassesDone(
        n_prompts=len(rows),
        n_tokens=sum(n_tokens),
        n_padding=max(n_tokens) * len(rows) - sum(n_tokens),
        # What a GPU computes without gradients is over once it was looked at for what is not finite.
        forward_seconds=(forward_ended if passes else ended) - started,
        backward_seconds=ended - forward_ended if passes else None,
    )
    recordings = [
        Recording.of(
            _cut(row.values, taps.values, place, row.n_tokens),
            [_cut(row.gradients, found, place, row.n_tokens) for found in passes[: _n_passes(row)]],
            [one.weight for one in row.run.passes[: _n_passes(row)]],
            n_tokens=row.n_tokens,
            gradient_sites=row.gradients,
            scalars=reported[i],
            not_finite=found.get(i),
            logits={position: of_tokens.of(i, [position])[0].detach().clone() for position in row.logits},
        )
        for i, (place, row) in enumerate(zip(places, rows, strict=True))
    ]
    return Batch(len(rows), statistics, done), recordings


def _n_passes(row: Row) -> int:
    """How many gradient passes a row has."""
    return len(row.run.passes) if row.gradients else 0


def _interventions(
    rows: Sequence[Row], decoder: Decoder, sets: Mapping[str, AutoencoderSet]
) -> Iterator[RowIntervention]:
    """The interventions of every row, forward and in each of its gradient passes."""
    tensors: dict[RequestTensor, torch.Tensor] = {}
    vectors = vectors_of([one for row in rows for one in row.run.interventions], decoder, sets)
    places = places_of(rows)
    for place, row in zip(places, rows, strict=True):
        add = partial(
            RowIntervention,
            row=place,
            n_tokens=row.n_tokens,
            tensors=tensors,
            vectors=vectors,
            runs={
                name: Beside(places[source], rows[source].n_tokens) if isinstance(source, int) else source
                for name, source in row.sources.items()
            },
            first_layer=row.first_layer,
        )
        for one in row.run.interventions:
            load_tensors(one, tensors, decoder)
            yield add(intervention=one)
        for number, one_pass in enumerate(row.run.passes[: _n_passes(row)]):
            for one in one_pass.interventions:
                load_tensors(one, tensors, decoder)
                yield add(intervention=one, gradient_pass=number)


def load_tensors(intervention: Intervention, tensors: dict[RequestTensor, torch.Tensor], decoder: Decoder) -> None:
    """Move the tensors that *intervention* reads to the device, each once, as float32 or wider."""
    wide = torch.promote_types(decoder.dtype, torch.float32)
    for tensor in intervention.action.tensors.values():
        if tensor not in tensors:
            if tensor.tensor is None:
                raise Internal("a tensor's numbers were not looked up before it was used")
            tensors[tensor] = torch.tensor(tensor.tensor, device=decoder.device, dtype=wide)


def _tokens_at(places: Sequence[int], positions: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Rows and positions [2, n] in the tensors of the batch, of the *positions* of each row."""
    found = [(place, position) for place, own in zip(places, positions, strict=True) for position in own]
    return torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 2).T


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
    places: Sequence[int],
    taps: Taps,
    reported: Sequence[Sequence[float]],
    passes: Sequence[Mapping[Site, torch.Tensor]],
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
) -> dict[int, NotFinite]:
    """What is said of the rows that have values that are not finite."""
    found: dict[int, NotFinite] = {}
    residual = require(taps.last_residual)
    is_clean = is_finite(residual)
    for i, (place, row) in enumerate(zip(places, rows, strict=True)):
        if not (is_clean or is_finite(residual[place, : row.n_tokens])) or not all(map(math.isfinite, reported[i])):
            changed = _watched(with_sources(rows, i), taps, decoder, sets)
            plain = _watched([Row(replace(row.run, interventions=()), row.values)], taps, decoder, sets)
            found[i] = not_finite(changed, plain, decoder)
        elif decoder.dtype is torch.float16:  # whose range is so small that gradients leave it alone
            for one in passes[: _n_passes(row)]:
                gradient = gradient_not_finite(_cut(row.gradients, one, place, row.n_tokens), decoder)
                if gradient is not None:
                    found.setdefault(i, gradient)
    return found


def _watched(rows: Sequence[Row], taps: Taps, decoder: Decoder, sets: Mapping[str, AutoencoderSet]) -> Watch:
    """The forward pass of the last of *rows*, watched, beside those that it reads; the same happens as in *taps*."""
    watch = Watch(
        interventions=_interventions(rows, decoder, sets),
        splices=taps.splices,
        propagation=taps.propagation,
        check=taps.check,
    )
    batch = Entering.of(rows, places_of(rows), decoder)
    return watched(watch, batch.tokens, batch.last, decoder, stop_after_layer=rows[-1].stop_after_layer)


def _cut(
    sites: Iterable[Site], found: Mapping[Site, torch.Tensor], row: int, n_tokens: int
) -> dict[Site, torch.Tensor]:
    """One row of the tensors *found* at *sites*."""
    return {site: of_row(site, found[site], row, n_tokens) for site in sites if site in found}
