"""Finding autoencoder sets: those beside a model, below FOLDER/autoencoders, those of a folder, those of a config.

A set is a folder of autoencoders, one per layer, in any format that is known: files named after their layer, or a
folder for each. Reads headers only. Which entries a server has, and under which names clients find them, is the
registry's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst_grpc.contexts.autoencoders import input_width
from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.files import FileSet, corrupt, read_small
from dst_grpc.engine.formats.detect import SUFFIXES, has_own_name, read_header
from dst_grpc.engine.formats.format import layer_in_path
from dst_grpc.errors import InvalidRequest, Violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.paths import AllowedRoots
    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.engine.formats.header import AutoencoderHeader

_T = DerivedScalarType
_CONFIG = "config.json"
_FIELD = "autoencoder_path_by_layer_index"
_MAX_DEPTH = 6
_LAYER_FOLDERS = frozenset({"autoencoders"})
_NOT_WEIGHTS = frozenset({"sparsity.safetensors"})
_VERSIONED = re.compile(r"(.+?)(_v\d.*)?")
_READ_ALIKE = ({_T.RESID_DELTA_MLP, _T.RESID_DELTA_MLP_FROM_MLP_POST_ACT},)
"""Derived scalars that one autoencoder may be read from, whichever of them its file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSet:
    """An autoencoder set as its files describe it: everything but a name and a place among the server's entries."""

    folder: Path
    """Where it lies."""
    format: str
    """Name of its format; several, joined by a slash, if its files differ."""
    dst: DerivedScalarType
    """What it reads."""
    headers: tuple[tuple[int | None, AutoencoderHeader], ...]
    """Its autoencoders by layer, in order; all have equally many latents."""
    declared: tuple[LayerCheck, ...]
    """The figures that came with it."""
    files: FileSet
    """The files that it consists of."""

    def entry(self, name: str, model: ModelEntry) -> AutoencoderEntry:
        """The set as something that can be loaded, called *name*."""
        entry = AutoencoderEntry(
            name=name,
            element_type=model.element_type,
            device=model.device,
            files=self.files,
            model=model,
            dst=self.dst,
            headers=self.headers,
            declared=self.declared,
        )
        entry.digest_if_small()
        return entry


def open_set(folder: Path, model: ModelEntry, *, dst: DerivedScalarType | None = None) -> FoundSet:
    """The one autoencoder set of *model* in *folder*; with *dst*, that of its sets which reads it.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or the folder holds several sets, or none.
    """
    found = open_sets(folder, model)
    chosen = [one for one in found if dst in {None, one.dst}]
    if len(chosen) == 1:
        return chosen[0]
    reads = ", ".join(one.dst for one in found)
    raise corrupt(
        folder, f"holds {len(chosen)} sets that {f'read {dst}' if dst else 'could be meant'}; its read {reads}"
    )


def open_sets(folder: Path, model: ModelEntry) -> tuple[FoundSet, ...]:
    """Every autoencoder set of *model* in *folder*, one for each derived scalar that its files read.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or there is none.
    """
    config = _read_config(folder / _CONFIG)
    by_dst: dict[DerivedScalarType, dict[int | None, AutoencoderHeader]] = {}
    for path in _weights_below(folder):
        header = read_header(path)
        dst = _dst_of(folder, config, header)
        layer = _layer_of(header, dst, model)
        other = by_dst.setdefault(dst, {}).setdefault(layer, header)
        if other is not header:
            raise corrupt(path, f"is the second autoencoder of its layer, beside {_below(other.path, folder)}")
    if not by_dst:
        raise corrupt(folder, "holds no autoencoders")
    return tuple(_found_set(folder, config, dst, by_layer) for dst, by_layer in sorted(by_dst.items()))


def _found_set(
    folder: Path, config: dict[str, Any], dst: DerivedScalarType, by_layer: Mapping[int | None, AutoencoderHeader]
) -> FoundSet:
    if len({header.n_latents for header in by_layer.values()}) > 1:
        raise corrupt(folder, "holds autoencoders that differ in their number of latents")
    headers = tuple(sorted(by_layer.items(), key=lambda item: -1 if item[0] is None else item[0]))
    files = {_below(path, folder): path for _, header in headers for path in (header.path, *header.other_files)}
    if config:
        files[_CONFIG] = folder / _CONFIG
    return FoundSet(
        folder=folder,
        format="/".join(sorted({header.format for _, header in headers})),
        dst=dst,
        headers=headers,
        declared=_declared(folder / _CONFIG, config) or declared_by(headers),
        files=FileSet(files),
    )


def sets_beside(model: ModelEntry, folder: Path) -> list[AutoencoderEntry]:
    """The autoencoder sets in *folder*, in folders of their own.

    They are named MODEL/FOLDER, or MODEL/FOLDER-DST where one folder holds sets that read different derived scalars.

    Raises:
        DataLoss: if a file is corrupt, or does not fit the model.
    """
    if not folder.is_dir():
        return []
    entries = []
    for one in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = open_sets(one, model)
        for each in found:
            name = one.name if len(found) == 1 else f"{one.name}-{each.dst}"
            entries.append(each.entry(f"{model.name}/{name}", model))
    return entries


def _weights_below(folder: Path) -> Iterator[Path]:
    """The files of weights below *folder*, in order; raises DataLoss for one of *folder* itself that is named oddly."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _MAX_DEPTH)
        for name in sorted(names):
            path = here / name
            if path.suffix not in SUFFIXES or name.startswith(".") or name in _NOT_WEIGHTS:
                continue
            if has_own_name(path) or (path.stem.isdecimal() and (not depth or here.name in _LAYER_FOLDERS)):
                yield path
            elif not depth:
                raise corrupt(path, "is named after no layer: LAYER.safetensors or LAYER.pt is expected")


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"../{path.name}"


def _layer_of(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> int | None:
    """The layer of a set's file: as the file says, else as its path does; raises DataLoss if it does not fit."""
    path, layer = header.path, header.layer_index
    named = layer_in_path(path)
    if path.stem.isdecimal() and layer not in {None, named}:
        raise corrupt(path, f"says that it belongs to layer {layer}")
    if layer is None and (header.dst is None or header.format == "native"):
        layer = named
    problem = _layer_problem(layer, dst, model) or _misfit(header, dst, model)
    if problem:
        raise corrupt(path, problem)
    return layer


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is no sound JSON: {error}") from error
    if not isinstance(config, dict):
        raise corrupt(path, "is no JSON object")
    return config


def _dst_of(folder: Path, config: dict[str, Any], header: AutoencoderHeader) -> DerivedScalarType:
    """What a set's file reads: as the set's config says, else the file, else the name of the set's folder."""
    said = {name for name in (config.get("dst"), header.dst) if isinstance(name, str)}
    named = {name for name in said if not _agree(said, name)}
    if named:
        raise corrupt(folder, f"its files disagree on what they read: {', '.join(sorted(said))}")
    versioned = _VERSIONED.fullmatch(folder.name)
    name = config.get("dst") or header.dst or (versioned[1] if versioned else folder.name)
    try:
        return DerivedScalarType(name)
    except ValueError:
        raise corrupt(folder, f"{name!r} is no derived scalar type that its autoencoders could read") from None


def _agree(names: set[str], name: str) -> bool:
    """Whether *name* goes with all *names*."""
    return names == {name} or any(names <= alike for alike in _READ_ALIKE)


def _layer_problem(layer: int | None, dst: DerivedScalarType, model: ModelEntry) -> str:
    if FACTS[dst].once:
        return "" if layer is None else f"must be absent: {dst} exists once per model"
    n_layers = model.dimensions.n_layers
    if layer is None:
        return f"is required: {dst} exists at every layer, and nothing names one"
    return "" if layer < n_layers else f"layer {layer} does not exist: {model.name!r} has {n_layers} layers"


def _architecture_problem(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> str:
    architecture, tap = model.checkpoint.config.architecture, FACTS[dst].tap
    reason = None if tap is None else architecture.why_without(tap)
    # A transcoder reads what the MLP does, which every model has, whatever it is called.
    if reason is not None and header.output is None:
        return f"reads {dst}, which {model.name!r} does not have: {reason}"
    if header.is_before_post_norm and architecture.has_post_norms:
        part = header.output or dst
        return f"is of {part} before {model.name!r} norms it, and only what comes out of that norm is recorded"
    return ""


def _misfit(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> str:
    problem = _architecture_problem(header, dst, model)
    if problem:
        return problem
    width = input_width(dst, model.dimensions)
    if width is None:
        return f"{dst} cannot be read by an autoencoder"
    if header.n_inputs != width:
        return f"reads {header.n_inputs} inputs, but {dst} of {model.name!r} has {width}"
    output = header.output or dst
    width = input_width(output, model.dimensions)
    if header.n_outputs != width:
        return f"puts out {header.n_outputs} channels, but {output} of {model.name!r} has {width}"
    return ""


def _declared(path: Path, config: dict[str, Any]) -> tuple[LayerCheck, ...]:
    layers = config.get("layers", {})
    try:
        checks = [
            LayerCheck(
                layer_index=int(layer),
                l0=float(row["l0"]),
                fraction_of_variance_unexplained=float(row["fvu"]),
                dead_latents=int(row["dead_latents"]) if "dead_latents" in row else None,
            )
            for layer, row in layers.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"its figures by layer are not sound: {error!r}") from error
    figures = [figure for check in checks for figure in (check.l0, check.fraction_of_variance_unexplained)]
    if not all(figure is None or math.isfinite(figure) for figure in figures):
        raise corrupt(path, "declares figures that are no numbers")
    return tuple(sorted(checks, key=lambda check: check.layer_index))


def declared_by(headers: tuple[tuple[int | None, AutoencoderHeader], ...]) -> tuple[LayerCheck, ...]:
    """The figures that the files themselves declare: L0 alone, where they do."""
    return tuple(
        LayerCheck(layer_index=layer or 0, l0=header.declared_l0, fraction_of_variance_unexplained=None)
        for layer, header in headers
        if header.declared_l0 is not None
    )


def set_of_config(config: AutoencoderConfig, model: ModelEntry, roots: AllowedRoots) -> AutoencoderEntry:
    """The anonymous set that a client's *config* names, if its paths are allowed and its files fit *model*.

    Its name, "path/" and 12 hexadecimal digits, stands for these very files: others in their place get another name.

    Raises:
        NotAllowed, NotFound: for a path that is not allowed, or leads nowhere.
        InvalidRequest: for a layer that the model lacks, or a file that does not fit it; all of them at once.
        DataLoss: for a file that is corrupt.
    """
    if input_width(config.dst, model.dimensions) is None:
        raise InvalidRequest.of("dst", f"{config.dst} cannot be read by an autoencoder")
    problems = Violations()
    headers: list[tuple[int | None, AutoencoderHeader]] = []
    for i, (layer, text) in enumerate(config.autoencoder_path_by_layer_index):
        problem = _layer_problem(layer, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].layer_index", problem)
        path = roots.regular_file(text)
        if path.suffix not in SUFFIXES:
            problems.add(f"{_FIELD}[{i}].path", f"must end in {', '.join(SUFFIXES)}")
            continue
        header = read_header(path)
        problem = _disagreement(header, config.dst, layer) or _misfit(header, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].path", problem)
        headers.append((layer, header))
    if len({header.n_latents for _, header in headers}) > 1:
        problems.add(_FIELD, "the autoencoders must have equally many latents")
    problems.raise_if_any()
    files = FileSet(
        {f"{layer}/{path.name}": path for layer, header in headers for path in (header.path, *header.other_files)}
    )
    identity = f"{model.name}\0{config.dst}\0{files.identity()}"
    entry = AutoencoderEntry(
        name=f"path/{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
        element_type=model.element_type,
        device=model.device,
        files=files,
        model=model,
        dst=config.dst,
        headers=tuple(headers),
        declared=declared_by(tuple(headers)),
        is_anonymous=True,
    )
    entry.digest_if_small()
    return entry


def _disagreement(header: AutoencoderHeader, dst: DerivedScalarType, layer: int | None) -> str:
    """What of the place that a client names differs from the one that the file itself names."""
    if header.dst is not None and not _agree({header.dst, dst.value}, dst.value):
        return f"says that it reads {header.dst}, not {dst}"
    if header.layer_index not in {None, layer}:
        return f"says that it belongs to layer {header.layer_index}"
    return ""
