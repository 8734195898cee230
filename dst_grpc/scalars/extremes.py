"""The largest or smallest entries of rows too large to sort: exact, at about the cost of reading them once.

`topk` compares entry by entry, while the maximum of a block is found at memory speed. The k largest
entries are in the k blocks with the largest maxima, so only those blocks are compared entry by entry; and the k-th
largest maximum of the blocks seen so far is a bound below which no further entry matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 64
_WORTH_BLOCKS = 4
"""Blocks per selected entry from which on finding their maxima first is faster."""


class Columns(NamedTuple):
    """Some columns of rows, next to one another."""

    start: int
    stop: int
    block: int
    """Columns of a block; it divides their number."""


def in_columns(n: int, k: int, at_once: int) -> Iterator[Columns]:
    """All *n* columns in steps that `RunningExtremes` can see: the first in blocks so small that there are enough.

    Args:
        n: columns in all.
        k: entries to select.
        at_once: columns of a step; more if *k* needs them.
    """
    enough = _WORTH_BLOCKS * k
    step = max(at_once // _BLOCK, -(-enough // _BLOCK)) * _BLOCK
    whole = n // _BLOCK * _BLOCK
    whole = whole if whole >= enough else 0
    block = _BLOCK
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        while start == 0 and stop < enough * block:
            block //= 2
        yield Columns(start, stop, block)
        block = _BLOCK
    if whole < n:
        yield Columns(whole, n, 1)


class RunningExtremes:
    """The k largest or smallest entries of rows of which some columns are seen at a time."""

    def __init__(self, k: int, *, largest: bool) -> None:
        """Select *k* entries of each row, at one end."""
        self._k, self._largest = k, largest
        self._bounds: list[torch.Tensor] = []
        self._n_new = 0
        """Bounds that the threshold does not take into account yet."""
        self._threshold = torch.empty(0)
        """No entry below [N, 1] is among the k best. Signs here and below are such that the largest are the best."""
        self._found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """Values, rows and columns of entries that may be among them."""

    def see(self, x: torch.Tensor, columns: Columns) -> None:
        """Take *x* [N, columns] into account, without NaN; the first columns seen are at least k blocks."""
        blocks = x.unflatten(1, (-1, columns.block))
        bounds = blocks.amax(dim=2) if self._largest else -blocks.amin(dim=2)
        self._bounds.append(bounds)
        self._n_new += bounds.shape[1]
        if self._n_new >= _WORTH_BLOCKS * self._k or len(self._bounds) == 1:
            best = torch.cat(self._bounds, dim=1).topk(self._k, dim=1).values
            self._bounds, self._n_new, self._threshold = [best], 0, best[:, -1:]
        rows, chosen = (bounds >= self._threshold).nonzero(as_tuple=True)
        entries = blocks[rows, chosen]
        entries = entries if self._largest else -entries
        pairs, offsets = (entries >= self._threshold[rows]).nonzero(as_tuple=True)
        places = columns.start + chosen[pairs] * columns.block + offsets
        self._found.append((entries[pairs, offsets], rows[pairs], places))

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, best first, and their columns, both [N, k]; to be asked for once.

        Which of equal entries are taken is not determined."""
        values, rows, columns = map(torch.cat, zip(*self._found, strict=True))
        self._found.clear()
        left = values >= self._threshold[rows, 0]
        values, rows, columns = values[left], rows[left], columns[left]
        order = values.argsort(descending=True)
        order = order[rows[order].argsort(stable=True)]
        counts = rows.bincount(minlength=len(self._threshold))
        first = counts.cumsum(0) - counts
        chosen = order[first.unsqueeze(1) + torch.arange(self._k, device=order.device)]
        return values[chosen] if self._largest else -values[chosen], columns[chosen]


def extremes(x: torch.Tensor, k: int, *, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The *k* largest or smallest entries of each row, or all of them if there are fewer.

    Args:
        x: rows [N, n], without NaN.
        k: entries to select.
        largest: which end.

    Returns:
        Values, best first, and their positions in the row, both [N, min(k, n)]. Which of equal entries are taken is
        not determined.
    """
    n_rows, n = x.shape
    k = min(k, n)
    n_blocks = n // _BLOCK
    if n_blocks < _WORTH_BLOCKS * k:
        return x.topk(k, dim=1, largest=largest)
    whole = n_blocks * _BLOCK
    blocks = x[:, :whole].unflatten(1, (n_blocks, _BLOCK))
    bounds = blocks.amax(dim=2) if largest else blocks.amin(dim=2)
    chosen = bounds.topk(k, dim=1, largest=largest).indices
    candidates = blocks.gather(1, chosen.unsqueeze(2).expand(-1, -1, _BLOCK)).flatten(1)
    positions = (chosen.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, device=x.device)).flatten(1)
    if whole < n:
        candidates = torch.cat((candidates, x[:, whole:]), dim=1)
        rest = torch.arange(whole, n, device=x.device).expand(n_rows, -1)
        positions = torch.cat((positions, rest), dim=1)
    values, places = candidates.topk(k, dim=1, largest=largest)
    return values, positions.gather(1, places)
