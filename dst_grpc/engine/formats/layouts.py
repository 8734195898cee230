"""Layouts: the names of the files that the autoencoders of each format consist of. Needs no torch and reads no
contents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.engine.files import File

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one format."""

    format: str
    """Name of the format in the catalogue."""
    weights: tuple[str, ...] = ()
    """Names of its weights; empty if these may have any."""
    suffixes: tuple[str, ...] = ()
    """Endings of weights that may have any name."""
    config: str = ""
    """A required file besides the weights, relative to their folder; empty if there is none."""
    optional: tuple[str, ...] = ()
    """Optional files, relative to the folder of the weights."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Every file that may belong to it besides the weights."""
        return (self.config, *self.optional) if self.config else self.optional

    def fits(self, name: str, beside: Collection[str]) -> bool:
        """Whether weights called *name*, with *beside* relative to their folder, are in this format."""
        return (name in self.weights or name.endswith(self.suffixes or "/")) and self.config in {"", *beside}


SAELENS = Layout(
    format="saelens",
    weights=("sae_weights.safetensors",),
    config="cfg.json",
    optional=("sparsity.safetensors", "activation_scaler.json"),
)
GEMMA_SCOPE = Layout(format="gemma_scope", weights=("params.npz",))
GEMMA_SCOPE_2 = Layout(format="gemma_scope_2", weights=("params.safetensors",), optional=("config.json",))
DICTIONARY_LEARNING = Layout(format="dictionary_learning", weights=("ae.pt", "ae.safetensors"), config="config.json")
SPARSIFY = Layout(format="sparsify", weights=("sae.safetensors",), config="cfg.json")
LLAMA_SCOPE = Layout(format="llama_scope", weights=("final.safetensors",), config="../hyperparams.json")
NATIVE = Layout(format="native", suffixes=(".safetensors", ".pt"))

LAYOUTS = (SAELENS, GEMMA_SCOPE, GEMMA_SCOPE_2, DICTIONARY_LEARNING, SPARSIFY, LLAMA_SCOPE, NATIVE)
"""Every layout; the one whose weights may have any name is the last."""

SUFFIXES = (".safetensors", ".pt", ".npz")
"""Endings of the files of weights."""
_BESIDE = {name for layout in LAYOUTS for name in layout.beside}


def layout_named(name: str) -> Layout | None:
    """The layout whose weights are called *name*; None if only the layout with weights of any name can fit."""
    return next((layout for layout in LAYOUTS if name in layout.weights), None)


def is_weights(name: str) -> bool:
    """Whether a file called *name* holds weights, rather than statistics with the same ending."""
    return name.endswith(SUFFIXES) and name not in _BESIDE


def beside(name: str) -> tuple[str, ...]:
    """Files that may belong to weights called *name*, relative to their folder."""
    return tuple(one for layout in LAYOUTS if name in layout.weights for one in layout.beside)


def below(folder: str, names: Collection[str]) -> set[str]:
    """Those of *names*, paths with slashes, that may belong to weights in *folder*, whatever their name."""
    return {path for one in _BESIDE if (path := os.path.normpath(f"{folder or '.'}/{one}")) in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileGroup:
    """The existing files of one autoencoder."""

    weights: File
    """Its weights."""
    beside: Mapping[str, File]
    """The other files that belong to them, by their names in the layout."""

    @classmethod
    def at(cls, path: Path) -> FileGroup:
        """The weights at *path* and the files that belong to them; raises DataLoss if *path* is not a regular file."""
        found = {name: Path(os.path.normpath(path.parent / name)) for name in beside(path.name)}
        return cls(weights=File.at(path), beside={name: File.at(one) for name, one in found.items() if one.is_file()})

    @property
    def path(self) -> Path:
        """Path of the weights."""
        return self.weights.path

    @property
    def all(self) -> tuple[File, ...]:
        """The weights and the other files."""
        return (self.weights, *self.beside.values())

    @property
    def layout(self) -> Layout | None:
        """Their layout; None if they fit none."""
        return next((layout for layout in LAYOUTS if layout.fits(self.path.name, self.beside)), None)
