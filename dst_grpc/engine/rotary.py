"""Rotary positions: each pair of channels of queries and keys is rotated by an angle that grows with the position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dst_grpc.engine.decoder_config import Rotary

_MIN_POSITIONS = 64


class Rotation:
    """Rotates by a `Rotary`; one is shared by all layers that have an equal one.

    Sines and cosines are kept for as many positions as the longest prompt so far needed, and at most twice as many:
    tables for a whole context window of 131,072 tokens would take more memory than a small model. They are replaced as
    a whole, so that concurrent threads at worst compute the same tables twice.
    """

    def __init__(self, rotary: Rotary, device: torch.device, dtype: torch.dtype) -> None:
        """For vectors of *dtype* on *device*."""
        # As in the reference implementations, angles are float32 and only sines and cosines have the model's type.
        wide = torch.promote_types(dtype, torch.float32)
        self._frequencies = torch.tensor(rotary.frequencies, dtype=wide, device=device)
        self._scale, self._dtype, self._n_pairs = rotary.scale, dtype, len(rotary.frequencies)
        self._tables = self._make_tables(0)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """*x* [..., T, H, c] with each vector rotated by its position times each frequency.

        *positions* are [T]; None means 0, 1, 2, ...
        """
        n, half = x.shape[-3] if positions is None else int(positions.max()) + 1, self._n_pairs
        if n > len(self._tables[0]):
            self._tables = self._make_tables(max(2 * n, _MIN_POSITIONS))
        cosines, sines = (table[:n] if positions is None else table[positions] for table in self._tables)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cosines - second * sines, second * cosines + first * sines, rest), dim=-1)

    def _make_tables(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [n, 1, pairs]."""
        positions = torch.arange(n, device=self._frequencies.device).to(self._frequencies.dtype)
        angles = positions[:, None, None] * self._frequencies
        return (angles.cos() * self._scale).to(self._dtype), (angles.sin() * self._scale).to(self._dtype)
