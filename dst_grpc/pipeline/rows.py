"""Rows of a batch: runs, what to record of them, and where they begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dst_grpc.engine.late_rows import LateRow
from dst_grpc.pipeline.plan import last_layer_of

if TYPE_CHECKING:
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.runs import Run


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
    references: Mapping[str, Mapping[int, torch.Tensor] | int] = field(default_factory=dict)
    """The runs whose logits its origins read, by name: logits [V] by position, or their number among the rows of the
    same batch, where they come before it."""
    logits: frozenset[int] = frozenset()
    """Positions whose logits other runs read."""

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
        return None if self.run.needs_logits or self.logits else last_layer_of(self.sites)

    @property
    def logit_positions(self) -> list[int]:
        """Positions whose logits are needed, ascending."""
        return sorted(self.run.logit_positions | self.logits)


@dataclass(frozen=True, slots=True, eq=False)
class Entering:
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
    def of(cls, rows: Sequence[Row], places: Sequence[int], decoder: Decoder) -> Entering:
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


def places_of(rows: Sequence[Row]) -> list[int]:
    """Where each row is in the tensors of the batch: those that begin at later layers come last."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].first_layer)
    return [place for _, place in sorted(zip(order, range(len(rows)), strict=True))]


def with_sources(rows: Sequence[Row], i: int) -> list[Row]:
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
