"""Rows of a batch that begin at a layer: until then they would be what another row is, or what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class LateRow:
    """A row that joins the batch, as its last, before a layer."""

    layer: int
    """The first layer that runs for it; the number of layers if none does."""
    base: int | torch.Tensor
    """What enters that layer: the residual of an earlier row, by its number, or a residual [T, d]."""


def joined(x: torch.Tensor, layer: int, late: Sequence[LateRow]) -> torch.Tensor:
    """The residuals *x* [b, T, d] that enter *layer*, with those of the rows of *late* that begin there. No gradient
    flows from one row to another."""
    new = [x[one.base].detach() if isinstance(one.base, int) else one.base for one in late if one.layer == layer]
    return torch.cat([x, torch.stack(new)]) if new else x
