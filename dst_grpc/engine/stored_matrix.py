"""Matrices that stay in their files: rows are read when they are needed, and never the whole at once.

They are read through a descriptor that is held open rather than mapped: a mapping of a file that is truncated kills the
process, and one of a file that is written to changes unnoticed. Here either is an error that names the file. The
operating system caches what is read often, as it would for a mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.safetensors_file import TORCH_TYPES_BY_NAME
from dst_grpc.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.files import OpenFile
    from dst_grpc.engine.safetensors_file import SafetensorsFile, TensorHeader

_BLOCK_BYTES = 1 << 25
"""Bytes of a file that are read at once: enough that a product with a block is not slowed by many small ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredMatrix:
    """A matrix [R, C] in a safetensors file."""

    file: SafetensorsFile
    """The file; it should be held open."""
    name: str
    """Name of the tensor, of any shape with R C elements."""
    n_columns: int
    """C."""
    is_swapped: bool = False
    """Whether it is stored transposed, as [C, R]."""
    block_bytes: int = _BLOCK_BYTES
    """Bytes of the file that are read at once."""

    @property
    def header(self) -> TensorHeader:
        """Its header."""
        return self.file.tensors[self.name]

    @property
    def n_bytes(self) -> int:
        """Bytes of the file that it takes."""
        return self.header.n_bytes

    @property
    def n_rows(self) -> int:
        """R."""
        return self.n_bytes // (self._element_bytes * self.n_columns)

    @property
    def _element_bytes(self) -> int:
        return self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return TORCH_TYPES_BY_NAME[self.header.element_type]

    def rows(self, indices: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """The rows at *indices* [n], in their order, as float32 [n, C] on *device*.

        Of a transposed matrix, every block that has one of them is read.

        Raises:
            DataLoss: if one of their values is NaN or infinite; (DIGEST_MISMATCH) if the file was written to.
        """
        if not len(indices):
            return torch.zeros(0, self.n_columns, device=device)
        wanted, inverse = torch.unique(indices.cpu(), return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= self.n_rows:
            raise Internal(f"{self.name} has no row {int(wanted[-1])}: it has {self.n_rows}")
        found = self._columns_of_file(wanted) if self.is_swapped else self._rows_of_file(wanted.numpy())
        return self._checked(found, device)[inverse.to(device)]

    def blocks(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order, a few MiB at a time: the index of the first, and float32 [n, C] on *device*.

        Raises:
            DataLoss: as `rows` does.
        """
        for begin, end in self._ranges():
            with self.file.file.opened() as file:
                block = self._block(file, begin, end)
            yield begin, self._checked(block, device)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        at_once = max(1, self.block_bytes // (self._element_bytes * self.n_columns))
        for begin in range(0, self.n_rows, at_once):
            yield begin, min(begin + at_once, self.n_rows)

    def _block(self, file: OpenFile, begin: int, end: int) -> torch.Tensor:
        """The rows from *begin* to *end*, as they are stored."""
        if not self.is_swapped:
            return self._read(file, [(begin, end)], self.n_columns).view(end - begin, self.n_columns)
        spans = [(column * self.n_rows + begin, column * self.n_rows + end) for column in range(self.n_columns)]
        return self._read(file, spans, 1).view(self.n_columns, end - begin).t()

    def _rows_of_file(self, wanted: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
        """The rows *wanted*, in ascending order; neighbours are read together."""
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        spans = [(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, breaks)]
        with self.file.file.opened() as file:
            return self._read(file, spans, self.n_columns).view(len(wanted), self.n_columns)

    def _columns_of_file(self, wanted: torch.Tensor) -> torch.Tensor:
        """The rows *wanted*, in ascending order, of a matrix that is stored transposed."""
        parts = []
        with self.file.file.opened() as file:
            for begin, end in self._ranges():
                here = wanted[(wanted >= begin) & (wanted < end)] - begin
                if len(here):
                    parts.append(self._block(file, begin, end)[here])
        return torch.cat(parts)

    def _read(self, file: OpenFile, spans: list[tuple[int, int]], width: int) -> torch.Tensor:
        """The values of *spans*, each from a first to a last unit of *width* elements, one after the other."""
        unit = width * self._element_bytes
        raw = torch.empty(unit * sum(end - begin for begin, end in spans), dtype=torch.uint8)
        target, done = raw.numpy().data, 0
        for begin, end in spans:
            n_bytes = (end - begin) * unit
            file.read_into(self.header.begin + begin * unit, target[done : done + n_bytes])
            done += n_bytes
        return raw.view(self._dtype)

    def _checked(self, values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        found = values.to(device).float()
        if not is_finite(found):
            raise corrupt(self.file.path, f"tensor {self.name!r} has values that are NaN or infinite as float32")
        return found
