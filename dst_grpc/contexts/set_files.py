"""Separates the files of autoencoders below a set's folder from files of other programs, which are ignored.

Training leaves optimizers, checkpoints and configs beside autoencoders, with the same suffixes. The layout of the files
around weights determines whether they are an autoencoder's; for weights that may have any name, their tensors do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.engine.files import File, corrupt
from dst_grpc.engine.formats.detect import check_has_config, holds_native_tensors
from dst_grpc.engine.formats.layouts import NATIVE, FileGroup, is_weights, layout_named
from dst_grpc.engine.formats.strangers import what_they_are
from dst_grpc.engine.model_folder import leads_nowhere

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dst_grpc.errors import DataLoss

_MAX_DEPTH = 6
_CONFIG = "config.yaml"
_LAYER_FOLDERS = frozenset({"autoencoders"})
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFiles:
    """The files below a set's folder that have a suffix of weights."""

    weights: tuple[Path, ...]
    """Weights of autoencoders, in order."""
    ignored: tuple[str, ...]
    """The other files, by name below the folder."""

    @classmethod
    def below(cls, folder: Path, names: Collection[str] | None) -> SetFiles:
        """Separate the files below *folder*, or those of them called *names*.

        Raises:
            DataLoss: for an autoencoder without its config, or whose layer is unknown.
        """
        laid_out: list[Path] = []
        numbered: list[Path] = []
        ignored: list[Path] = []
        for path, depth in _files_below(folder):
            if names is not None and path.relative_to(folder).as_posix() not in names:
                continue
            if _is_lost(path):
                raise corrupt(path, leads_nowhere(path))
            group = FileGroup.at(path)
            if group.layout not in {None, NATIVE}:
                laid_out.append(path)
                continue
            check_has_config(group.weights)
            if path.stem.isdecimal() and (not depth or path.parent.name in _LAYER_FOLDERS):
                numbered.append(path)
            elif not depth and holds_native_tensors(group.weights):
                raise corrupt(path, "is named after no layer: LAYER.safetensors or LAYER.pt is expected")
            else:
                ignored.append(path)
        native: list[Path] = []
        for path in numbered:
            # One that cannot be read is damaged, unless all others have another layout.
            is_native = holds_native_tensors(File.at(path))
            (native if is_native or (is_native is None and not laid_out) else ignored).append(path)
        names_ignored = sorted(path.relative_to(folder).as_posix() for path in ignored)
        return cls(weights=(*laid_out, *native), ignored=tuple(names_ignored))

    def nothing_here(self, folder: Path) -> DataLoss:
        """The error for a *folder* that holds no autoencoder."""
        if not self.ignored and (folder / _CONFIG).is_file():
            advice = f"pull what its {_CONFIG} names, with a pattern, from where it is published"
            return corrupt(folder, f"holds no autoencoders, only their config: {advice}")
        if not self.ignored:
            return corrupt(folder, "holds no autoencoders")
        shown = ", ".join(self.ignored[:_SHOWN]) + (", ..." if len(self.ignored) > _SHOWN else "")
        known = what_they_are(self.ignored)
        return corrupt(folder, f"holds no autoencoders: {shown} {known or 'are in none of the known formats'}")


def _files_below(folder: Path) -> Iterator[tuple[Path, int]]:
    """The regular files below *folder* with a suffix of weights, and links that lead nowhere and might have led to
    weights or folders of them, in order, with the number of folders between."""
    for place, folders, found in os.walk(folder, followlinks=True):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        around = here.resolve()
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and depth < _MAX_DEPTH and not around.is_relative_to((here / name).resolve())
        )
        for name in sorted(found):
            path = here / name
            if name.startswith("."):
                continue
            if (is_weights(name) and path.is_file()) or _is_lost(path):
                yield path, depth


def _is_lost(path: Path) -> bool:
    """Whether *path* is a link that leads nowhere, named as weights of a layout are, or after a layer."""
    is_named = layout_named(path.name) is not None or path.stem.isdecimal() or path.name[-1:].isdecimal()
    return is_named and path.is_symlink() and not path.exists()
