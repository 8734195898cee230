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

from dst_grpc.contexts.entries import AutoencoderEntry, Registered
from dst_grpc.contexts.fit import agree, disagreement, layer_problem, misfit
from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.files import FileSet, changed, corrupt, label, read_small
from dst_grpc.engine.formats.detect import SUFFIXES, files_beside, has_own_name, read_header
from dst_grpc.engine.formats.format import layer_in_path
from dst_grpc.errors import InvalidRequest, NotAllowed, NotFound, Reason, Violations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.paths import AllowedRoots
    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.engine.files import Identity
    from dst_grpc.engine.formats.header import AutoencoderHeader

_T = DerivedScalarType
_CONFIG = "config.json"
_FIELD = "autoencoder_path_by_layer_index"
_MAX_DEPTH = 6
_LAYER_FOLDERS = frozenset({"autoencoders"})
_NOT_WEIGHTS = frozenset({"sparsity.safetensors"})
_VERSIONED = re.compile(r"(.+?)(_v\d.*)?")


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

    def entry(self, name: str, model: ModelEntry, registered: Registered | None = None) -> AutoencoderEntry:
        """The set as something that can be loaded, called *name*, with what the operator says of it."""
        return AutoencoderEntry(
            name=name,
            element_type=model.element_type,
            device=model.device,
            files=self.files,
            registered=registered or Registered(),
            model=model,
            dst=self.dst,
            headers=self.headers,
            declared=self.declared,
        )


def open_set(
    folder: Path,
    model: ModelEntry,
    *,
    dst: DerivedScalarType | None = None,
    layers: Collection[int] | None = None,
    files: Mapping[int, Path] | None = None,
    names: Collection[str] | None = None,
) -> FoundSet:
    """The one autoencoder set of *model* in *folder*; with *dst*, that of its sets which reads it.

    Args:
        folder: where it lies.
        model: the model that it is for.
        dst: what it reads; None = as its files say. Files that do not say are taken to read it.
        layers: the layers to take, of those that are there; None = all.
        files: its weights below *folder*, by the layer that their names say; None = whatever lies there.
        names: the files below *folder* that are its own, by name; None = all.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or the folder holds several sets, or none.
    """
    found = open_sets(folder, model, dst=dst, layers=layers, files=files, names=names)
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
) -> tuple[FoundSet, ...]:
    """Every autoencoder set of *model* in *folder*, one for each derived scalar that its files read.

    The arguments are those of `open_set`.

    Raises:
        DataLoss: if a file is corrupt, does not fit the model, or there is none.
    """
    config = _read_config(folder / _CONFIG) if names is None or _CONFIG in names else {}
    by_dst: dict[DerivedScalarType, dict[int | None, AutoencoderHeader]] = {}
    weights: Iterable[tuple[int | None, Path]] = files.items() if files is not None else _weights_below(folder, names)
    has_weights = False
    for number, path in weights:
        has_weights = True
        if layers is not None and number is not None and number not in layers:
            continue
        header = read_header(path)
        reads = _dst_of(folder, config, header, dst)
        layer = _layer_of(header, reads, model, None if files is None else number)
        if layers is not None and layer not in layers:
            continue
        other = by_dst.setdefault(reads, {}).setdefault(layer, header)
        if other is not header:
            raise corrupt(path, f"is the second autoencoder of its layer, beside {_below(other.path, folder)}")
    if not by_dst:
        raise corrupt(folder, "holds no autoencoder of these layers" if has_weights else "holds no autoencoders")
    return tuple(_found_set(folder, config, reads, by_layer) for reads, by_layer in sorted(by_dst.items()))


def _found_set(
    folder: Path, config: dict[str, Any], dst: DerivedScalarType, by_layer: Mapping[int | None, AutoencoderHeader]
) -> FoundSet:
    if len({header.n_latents for header in by_layer.values()}) > 1:
        raise corrupt(folder, "holds autoencoders that differ in their number of latents")
    headers = tuple(sorted(by_layer.items(), key=lambda item: -1 if item[0] is None else item[0]))
    files = {_below(path, folder): path for _, header in headers for path in (header.path, *header.other_files)}
    identities = {_below(header.path, folder): header.identity for _, header in headers}
    layers = {layer or 0 for layer in by_layer}
    declared = tuple(check for check in _declared(folder / _CONFIG, config) if check.layer_index in layers)
    if config:
        files[_CONFIG] = folder / _CONFIG
    return FoundSet(
        folder=folder,
        format="/".join(sorted({header.format for _, header in headers})),
        dst=dst,
        headers=headers,
        declared=declared or declared_by(headers),
        files=FileSet(files, identities),
    )


def sets_beside(
    model: ModelEntry, folder: Path, *, besides: Collection[str] = (), registered: Registered | None = None
) -> list[AutoencoderEntry]:
    """The autoencoder sets in *folder*, in folders of their own that are not among *besides*.

    They are named MODEL/FOLDER, or MODEL/FOLDER-DST where one folder holds sets that read different derived scalars.

    Raises:
        DataLoss: if a file is corrupt, or does not fit the model.
    """
    if not folder.is_dir():
        return []
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    entries = []
    for one in (kind for kind in kinds if kind.name not in besides):
        found = open_sets(one, model)
        for each in found:
            name = one.name if len(found) == 1 else f"{one.name}-{each.dst}"
            entry = each.entry(f"{model.name}/{name}", model, registered)
            entry.digest_if_small()
            entries.append(entry)
    return entries


def _weights_below(folder: Path, names: Collection[str] | None) -> Iterator[tuple[int | None, Path]]:
    """The files of weights below *folder*, in order, with the layer that their own name is, if it is a number.

    Raises:
        DataLoss: for one of *folder* itself that is named oddly.
    """
    for place, folders, found in os.walk(folder):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _MAX_DEPTH)
        for name in sorted(found):
            path = here / name
            if path.suffix not in SUFFIXES or name.startswith(".") or name in _NOT_WEIGHTS:
                continue
            if names is not None and path.relative_to(folder).as_posix() not in names:
                continue
            if has_own_name(path):
                yield None, path
            elif path.stem.isdecimal() and (not depth or here.name in _LAYER_FOLDERS):
                yield int(path.stem), path
            elif not depth:
                raise corrupt(path, "is named after no layer: LAYER.safetensors or LAYER.pt is expected")


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"../{path.name}"


def _layer_of(
    header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry, number: int | None = None
) -> int | None:
    """The layer of a set's file: as the file says, else *number*, else as its path does.

    Where a file says it by the name of a hook, that may be another number than the layer's: what enters layer 1 is what
    leaves layer 0.

    Raises:
        DataLoss: if it does not fit, or is a native file that says otherwise.
    """
    path, layer = header.path, header.layer_index
    named = layer_in_path(path) if number is None else number
    if header.format == "native" and layer not in {None, named} and (number is not None or path.stem.isdecimal()):
        raise corrupt(path, f"says that it belongs to layer {layer}")
    if layer is None and (header.dst is None or header.format == "native"):
        layer = named
    problem = layer_problem(layer, dst, model) or misfit(header, dst, model)
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


def _dst_of(
    folder: Path, config: dict[str, Any], header: AutoencoderHeader, dst: DerivedScalarType | None
) -> DerivedScalarType:
    """What a set's file reads: as the set's config says, else the file, else *dst*, else the name of the folder.

    Where a file names a derived scalar that is as good as *dst*, it is *dst*.
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
    if AUTOENCODER_INPUTS[config.dst].width(model.dimensions) is None:
        raise InvalidRequest.of("dst", f"{config.dst} cannot be read by an autoencoder")
    problems = Violations()
    headers: list[tuple[int | None, AutoencoderHeader]] = []
    identities: dict[Path, Identity] = {}
    for i, (layer, text) in enumerate(config.autoencoder_path_by_layer_index):
        problem = layer_problem(layer, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].layer_index", problem)
        path, identity = roots.regular_file(text)
        if path.suffix not in SUFFIXES:
            problems.add(f"{_FIELD}[{i}].path", f"must end in {', '.join(SUFFIXES)}")
            continue
        identities |= {path: identity} | _allowed_beside(path, roots)
        header = read_header(path, identity)
        for late in set(header.other_files) - identities.keys():
            raise changed(late)  # it came to lie there once the others were allowed
        problem = disagreement(header, config.dst, layer) or misfit(header, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].path", problem)
        headers.append((layer, header))
    if len({header.n_latents for _, header in headers}) > 1:
        problems.add(_FIELD, "the autoencoders must have equally many latents")
    problems.raise_if_any()
    paths = {f"{layer}/{path.name}": path for layer, header in headers for path in (header.path, *header.other_files)}
    files = FileSet(paths, {name: identities[path] for name, path in paths.items()})
    facts = f"{model.name}\0{config.dst}\0{files.identity()}"
    return AutoencoderEntry(
        name=f"path/{hashlib.sha256(facts.encode()).hexdigest()[:12]}",
        element_type=model.element_type,
        device=model.device,
        files=files,
        model=model,
        dst=config.dst,
        registered=Registered(source="path"),
        headers=tuple(headers),
        declared=declared_by(tuple(headers)),
        is_anonymous=True,
    )


def _allowed_beside(path: Path, roots: AllowedRoots) -> dict[Path, Identity]:
    """Which files those are that opening *path* reads besides it; raises NotAllowed unless a client may name them."""
    found = {}
    for beside in files_beside(path):
        try:
            found[beside] = roots.regular_file(str(beside)).identity
        except (NotAllowed, NotFound):
            problem = f"{label(beside)} belongs to a file that is named, and lies outside what the operator allows"
            raise NotAllowed(problem, reason=Reason.PATH_NOT_ALLOWED, metadata={"path": label(beside)}) from None
    return found
