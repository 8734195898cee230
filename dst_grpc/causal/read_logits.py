"""The logits that metrics read of changed runs: at the last token of each prompt, or at several positions.

Shapes: n row of a pass, k position that is read of a row, m the sum of these over rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.pairs import SOURCE
from dst_grpc.scalars.origins import LastLogits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.scalars.origins import Origin

Positions = Sequence[int]
"""Positions of one prompt whose logits are read, ascending; the last token's is the last of them."""


def positions_read(metric: Origin, n_tokens: int) -> tuple[int, ...]:
    """The positions at which *metric*, of a prompt of *n_tokens*, reads logits of a run or of one that it diverges
    from, and the last token's."""
    of_reference = () if metric.reference is None else (metric.reference[1],)
    return tuple(sorted({*metric.positions, *of_reference, n_tokens - 1}))


def rows_and_positions(read: Sequence[Positions], device: torch.device) -> torch.Tensor:
    """The row and the position of everything that is *read* of some rows, [2, m]."""
    pairs = [(row, position) for row, positions in enumerate(read) for position in positions]
    return torch.tensor(pairs, device=device).t()


@dataclass(frozen=True, slots=True, eq=False)
class ReadRows:
    """The logits that are read of the rows of a pass."""

    flat: torch.Tensor
    """Logits [m, V], row by row, those of each in the order of its positions."""
    counts: tuple[int, ...]
    """How many positions are read of each row (k)."""

    @classmethod
    def of(cls, rows: Sequence[torch.Tensor]) -> ReadRows:
        """Of the logits [k, V] of each row."""
        return cls(torch.cat(list(rows)), tuple(map(len, rows)))

    @property
    def rows(self) -> tuple[torch.Tensor, ...]:
        """The logits [k, V] of each row."""
        return self.flat.split(self.counts)

    @property
    def last(self) -> torch.Tensor:
        """Logits [n, V] at the last token of each row's prompt."""
        if len(self.flat) == len(self.counts):
            return self.flat
        return self.flat[torch.tensor(self.counts).cumsum(0) - 1]


@dataclass(frozen=True, slots=True, eq=False)
class ReadLogits(LastLogits):
    """What a metric reads of one run: logits at some positions, and those of the run that it diverges from."""

    read: torch.Tensor = field(kw_only=True)
    """Logits [k, V]."""
    at: Positions = field(kw_only=True)
    """Their positions."""
    others: Mapping[str, torch.Tensor] = field(kw_only=True)
    """Logits [k, V] of other runs, by name, at the same positions."""

    @classmethod
    def of(cls, read: torch.Tensor, at: Positions, others: Mapping[str, torch.Tensor]) -> ReadLogits:
        """Of *read* [k, V], the last of which are those of the last token."""
        return cls(read[-1], read=read, at=at, others=others)

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        """Logits [len(positions), V] at *positions*; without, those of the last token, [V]."""
        return self.read[[self.at.index(position) for position in positions]] if positions else self.last

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        """Logits [V] of another run at a position."""
        return self.others[run][self.at.index(position)]


def diverges_from_source(metric: Origin) -> bool:
    """Whether *metric* is a divergence from the run that values are taken from, rather than from the unchanged one."""
    return metric.reference is not None and metric.reference[0] == SOURCE
