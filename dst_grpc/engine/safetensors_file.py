"""Safetensors files: the header is parsed here and checked, and tensors are read one at a time.

The header is checked against the size of the file, so that a truncated or forged file is an error that names the file
rather than a crash or an allocation. Values are read rather than mapped: pages of a mapping count as the process's
memory, and truncating a mapped file kills the process. `stored_matrix` reads rows of tensors that are never whole in
memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dst_grpc.engine.files import corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dst_grpc.engine.files import File, OpenFile

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 24
"""Enough for 100,000 tensors; a parsed header takes several times its length."""
_MAX_AXES = 64
_BLOCK_BYTES = 1 << 22
TORCH_TYPES_BY_NAME = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of floats, as the format spells them."""
_OTHER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ELEMENT_BYTES = {name: dtype.itemsize for name, dtype in TORCH_TYPES_BY_NAME.items()} | _OTHER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """The header of one tensor."""

    shape: tuple[int, ...]
    """Sizes of its axes."""
    element_type: str
    """As the format spells it: F32, BF16, ..."""
    begin: int
    """Byte of the file at which its values begin."""
    n_bytes: int
    """Bytes of its values."""

    @property
    def is_float(self) -> bool:
        """Whether it can be a weight."""
        return self.element_type in TORCH_TYPES_BY_NAME

    @property
    def is_integer(self) -> bool:
        """Whether its values are integers."""
        return self.element_type in _OTHER_BYTES and self.element_type != "BOOL"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """A safetensors file whose header has been checked."""

    file: File
    """The file."""
    tensors: Mapping[str, TensorHeader]
    """Its tensors, by name."""
    metadata: Mapping[str, str]
    """Its metadata."""

    @property
    def path(self) -> Path:
        """Its path."""
        return self.file.path

    @classmethod
    def open(cls, file: File) -> SafetensorsFile:
        """Read and check the header of *file*, and no weights.

        Raises:
            DataLoss: if it is missing, truncated, too long for its header, or its header is invalid; (DIGEST_MISMATCH)
                if it was replaced.
        """
        path, size = file.path, file.identity.size_bytes
        with file.opened() as opened:
            header, data_begin = _read_header(opened)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise corrupt(path, "its metadata are not texts")
        tensors = {name: _tensor_header(path, name, entry, data_begin) for name, entry in header.items()}
        _check_spans(path, tensors, data_begin, size)
        return cls(file=file, tensors=tensors, metadata=metadata)

    def with_aliases(self) -> SafetensorsFile:
        """The same file with tensors under their other names too: `save_model` writes shared tensors once.

        Its metadata maps each omitted name to the one that was kept.
        """
        aliases = {
            name: self.tensors[kept]
            for name, kept in self.metadata.items()
            if kept in self.tensors and name not in self.tensors
        }
        return replace(self, tensors={**self.tensors, **aliases})

    def held(self) -> SafetensorsFile:
        """The same file, held open for as long as this is referenced, so that its path may lead elsewhere by then.

        Raises:
            DataLoss: (DIGEST_MISMATCH) if the file is no longer the one whose header was read.
        """
        return replace(self, file=self.file.held())

    def read(self, name: str) -> torch.Tensor:
        """The float tensor *name*, in memory of its own.

        Raises:
            DataLoss: (DIGEST_MISMATCH) if the file is no longer the one whose header was read.
        """
        header = self.tensors[name]
        with self.file.opened() as file:
            return _values(file, header, 0, header.n_bytes).reshape(header.shape)

    def integers(self) -> dict[str, int]:
        """The tensors of one integer each, by name; raises DataLoss as `read` does."""
        found = {}
        names = [name for name, one in self.tensors.items() if math.prod(one.shape) == 1 and one.is_integer]
        if names:
            with self.file.opened() as file:
                for name in names:
                    header = self.tensors[name]
                    raw = file.read(header.begin, header.n_bytes)
                    found[name] = int.from_bytes(raw, "little", signed=header.element_type.startswith("I"))
        return found

    def fill(self, name: str, place: torch.Tensor) -> None:
        """Write the float tensor *name* into *place*, a few MiB at a time; no more of it is ever in memory twice.

        Args:
            name: of a tensor with as many elements as *place*.
            place: of any element type, device and strides; its elements in order are those of the file in order.

        Raises:
            DataLoss: as `read` does.
        """
        rows = place if place.ndim else place.view(1)
        n_at_once = max(1, _BLOCK_BYTES * len(rows) // max(1, self.tensors[name].n_bytes))
        row_bytes = self.tensors[name].n_bytes // max(1, len(rows))
        with self.file.opened() as file:
            for begin in range(0, len(rows), n_at_once):
                part = rows[begin : begin + n_at_once]
                values = _values(file, self.tensors[name], begin * row_bytes, len(part) * row_bytes)
                part.copy_(values.view(part.shape))

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The values of the float tensor *name* in order [n], a few MiB at a time; raises DataLoss as `read` does."""
        header = self.tensors[name]
        with self.file.opened() as file:
            for begin in range(0, header.n_bytes, _BLOCK_BYTES):
                yield _values(file, header, begin, min(_BLOCK_BYTES, header.n_bytes - begin))


def _values(file: OpenFile, header: TensorHeader, begin: int, n_bytes: int) -> torch.Tensor:
    """Values [n] of a tensor, *n_bytes* of them from its byte *begin* on."""
    raw = torch.empty(n_bytes, dtype=torch.uint8)
    file.read_into(header.begin + begin, raw.numpy().data)
    return raw.view(TORCH_TYPES_BY_NAME[header.element_type])


def _read_header(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the values begin."""
    path, size = file.path, file.identity.size_bytes
    if size < _LENGTH_BYTES:
        raise corrupt(path, f"is truncated: {size} bytes are no safetensors file")
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > _MAX_HEADER_BYTES:
        raise corrupt(path, f"claims a header of {length} bytes; at most {_MAX_HEADER_BYTES} are allowed")
    if length > size - _LENGTH_BYTES:
        raise corrupt(path, f"is truncated: its header of {length} bytes is longer than the file")
    try:
        header = json.loads(file.read(_LENGTH_BYTES, length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"its header is no sound JSON: {error}") from error
    if not isinstance(header, dict):
        raise corrupt(path, "its header is no JSON object")
    return header, _LENGTH_BYTES + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor_header(path: Path, name: str, entry: Any, data_begin: int) -> TensorHeader:
    """One entry of the header."""
    match entry:
        case {"dtype": str(element_type), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise corrupt(path, f"the header's entry of {name!r} lacks dtype, shape or data_offsets")
    if element_type not in _ELEMENT_BYTES:
        raise corrupt(path, f"tensor {name!r} has the unsupported element type {element_type!r}")
    if len(shape) > _MAX_AXES or not all(type(axis) is int and 0 <= axis < 1 << 63 for axis in shape):
        raise corrupt(path, f"tensor {name!r} has no sound shape: {shape}")
    wanted = math.prod(shape) * _ELEMENT_BYTES[element_type]
    if end - begin != wanted:
        raise corrupt(path, f"tensor {name!r} of shape {shape} needs {wanted} bytes and has {end - begin}")
    return TensorHeader(shape=tuple(shape), element_type=element_type, begin=data_begin + begin, n_bytes=wanted)


def _check_spans(path: Path, tensors: Mapping[str, TensorHeader], data_begin: int, size: int) -> None:
    """The tensors must be contiguous and fill the file of *size* bytes."""
    position = data_begin
    for begin, n_bytes, name in sorted((header.begin, header.n_bytes, name) for name, header in tensors.items()):
        if begin != position:
            where = f"begins at byte {begin - data_begin}, not at {position - data_begin}"
            raise corrupt(path, f"tensor {name!r} {where}: a gap or an overlap")
        position = begin + n_bytes
        if position > size:
            raise corrupt(path, f"is truncated: tensor {name!r} ends {position - size} bytes behind the file's end")
    if position < size:
        raise corrupt(path, f"has {size - position} bytes behind its last tensor")
