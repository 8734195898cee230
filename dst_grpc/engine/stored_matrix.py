"""Matrices that stay in their files: rows are read when they are needed, and never the whole at once.

They are read through a descriptor that is held open rather than mapped: a mapping of a file that is truncated kills the
process, and one of a file that is written to changes unnoticed. Here either is an error that names the file. The
operating system caches what is read often, as it would for a mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

_BLOCK_BYTES = 1 << 23
"""Bytes of a file that are read at once: few enough that they are in the processor's cache when they are multiplied."""


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
        found = self._columns_of_file(wanted) if self.is_swapped else self._rows_of_file(wanted)
        found = self.check(found.to(device).float())
        # Usually features are asked for in order, and each once.
        return found if torch.equal(wanted, indices.cpu()) else found[inverse.to(device)]

    def blocks(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order, a few MiB at a time: the index of the first, and float32 [n, C] on *device*.

        A block may be overwritten by the next. Its values are not checked: `check` does, and what is computed from a
        value that is not finite is not finite either.

        Raises:
            DataLoss: (DIGEST_MISMATCH) if the file was written to.
        """
        raw = torch.empty(0, dtype=torch.uint8)
        for begin, end in self._ranges():
            if not len(raw):
                raw = torch.empty((end - begin) * self.n_columns * self._element_bytes, dtype=torch.uint8)
            with self.file.file.opened() as file:
                block = self._block(file, begin, end, raw)
            yield begin, block.to(device).float()

    def check(self, values: torch.Tensor) -> torch.Tensor:
        """*values*, some of it as float32; raises DataLoss unless they are finite."""
        if not is_finite(values):
            raise corrupt(self.file.path, f"tensor {self.name!r} has values that are NaN or infinite as float32")
        return values

    def _ranges(self) -> Iterator[tuple[int, int]]:
        at_once = max(1, self.block_bytes // (self._element_bytes * self.n_columns))
        for begin in range(0, self.n_rows, at_once):
            yield begin, min(begin + at_once, self.n_rows)

    def _block(self, file: OpenFile, begin: int, end: int, raw: torch.Tensor) -> torch.Tensor:
        """The rows from *begin* to *end*, as they are stored, read into the bytes *raw*."""
        if not self.is_swapped:
            return self._read(file, np.array([begin]), end - begin, self.n_columns, raw).view(-1, self.n_columns)
        columns = np.arange(self.n_columns) * self.n_rows + begin
        return self._read(file, columns, end - begin, 1, raw).view(self.n_columns, end - begin).t()

    def _rows_of_file(self, wanted: torch.Tensor) -> torch.Tensor:
        """The rows *wanted*, in ascending order."""
        raw = torch.empty(len(wanted) * self.n_columns * self._element_bytes, dtype=torch.uint8)
        with self.file.file.opened() as file:
            return self._read(file, wanted.numpy(), 1, self.n_columns, raw).view(len(wanted), self.n_columns)

    def _columns_of_file(self, wanted: torch.Tensor) -> torch.Tensor:
        """The rows *wanted*, in ascending order, of a matrix that is stored transposed."""
        parts = []
        with self.file.file.opened() as file:
            for begin, end in self._ranges():
                here = wanted[(wanted >= begin) & (wanted < end)] - begin
                if len(here):
                    raw = torch.empty((end - begin) * self.n_columns * self._element_bytes, dtype=torch.uint8)
                    parts.append(self._block(file, begin, end, raw)[here])
        return torch.cat(parts)

    def _read(
        self, file: OpenFile, firsts: np.ndarray[Any, np.dtype[np.int64]], n_units: int, width: int, raw: torch.Tensor
    ) -> torch.Tensor:
        """*n_units* units of *width* elements from each of *firsts* on, one after the other, read into *raw*."""
        unit = width * self._element_bytes
        n_bytes = len(firsts) * n_units * unit
        file.read_each((self.header.begin + firsts * unit).tolist(), n_units * unit, raw.numpy()[:n_bytes].data)
        return raw[:n_bytes].view(self._dtype)
