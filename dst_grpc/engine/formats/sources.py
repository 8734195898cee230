"""Files of tensors: a safetensors file, a state dict of torch, an npz archive.

Each gives the shapes of its float tensors without reading them, and reads one tensor at a time. A `.pt` file is read
only with `weights_only`: no foreign pickle is run here.
"""

from __future__ import annotations

import pickle
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dst_grpc.engine.archives import opened_archive
from dst_grpc.engine.files import File, OpenFile, corrupt
from dst_grpc.engine.npz_file import NpzFile
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.failures import raise_if_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

_MAX_STRUCTURE_BYTES = 1 << 20
_DESCRIPTORS = Path("/dev/fd")
_ADVICE = "convert it to safetensors (dst-grpc convert), or save a plain state dict of tensors, texts and numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A file of tensors whose structure has been checked."""

    file: File
    """The file."""
    shapes: Mapping[str, tuple[int, ...]]
    """Its float tensors."""
    opened: Callable[[], AbstractContextManager[Callable[[str], torch.Tensor]]]
    """Gives a function that reads one of them into memory of its own, usable any number of times within its block; both
    raise DataLoss (DIGEST_MISMATCH) if the file was replaced."""
    facts: Mapping[str, Any]
    """Its other content: metadata, single integers, entries that are no tensors."""
    others: frozenset[str] = frozenset()
    """Names of its entries other than float tensors and metadata."""

    @property
    def path(self) -> Path:
        """Its path."""
        return self.file.path

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in memory of its own; raises as `opened` does."""
        with self.opened() as read:
            return read(name)


def open_tensors(file: File) -> TensorSource:
    """The tensors in *file*; its suffix determines the kind of file.

    Raises:
        DataLoss: if it is truncated, forged, or could only be read by running its pickle; (DIGEST_MISMATCH) if it was
            replaced.
    """
    match file.path.suffix:
        case ".safetensors":
            tensors = SafetensorsFile.open(file)
            shapes = {name: tensor.shape for name, tensor in tensors.tensors.items() if tensor.is_float}
            return TensorSource(
                file=file,
                shapes=shapes,
                opened=lambda: nullcontext(tensors.read),
                facts={**tensors.metadata, **tensors.integers()},
                others=frozenset(tensors.tensors.keys() - shapes.keys()),
            )
        case ".npz":
            archive = NpzFile.open(file)
            return TensorSource(
                file=file,
                shapes=archive.shapes,
                opened=lambda: nullcontext(archive.read),
                facts={},
                others=archive.others,
            )
        case _:
            return _state_dict(file)


def _state_dict(file: File) -> TensorSource:
    path = file.path
    with file.opened() as opened:
        entries = _load_state_dict(opened)
    tensors = {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, torch.Tensor) and entry.is_floating_point() and _has_values(entry)
    }
    size = file.identity.size_bytes
    for name, tensor in tensors.items():
        # With a stride of 0 a few bytes can be any number of elements.
        if tensor.nbytes > size:
            raise corrupt(path, f"tensor {name!r} claims {tensor.nbytes} bytes in a file of {size}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    facts = {name: _unmapped(entry) for name, entry in entries.items() if name not in tensors}

    @contextmanager
    def mapped_again() -> Iterator[Callable[[str], torch.Tensor]]:
        # Mapped again, only for this read. If the file is written to, the mapping changes: it is checked again once the
        # values are copied.
        with file.opened() as opened:
            mapped = _load_state_dict(opened)
            yield lambda name: mapped[name].detach().clone()

    return TensorSource(file=file, shapes=shapes, opened=mapped_again, facts=facts, others=frozenset(map(str, facts)))


def _unmapped(entry: Any) -> Any:
    """*entry*, or its number if it is a scalar tensor, which would keep the file mapped; None for any other tensor."""
    if not isinstance(entry, torch.Tensor):
        return entry
    return entry.item() if _has_values(entry) and entry.numel() == 1 else None


def _has_values(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _load_state_dict(file: OpenFile) -> dict[str, Any]:
    """The state dict in *file*, its tensors mapped rather than read."""
    path = file.path
    # By its descriptor where that has a path, so that the file that was opened is mapped.
    same = _DESCRIPTORS / str(file.descriptor) if _DESCRIPTORS.is_dir() else path
    try:
        with opened_archive(file) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise corrupt(path, "is compressed, which torch.save never does")
                if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_STRUCTURE_BYTES:
                    raise corrupt(path, f"describes its tensors in {entry.file_size} bytes, far too many")
        entries = torch.load(same, map_location="cpu", mmap=True, weights_only=True)
    except zipfile.BadZipFile as error:
        raise corrupt(path, f"is truncated, or was not made by torch.save since version 1.6: {_ADVICE}") from error
    except pickle.UnpicklingError as error:
        raise corrupt(path, f"holds objects that only running its pickle could make: {_ADVICE}") from error
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise_if_out_of_memory(error)
        raise corrupt(path, f"is no sound file of torch.save: {type(error).__name__}") from error
    if not isinstance(entries, dict):
        raise corrupt(path, f"holds a {type(entries).__name__} rather than a state dict")
    return entries
