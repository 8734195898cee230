"""Safetensors files: a header read by hand and not trusted, and tensors mapped one at a time.

The header is checked against the size of the file before the library maps it, so that a truncated or forged file is
an error that names the file rather than a crash or an allocation. Not here: what the tensors mean.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dst_grpc.engine.files import corrupt, regular_file_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_OTHER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ELEMENT_BYTES = _FLOAT_BYTES | _OTHER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    """Sizes of its axes."""
    element_type: str
    """As the format spells it: F32, BF16, ..."""

    @property
    def is_float(self) -> bool:
        """Whether it can be a weight."""
        return self.element_type in _FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """A safetensors file whose header is sound."""

    path: Path
    """Where it lies."""
    tensors: Mapping[str, TensorHeader]
    """What it holds, by name."""
    metadata: Mapping[str, str]
    """Texts that came with it."""

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Read and check the header, and no weights.

        Raises:
            DataLoss: if the file is missing, truncated, too long for its header, or its header is no sound header.
        """
        size = regular_file_status(path).st_size
        header, data_bytes = _read_header(path, size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise corrupt(path, "its metadata are not texts")
        tensors: dict[str, TensorHeader] = {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            tensors[name], span = _tensor_header(path, name, entry)
            spans.append((*span, name))
        _check_spans(path, spans, data_bytes)
        return cls(path=path, tensors=tensors, metadata=metadata)

    def read(self, name: str) -> torch.Tensor:
        """The tensor *name*, still mapped from the file: copy it, and let go of it before reading the next.

        Raises:
            DataLoss: if the file has changed so that the library refuses it.
        """
        # Mapped anew each time: a mapping that stays open would keep every page read so far in memory.
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise corrupt(self.path, f"tensor {name!r} cannot be read: {error}") from error


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes behind it."""
    if size < _LENGTH_BYTES:
        raise corrupt(path, f"is truncated: {size} bytes are no safetensors file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _MAX_HEADER_BYTES:
                raise corrupt(path, f"claims a header of {length} bytes; at most {_MAX_HEADER_BYTES} are allowed")
            if length > size - _LENGTH_BYTES:
                raise corrupt(path, f"is truncated: its header of {length} bytes is longer than the file")
            raw = file.read(length)
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"its header is no sound JSON: {error}") from error
    if not isinstance(header, dict):
        raise corrupt(path, "its header is no JSON object")
    return header, size - _LENGTH_BYTES - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor_header(path: Path, name: str, entry: Any) -> tuple[TensorHeader, tuple[int, int]]:
    """One entry of the header, and where its bytes begin and end."""
    match entry:
        case {"dtype": str(element_type), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise corrupt(path, f"the header's entry of {name!r} lacks dtype, shape or data_offsets")
    if element_type not in _ELEMENT_BYTES:
        raise corrupt(path, f"tensor {name!r} has the unsupported element type {element_type!r}")
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        raise corrupt(path, f"tensor {name!r} has no sound shape: {shape}")
    wanted = math.prod(shape) * _ELEMENT_BYTES[element_type]
    if end - begin != wanted:
        raise corrupt(path, f"tensor {name!r} of shape {shape} needs {wanted} bytes and has {end - begin}")
    return TensorHeader(shape=tuple(shape), element_type=element_type), (begin, end)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The tensors must lie one behind the other and fill the file."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise corrupt(path, f"tensor {name!r} begins at byte {begin}, not at {position}: a gap or an overlap")
        if end > data_bytes:
            raise corrupt(path, f"is truncated: tensor {name!r} ends {end - data_bytes} bytes behind the file's end")
        position = end
    if position < data_bytes:
        raise corrupt(path, f"has {data_bytes - position} bytes behind its last tensor")
