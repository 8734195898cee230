"""Layouts: the names of the files that the autoencoders of each format consist of. Needs no torch and reads no
contents."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.engine.files import File

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


_NUMBER = "(?P<layer>0|[1-9][0-9]*)"
_LAYER = "{layer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one format. In names, {layer} stands for the number of the layer."""

    format: str
    """Name of the format in the catalogue."""
    weights: tuple[str, ...] = ()
    """Names of its weights; empty if these may have any."""
    suffixes: tuple[str, ...] = ()
    """Endings of weights that may have any name."""
    config: str = ""
    """A required file besides the weights, relative to their folder; empty if there is none."""
    instead: tuple[str, ...] = ()
    """Files of which any may be there in place of that one."""
    optional: tuple[str, ...] = ()
    """Optional files, relative to the folder of the weights."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Every file that may belong to it besides the weights."""
        return (*filter(None, [self.config]), *self.instead, *self.optional)

    def names(self, name: str) -> bool:
        """Whether its weights may be called *name*, in particular."""
        return any(_matched(weights, name) for weights in self.weights)

    def layer_of(self, name: str) -> int | None:
        """The layer in the name of weights of its own; None if its names have none."""
        found = next(match for weights in self.weights if (match := _matched(weights, name)))
        return int(found["layer"]) if found.groupdict() else None

    def beside_weights(self, name: str) -> tuple[str, ...]:
        """Every file that may belong to weights called *name*, which are its own."""
        return tuple(one.replace(_LAYER, str(self.layer_of(name))) for one in self.beside)

    def fits(self, name: str, beside: Collection[str]) -> bool:
        """Whether weights called *name*, with *beside* relative to their folder, are in this format."""
        is_named = self.names(name) or name.endswith(self.suffixes or "/")
        return is_named and (not self.config or any(one in beside for one in (self.config, *self.instead)))


def _matched(pattern: str, name: str) -> re.Match[str] | None:
    """The match of a *pattern* of a layout with *name*."""
    return re.fullmatch(_NUMBER.join(map(re.escape, pattern.split(_LAYER))), name)


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
GEMMA_SCOPE_2_CROSS_LAYER = Layout(
    format="gemma_scope_2_cross_layer", weights=("params_layer_{layer}.safetensors",), optional=("config.json",)
)
TRAINING_CONFIGS = ("wandb-config.yaml", "wanb-config.yaml")
"""What a run of training writes beside transcoders of circuit-tracer, as it is spelt in what is published."""
CIRCUIT_TRACER = Layout(
    format="circuit_tracer", weights=("layer_{layer}.safetensors",), config="config.yaml", instead=TRAINING_CONFIGS
)
CIRCUIT_TRACER_CROSS_LAYER = Layout(
    format="circuit_tracer_cross_layer",
    weights=("W_enc_{layer}.safetensors",),
    config="config.yaml",
    optional=("W_dec_{layer}.safetensors",),
)
NATIVE = Layout(format="native", suffixes=(".safetensors", ".pt"))

LAYOUTS = (
    SAELENS,
    GEMMA_SCOPE,
    GEMMA_SCOPE_2,
    GEMMA_SCOPE_2_CROSS_LAYER,
    DICTIONARY_LEARNING,
    SPARSIFY,
    LLAMA_SCOPE,
    CIRCUIT_TRACER,
    CIRCUIT_TRACER_CROSS_LAYER,
    NATIVE,
)
"""Every layout; the one whose weights may have any name is the last."""

SUFFIXES = (".safetensors", ".pt", ".npz")
"""Endings of the files of weights."""
_BESIDE = tuple(dict.fromkeys(name for layout in LAYOUTS for name in layout.beside))


def layout_named(name: str) -> Layout | None:
    """The layout whose weights are called *name*; None if only the layout with weights of any name can fit."""
    return next((layout for layout in LAYOUTS if layout.names(name)), None)


def is_weights(name: str) -> bool:
    """Whether a file called *name* holds the weights of a layer, rather than what belongs to them with the same
    ending."""
    return name.endswith(SUFFIXES) and not any(_matched(one, name) for one in _BESIDE)


def beside(name: str) -> tuple[str, ...]:
    """Files that may belong to weights called *name*, relative to their folder."""
    return tuple(one for layout in LAYOUTS if layout.names(name) for one in layout.beside_weights(name))


def below(folder: str, names: Collection[str]) -> set[str]:
    """Those of *names*, paths with slashes, that may belong to weights in *folder*, whatever their name."""
    paths = [os.path.normpath(f"{folder or '.'}/{one}") for one in _BESIDE]
    return {name for name in names if any(_matched(path, name) for path in paths)}


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
