"""Where a format finds its tensors: a safetensors file, a state dict of torch, an npz archive.

Each tells the shapes of its float tensors without reading them, and reads one tensor at a time. A `.pt` file is read
with `weights_only` alone: no pickle of somebody's runs here.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dst_grpc.engine.archives import opened_archive
from dst_grpc.engine.files import Identity, OpenFile, corrupt, opened
from dst_grpc.engine.npz_file import NpzFile
from dst_grpc.engine.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MAX_STRUCTURE_BYTES = 1 << 20
_DESCRIPTORS = Path("/dev/fd")
_ADVICE = "convert it to safetensors (dst-grpc convert), or save a plain state dict of tensors, texts and numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A file of tensors whose structure is sound."""

    path: Path
    """Where it lies."""
    identity: Identity
    """Which file it is: no other is read in its place."""
    shapes: Mapping[str, tuple[int, ...]]
    """Its float tensors."""
    read: Callable[[str], torch.Tensor]
    """Reads one of them into memory of its own; raises DataLoss (DIGEST_MISMATCH) if the file is another by then."""
    facts: Mapping[str, Any]
    """What else stands in it: metadata, or entries that are no float tensors."""


def open_tensors(path: Path, identity: Identity | None = None) -> TensorSource:
    """The tensors at *path*, of the kind that its ending tells.

    Args:
        path: where they lie.
        identity: of the one file that will do; None = any.

    Raises:
        DataLoss: if it is truncated, forged, no such file, or one that only running its pickle could read;
            (DIGEST_MISMATCH) if it is another file.
    """
    match path.suffix:
        case ".safetensors":
            file = SafetensorsFile.open(path, identity)
            shapes = {name: tensor.shape for name, tensor in file.tensors.items() if tensor.is_float}
            return TensorSource(path=path, identity=file.identity, shapes=shapes, read=file.read, facts=file.metadata)
        case ".npz":
            archive = NpzFile.open(path, identity)
            return TensorSource(
                path=path, identity=archive.identity, shapes=archive.shapes, read=archive.read, facts={}
            )
        case _:
            with opened(path, identity) as state_dict:
                return _state_dict(state_dict)


def _state_dict(file: OpenFile) -> TensorSource:
    path, identity = file.path, file.identity
    entries = _load_state_dict(file)
    tensors = {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, torch.Tensor) and entry.is_floating_point() and entry.layout is torch.strided
    }
    size = identity.size_bytes
    for name, tensor in tensors.items():
        # A stride of 0 lets a few bytes pose as any number of elements.
        if tensor.nbytes > size:
            raise corrupt(path, f"tensor {name!r} claims {tensor.nbytes} bytes in a file of {size}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    facts = {name: entry for name, entry in entries.items() if name not in tensors}

    def read(name: str) -> torch.Tensor:
        # Written over by somebody, the mapping would show it: checked once the values are ours.
        copy = tensors[name].detach().clone()
        with opened(path, identity):
            return copy

    return TensorSource(path=path, identity=identity, shapes=shapes, read=read, facts=facts)


def _load_state_dict(file: OpenFile) -> dict[str, Any]:
    """The state dict in *file*, its tensors mapped rather than read."""
    path = file.path
    # By its descriptor where that has a path, so that what is mapped is what was opened.
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
        raise corrupt(path, f"is no sound file of torch.save: {type(error).__name__}") from error
    if not isinstance(entries, dict):
        raise corrupt(path, f"holds a {type(entries).__name__} rather than a state dict")
    return entries
