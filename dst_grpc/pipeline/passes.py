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
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dst_grpc.domain.results import RunStatistics
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.interventions import Beside, RowIntervention
from dst_grpc.engine.late_rows import LateRow
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import Internal, require
from dst_grpc.pipeline.directions import vector_of, weight_rows
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
class Start:
    """The layer that a row begins at, because it does nothing before that another run does not do too."""

    layer: int
    """The first layer that runs for it, above 0; the number of layers if none does."""
    base: int | torch.Tensor
    """The other run: its number among the rows of the batch, where it comes before this one and begins no later; or
    the residual [T, d] that enters the layer in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One run of a batch, and what to record of it."""

    run: Run
    """What runs."""
    values: frozenset[Site]
    """Sites whose value to record."""
    gradients: frozenset[Site] = frozenset()
    """Sites whose gradient to record."""
    sources: Mapping[str, Mapping[Site, torch.Tensor] | int] = field(default_factory=dict)
    """The runs that it reads, by the names that its interventions give them: what they recorded, or their number among
    the rows of the same batch, where they come before it."""
    start: Start | None = None
    """Where it begins; None = at the embedding of its tokens."""

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.run.token_ids)

    @property
    def first_layer(self) -> int:
        """The layer that it begins at."""
        return 0 if self.start is None else self.start.layer

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
        rows: the runs; those that others read, or begin with, come before them.
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
        interventions=_interventions(rows, decoder, sets),
        splices=splices,
        propagation=propagation,
        check=check,
    )
    places = _places(rows)
    batch = _Entering.of(rows, places, decoder)
    stops = [row.stop_after_layer for row in rows]
    stop = None if None in stops else max(s for s in stops if s is not None)
    try:
        logits = decoder.forward(
            batch.tokens, taps, entering=batch.entering, late=batch.late, logits_at=batch.last, stop_after_layer=stop
        )
        with torch.set_grad_enabled(any(row.gradients for row in rows)):
            last_logits = None if logits is None else _last(logits, batch.last)
            forwards = [
                _Pass(place, row.n_tokens, taps, last_logits, decoder, sets)
                for place, row in zip(places, rows, strict=True)
            ]
            scalars = [_scalars(row.run, forward) for row, forward in zip(rows, forwards, strict=True)]
        reported = [[scalars[i][origin].item() for origin in row.run.origins] for i, row in enumerate(rows)]
        passes = list(_gradients(rows, taps, scalars))
    finally:
        taps.attached.clear()
    found = _found_not_finite(rows, places, taps, reported, passes, decoder, sets)
    statistics = RunStatistics(
        forward_passes=1, backward_passes=len(passes), pass_duration=time.perf_counter() - started
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
        )
        for i, (place, row) in enumerate(zip(places, rows, strict=True))
    ]
    return Batch(len(rows), statistics), recordings


def _n_passes(row: Row) -> int:
    """How many gradient passes a row has."""
    return len(row.run.passes) if row.gradients else 0


def _places(rows: Sequence[Row]) -> list[int]:
    """Where each row is in the tensors of the batch: those that begin at later layers come last."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].first_layer)
    return [place for _, place in sorted(zip(order, range(len(rows)), strict=True))]


def _interventions(
    rows: Sequence[Row], decoder: Decoder, sets: Mapping[str, AutoencoderSet]
) -> Iterator[RowIntervention]:
    """The interventions of every row, forward and in each of its gradient passes."""
    tensors: dict[RequestTensor, torch.Tensor] = {}
    wide = torch.promote_types(decoder.dtype, torch.float32)
    weights = dict.fromkeys(row for each in rows for row in weight_rows(each.run.interventions))
    vectors = {row: vector_of(row, decoder, sets).to(decoder.device, wide) for row in weights}
    places = _places(rows)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Entering:
    """What the rows of a batch begin with, padded on the right."""

    tokens: torch.Tensor
    """Token ids [b, T] of the rows that begin at the embedding."""
    entering: tuple[int, torch.Tensor] | None
    """The first layer, and the residuals [b, T, d] that enter it, if no row begins at the embedding."""
    late: tuple[LateRow, ...]
    """The rows that begin later."""
    last: torch.Tensor
    """The position [b] of each prompt's own last token."""

    @classmethod
    def of(cls, rows: Sequence[Row], places: Sequence[int], decoder: Decoder) -> _Entering:
        """What *rows* begin with, which are at *places*."""
        arranged = [row for _, row in sorted(zip(places, rows, strict=True), key=itemgetter(0))]
        longest = max(row.n_tokens for row in rows)
        whole = [row for row in arranged if row.start is None]
        tokens = torch.zeros(len(whole), longest, dtype=torch.long)
        for i, row in enumerate(whole):
            tokens[i, : row.n_tokens] = torch.tensor(row.run.token_ids)
        late = [
            LateRow(
                layer=row.start.layer,
                base=places[row.start.base] if isinstance(row.start.base, int) else _padded(row.start.base, longest),
            )
            for row in arranged
            if row.start is not None
        ]
        entering = None
        if not whole:
            first = late[0].layer
            bases = [one.base for one in late if one.layer == first and isinstance(one.base, torch.Tensor)]
            entering, late = (first, torch.stack(bases)), late[len(bases) :]
        last = torch.tensor([row.n_tokens for row in arranged]) - 1
        return cls(tokens.to(decoder.device), entering, tuple(late), last.to(decoder.device))


def _padded(residual: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """*residual* [T, d] with zeros after its last token."""
    return functional.pad(residual, (0, 0, 0, n_tokens - len(residual)))


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
            changed = _watched(_with_sources(rows, i), taps, decoder, sets)
            plain = _watched([Row(replace(row.run, interventions=()), row.values)], taps, decoder, sets)
            found[i] = not_finite(changed, plain, decoder)
        elif decoder.dtype is torch.float16:  # whose range is so small that gradients leave it alone
            for one in passes[: _n_passes(row)]:
                gradient = gradient_not_finite(_cut(row.gradients, one, place, row.n_tokens), decoder)
                if gradient is not None:
                    found.setdefault(i, gradient)
    return found


def _with_sources(rows: Sequence[Row], i: int) -> list[Row]:
    """The row *i*, after those of the batch that it reads, and that these read, all from the embedding on."""
    needed, left = {i}, [i]
    while left:
        read = {source for source in rows[left.pop()].sources.values() if isinstance(source, int)}
        left += read - needed
        needed |= read
    numbers = {old: new for new, old in enumerate(sorted(needed))}
    return [
        replace(
            rows[old],
            start=None,
            sources={
                name: numbers[source] if isinstance(source, int) else source
                for name, source in rows[old].sources.items()
            },
        )
        for old in numbers
    ]


def _watched(rows: Sequence[Row], taps: Taps, decoder: Decoder, sets: Mapping[str, AutoencoderSet]) -> Watch:
    """The forward pass of the last of *rows*, watched, beside those that it reads; the same happens as in *taps*."""
    watch = Watch(
        interventions=_interventions(rows, decoder, sets),
        splices=taps.splices,
        propagation=taps.propagation,
        check=taps.check,
    )
    batch = _Entering.of(rows, _places(rows), decoder)
    return watched(watch, batch.tokens, batch.last, decoder, stop_after_layer=rows[-1].stop_after_layer)


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
