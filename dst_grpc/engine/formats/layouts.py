"""Layouts: which files the autoencoders of each format consist of, by name. Needs no torch, and knows no contents."""

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
    """Name of the format, as the catalogue has it."""
    weights: tuple[str, ...] = ()
    """Names of its weights; empty if these may have any."""
    suffixes: tuple[str, ...] = ()
    """Endings of weights that may have any name."""
    config: str = ""
    """The file without which these weights are not in this format, relative to their folder; empty if there is none."""
    optional: tuple[str, ...] = ()
    """Other files that it may consist of, relative to the folder of the weights."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Every file that it may consist of besides the weights."""
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
"""Every layout; that of weights of any name is the last."""

SUFFIXES = (".safetensors", ".pt", ".npz")
"""Endings of the files of weights."""
_BESIDE = {name for layout in LAYOUTS for name in layout.beside}


def layout_named(name: str) -> Layout | None:
    """The layout whose weights are called *name*; None if that is no layout's, or those of weights of any name."""
    return next((layout for layout in LAYOUTS if name in layout.weights), None)


def is_weights(name: str) -> bool:
    """Whether a file called *name* holds weights: statistics that lie beside some have their endings too."""
    return name.endswith(SUFFIXES) and name not in _BESIDE


def beside(name: str) -> tuple[str, ...]:
    """What may lie beside weights called *name* and belong to them, relative to their folder."""
    return tuple(one for layout in LAYOUTS if name in layout.weights for one in layout.beside)


def below(folder: str, names: Collection[str]) -> set[str]:
    """Those of *names*, paths with slashes, that may belong to weights in *folder*, whatever these are called."""
    return {path for one in _BESIDE if (path := os.path.normpath(f"{folder or '.'}/{one}")) in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileGroup:
    """The files of one autoencoder, as far as they are there."""

    weights: File
    """Its weights."""
    beside: Mapping[str, File]
    """What lies beside them and belongs to them, by its name in the layout."""

    @classmethod
    def at(cls, path: Path) -> FileGroup:
        """The weights at *path*, and what lies beside them; raises DataLoss if *path* is no regular file."""
        found = {name: Path(os.path.normpath(path.parent / name)) for name in beside(path.name)}
        return cls(weights=File.at(path), beside={name: File.at(one) for name, one in found.items() if one.is_file()})

    @property
    def path(self) -> Path:
        """Where the weights lie."""
        return self.weights.path

    @property
    def all(self) -> tuple[File, ...]:
        """The weights, and what lies beside them."""
        return (self.weights, *self.beside.values())

    @property
    def layout(self) -> Layout | None:
        """The layout that they have; None if it is none of them."""
        return next((layout for layout in LAYOUTS if layout.fits(self.path.name, self.beside)), None)
