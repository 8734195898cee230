"""The largest or smallest entries of tensors too large to sort: exact, at about the cost of reading them once.

`topk` compares entry by entry, while the maximum of a block is found at memory speed. The k largest entries are in the
k blocks with the largest maxima, so only those blocks are compared entry by entry.
"""

from __future__ import annotations

import torch

_BLOCK = 64
_WORTH_BLOCKS = 4
"""Blocks per selected entry from which on finding the blocks first is faster."""


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
