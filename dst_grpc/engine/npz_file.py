"""Npz archives: numpy arrays in a zip file, read one at a time and never unpickled.

The header of every array is checked against its place in the archive before anything is allocated, so that a truncated
or forged file is an error that names it. Compressed members are refused: weights do not compress, and a few compressed
kilobytes can unpack to any size.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.engine.archives import MAX_READ_BYTES, opened_archive
from dst_grpc.engine.files import corrupt
from dst_grpc.failures import raise_if_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dst_grpc.engine.files import File

_SUFFIX = ".npy"
_MAX_MEMBERS = 1000
_MAX_ELEMENT_BYTES = 8
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzFile:
    """An npz archive whose structure has been checked."""

    file: File
    """The file."""
    shapes: Mapping[str, tuple[int, ...]]
    """Its arrays of floats, by name."""
    others: frozenset[str] = frozenset()
    """Names of its other arrays."""

    @classmethod
    def open(cls, file: File) -> NpzFile:
        """Read and check the headers of *file*, and no weights.

        Raises:
            DataLoss: if it is missing, truncated, compressed, or holds anything but plain arrays; (DIGEST_MISMATCH) if
                it was replaced.
        """
        path, size = file.path, file.identity.size_bytes
        shapes: dict[str, tuple[int, ...]] = {}
        others: set[str] = set()
        try:
            with file.opened() as opened, opened_archive(opened) as archive:
                members = archive.infolist()
                if len(members) > _MAX_MEMBERS:
                    raise corrupt(path, f"has {len(members)} members; at most {_MAX_MEMBERS} are expected")
                if sum(member.file_size for member in members) > size:
                    raise corrupt(path, f"claims to unpack to more than its {size} bytes; store it uncompressed")
                for member in members:
                    shape, name = _checked_shape(path, archive, member), member.filename.removesuffix(_SUFFIX)
                    if shape is None:
                        others.add(name)
                    else:
                        shapes[name] = shape
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise_if_out_of_memory(error)
            raise corrupt(path, f"is truncated, or no npz archive: {error}") from error
        return cls(file=file, shapes=shapes, others=frozenset(others))

    def read(self, name: str) -> torch.Tensor:
        """The array *name*, streamed into memory of its own.

        Raises:
            DataLoss: (DIGEST_MISMATCH) if the file is no longer the one whose headers were read; if it ends early.
        """
        path = self.file.path
        try:
            with (
                self.file.opened() as whole,
                opened_archive(whole) as archive,
                archive.open(name + _SUFFIX) as file,
            ):
                shape, dtype, is_column_major = _array_header(path, name, file)
                array = np.empty(shape[::-1] if is_column_major else shape, dtype)
                left = array.reshape(-1).view(np.uint8).data
                while left:
                    block = file.read(min(len(left), MAX_READ_BYTES))
                    if not block:
                        raise corrupt(path, f"array {name!r} ends {len(left)} bytes early")
                    left[: len(block)] = block
                    left = left[len(block) :]
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
            raise_if_out_of_memory(error)
            raise corrupt(path, f"array {name!r} cannot be read: {error}") from error
        return torch.from_numpy(array.T if is_column_major else array)


def _checked_shape(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...] | None:
    """Shape of a member; None if it holds no floats."""
    name = member.filename
    if not name.endswith(_SUFFIX):
        raise corrupt(path, f"holds {name!r}, which is no array")
    if member.compress_type != zipfile.ZIP_STORED:
        raise corrupt(path, f"array {name!r} is compressed: store it with numpy.savez")
    with archive.open(member) as file:
        shape, dtype, _ = _array_header(path, name, file)
        wanted = math.prod(shape) * dtype.itemsize
        if member.file_size - file.tell() != wanted:
            problem = f"array {name!r} of shape {list(shape)} needs {wanted} bytes and has"
            raise corrupt(path, f"{problem} {member.file_size - file.tell()}")
    return shape if dtype.kind == "f" else None


def _array_header(path: Path, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    """Shape, element type and whether the array is in Fortran order; *file* is left where the data begins."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise corrupt(path, f"array {name!r} is in version {version} of the npy format, which is not supported")
    shape, is_column_major, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise corrupt(path, f"array {name!r} holds pickled objects, which are never read")
    if dtype.kind not in "fiub" or dtype.itemsize > _MAX_ELEMENT_BYTES or not dtype.isnative:
        raise corrupt(path, f"array {name!r} has the unsupported element type {dtype}")
    return shape, dtype, is_column_major
