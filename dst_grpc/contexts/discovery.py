"""Discovery: the autoencoder sets in a folder, or beside a model in FOLDER/autoencoders.

A set is a folder of autoencoders, one per layer, in any known format: files named after their layer, or a folder for
each. Reads headers only. Which sets a server offers, and under which names, is up to the registry.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst_grpc.contexts.entries import AutoencoderEntry, Registered
from dst_grpc.contexts.fit import agree, layer_problem, misfit
from dst_grpc.contexts.set_files import SetFiles
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.files import File, FileSet, corrupt, read_small
from dst_grpc.engine.formats.detect import open_autoencoder
from dst_grpc.engine.formats.format import layer_in_path
from dst_grpc.engine.formats.layouts import NATIVE, FileGroup
from dst_grpc.engine.formats.stored_file import stored
from dst_grpc.engine.formats.weights import AutoencoderFile
from dst_grpc.engine.model_folder import leads_nowhere

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.engine.formats.header import AutoencoderHeader
    from dst_grpc.engine.formats.stored_file import LayerFile

_T = DerivedScalarType
_CONFIG = "config.json"
_FIGURES = {"l0", "fvu"}
_VERSIONED = re.compile(r"(.+?)(_v\d.*)?")


def open_set(
    folder: Path,
    model: ModelEntry,
    *,
    dst: DerivedScalarType | None = None,
    layers: Collection[int] | None = None,
    files: Mapping[int, Path] | None = None,
    names: Collection[str] | None = None,
    in_files: bool = False,
) -> AutoencoderEntry:
    """The one autoencoder set of *model* in *folder*; with *dst*, the one that reads it. It has no name yet.

    Args:
        folder: its folder.
        model: the model that it is for.
        dst: the derived scalar that it reads; None = as its files say. Files that do not say are assumed to read it.
        layers: the layers to take, of those that exist; None = all.
        files: its weights below *folder*, by the layer in their names; None = all weights there.
        names: the names of its files below *folder*; None = all.
        in_files: whether encoders and decoders, of transcoders, stay in their files.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or the folder holds several sets, or none.
    """
    found = open_sets(folder, model, dst=dst, layers=layers, files=files, names=names, in_files=in_files)
    chosen = [one for one in found if dst in {None, one.dst}]
    if len(chosen) == 1:
        return chosen[0]
    reads = ", ".join(one.dst for one in found)
    raise corrupt(
        folder, f"holds {len(chosen)} sets that {f'read {dst}' if dst else 'could be meant'}; its read {reads}"
    )


def open_sets(
    folder: Path,
    model: ModelEntry,
    *,
    dst: DerivedScalarType | None = None,
    layers: Collection[int] | None = None,
    files: Mapping[int, Path] | None = None,
    names: Collection[str] | None = None,
    in_files: bool = False,
) -> tuple[AutoencoderEntry, ...]:
    """Every autoencoder set of *model* in *folder*, one for each derived scalar that its files read. They have no
    names.

    The arguments are those of `open_set`.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or there is none.
    """
    config = _read_config(folder / _CONFIG) if names is None or _CONFIG in names else {}
    by_dst: dict[DerivedScalarType, dict[int | None, LayerFile]] = {}
    found = None if files is not None else SetFiles.below(folder, names)
    weights: Iterable[tuple[int | None, Path]]
    weights = (files or {}).items() if found is None else [(_number_of(path), path) for path in found.weights]
    for number, path in weights:
        if layers is not None and number is not None and number not in layers:
            continue
        file = open_autoencoder(FileGroup.at(path))
        reads = _dst_of(folder, config, file.header, dst)
        layer = _layer_of(file, reads, model, None if files is None else number)
        if layers is not None and layer not in layers:
            continue
        if in_files and isinstance(file, AutoencoderFile):
            file = stored(file, layer)
        other = by_dst.setdefault(reads, {}).setdefault(layer, file)
        if other is not file:
            problem = f"is the second autoencoder of its layer, beside {_below(other.path, folder)}"
            raise corrupt(path, f"{problem}: leave one of them, or register a set of its own for each, with a pattern")
    if found is not None and not found.weights:
        raise found.nothing_here(folder)
    if not by_dst:
        raise corrupt(folder, "holds no autoencoder of these layers")
    return tuple(_entry(folder, config, model, reads, by_layer) for reads, by_layer in sorted(by_dst.items()))


def _entry(
    folder: Path,
    config: dict[str, Any],
    model: ModelEntry,
    dst: DerivedScalarType,
    found: Mapping[int | None, LayerFile],
) -> AutoencoderEntry:
    if len({file.header.n_latents for file in found.values()}) > 1:
        raise corrupt(folder, "holds autoencoders that differ in their number of latents")
    _check_cross_layer(folder, model, found)
    by_layer = dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))
    files = {_below(one.path, folder): one for file in by_layer.values() for one in file.files.all}
    if config:
        files.setdefault(_CONFIG, File.at(folder / _CONFIG))
    layers = {layer or 0 for layer in by_layer}
    declared = tuple(check for check in _declared(folder / _CONFIG, config) if check.layer_index in layers)
    return AutoencoderEntry(
        name="",
        element_type=model.element_type,
        device=model.device,
        files=FileSet(files),
        model=model,
        dst=dst,
        by_layer=by_layer,
        declared=declared or declared_by(by_layer),
    )


def _check_cross_layer(folder: Path, model: ModelEntry, found: Mapping[int | None, LayerFile]) -> None:
    """Raise DataLoss if only some of the layers are of a cross-layer transcoder, or it lacks one."""
    is_cross_layer = {file.header.written is not None for file in found.values()}
    if len(is_cross_layer) > 1:
        raise corrupt(folder, "holds files of a cross-layer transcoder and of others: a set is of one kind")
    lacking = sorted(set(range(model.dimensions.n_layers)) - found.keys())
    if is_cross_layer == {True} and lacking:
        layers = ", ".join(map(str, lacking))
        raise corrupt(folder, f"lacks layer {layers}: every layer of a cross-layer transcoder writes to later ones")


def set_folders(folder: Path, *, besides: Collection[str]) -> list[Path]:
    """The folders in *folder* that hold a set each, in order, without those in *besides*; a link that leads nowhere is
    one."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if _is_folder_or_lost(path) and not path.name.startswith("."))
    return [path for path in found if path.name not in besides]


def _is_folder_or_lost(path: Path) -> bool:
    return path.is_dir() or (path.is_symlink() and not path.exists())


def sets_in(folder: Path, model: ModelEntry, registered: Registered) -> list[AutoencoderEntry]:
    """The autoencoder sets in *folder*, by names of their own.

    They are named MODEL/FOLDER, or MODEL/FOLDER-DST where one folder holds sets that read different derived scalars.

    Raises:
        DataLoss: if a file is corrupt, or does not fit the model.
    """
    if folder.is_symlink() and not folder.exists():
        raise corrupt(folder, leads_nowhere(folder))
    found = open_sets(folder, model)
    entries = []
    for each in found:
        name = folder.name if len(found) == 1 else f"{folder.name}-{each.dst}"
        entry = replace(each, name=f"{model.name}/{name}", registered=registered)
        entry.digest_if_small()
        entries.append(entry)
    return entries


def _number_of(path: Path) -> int | None:
    """The layer in the name of weights, if that is a number."""
    return int(path.stem) if path.stem.isdecimal() else None


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"../{path.name}"


def _layer_of(file: LayerFile, dst: DerivedScalarType, model: ModelEntry, number: int | None = None) -> int | None:
    """The layer of a set's file: the one in the file, else *number*, else the one in its path.

    A file that names a hook point may have another number than its layer: the residual that enters layer 1 is the one
    that leaves layer 0.

    Raises:
        DataLoss: if it does not fit, or contradicts a native file.
    """
    path, header, layer = file.path, file.header, file.header.layer_index
    named = layer_in_path(path) if number is None else number
    if header.format == NATIVE.format and layer not in {None, named} and (number is not None or path.stem.isdecimal()):
        raise corrupt(path, f"says that it belongs to layer {layer}")
    if layer is None and (header.dst is None or header.format == NATIVE.format):
        layer = named
    problem = layer_problem(layer, dst, model) or misfit(header, dst, model)
    if problem:
        raise corrupt(path, problem)
    return layer


def _read_config(path: Path) -> dict[str, Any]:
    """The config of a set; empty if there is none, or if it is a file of another program, such as a training run's."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_small(File.at(path)))
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is no sound JSON: {error}") from error
    return config if isinstance(config, dict) and _is_a_set_s(config) else {}


def _is_a_set_s(config: dict[str, Any]) -> bool:
    """Whether a config names the input of a set, or has the figures of a layer."""
    layers = config.get("layers")
    rows = layers.values() if isinstance(layers, dict) else ()
    return "dst" in config or any(isinstance(row, dict) and _FIGURES & row.keys() for row in rows)


def _dst_of(
    folder: Path, config: dict[str, Any], header: AutoencoderHeader, dst: DerivedScalarType | None
) -> DerivedScalarType:
    """The input of a set's file: the one in the set's config, else in the file, else *dst*, else the name of the
    folder.

    If a file names a derived scalar that is equivalent to *dst*, it is *dst*.
    """
    said = {name for name in (config.get("dst"), header.dst) if isinstance(name, str)}
    named = {name for name in said if not agree(said, name)}
    if named:
        raise corrupt(folder, f"its files disagree on what they read: {', '.join(sorted(said))}")
    versioned = _VERSIONED.fullmatch(folder.name)
    name = config.get("dst") or header.dst
    if dst is not None and (name is None or (isinstance(name, str) and agree({name, dst.value}, dst.value))):
        return dst
    name = name or (versioned[1] if versioned else folder.name)
    try:
        return DerivedScalarType(name)
    except ValueError:
        raise corrupt(folder, f"{name!r} is no derived scalar type that its autoencoders could read") from None


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


def declared_by(by_layer: Mapping[int | None, LayerFile]) -> tuple[LayerCheck, ...]:
    """The figures that the files themselves declare: at most L0."""
    return tuple(
        LayerCheck(layer_index=layer or 0, l0=file.header.declared_l0, fraction_of_variance_unexplained=None)
        for layer, file in by_layer.items()
        if file.header.declared_l0 is not None
    )
