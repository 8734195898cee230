"""Finding autoencoder sets: those beside a model, FOLDER/autoencoders/KIND/LAYER.safetensors, and those of a config.

Reads headers only. Which entries a server has, and under which names clients find them, is the registry's.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from dst_grpc.contexts.autoencoders import input_width
from dst_grpc.contexts.entries import AutoencoderEntry, Registered
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.files import FileSet, corrupt, read_small
from dst_grpc.engine.formats.native import SUFFIXES, read_header
from dst_grpc.errors import InvalidRequest, Violations

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.paths import AllowedRoots
    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.engine.formats.native import AutoencoderHeader

_CONFIG = "config.json"
_FIELD = "autoencoder_path_by_layer_index"


def sets_beside(
    model: ModelEntry, folder: Path, *, besides: Collection[str] = (), registered: Registered | None = None
) -> list[AutoencoderEntry]:
    """The autoencoder sets in *folder*, one per folder of its own that is not among *besides*, named MODEL/KIND.

    Raises:
        DataLoss: if a file is corrupt, or does not fit the model.
    """
    if not folder.is_dir():
        return []
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [set_in(model, kind, registered=registered) for kind in kinds if kind.name not in besides]
    for entry in found:
        entry.digest_if_small()
    return found


def set_in(
    model: ModelEntry,
    folder: Path,
    *,
    name: str = "",
    dst: DerivedScalarType | None = None,
    layers: Collection[int] | None = None,
    registered: Registered | None = None,
) -> AutoencoderEntry:
    """The autoencoder set that *folder* is, with a file per layer.

    Args:
        model: the model that it is for.
        folder: where it is.
        name: its name; empty = MODEL/FOLDER.
        dst: what it reads; None = as its files say.
        layers: the layers to take, of those that are there; None = all.
        registered: what the operator says of it.

    Raises:
        DataLoss: if a file is corrupt, or does not fit the model; or if there is none.
    """
    by_layer: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        if not path.stem.isdecimal():
            raise corrupt(path, "is named after no layer: LAYER.safetensors or LAYER.pt is expected")
        if by_layer.setdefault(int(path.stem), path) != path:
            raise corrupt(path, "is the second autoencoder of its layer")
    taken = {layer: path for layer, path in by_layer.items() if layers is None or layer in layers}
    if not taken:
        raise corrupt(folder, "holds no autoencoders" if not by_layer else "holds no autoencoder of these layers")
    name = name or f"{model.name}/{folder.name}"
    return set_of_layers(model, folder, taken, name=name, dst=dst, registered=registered)


def set_of_layers(
    model: ModelEntry,
    folder: Path,
    by_layer: Mapping[int, Path],
    *,
    name: str,
    dst: DerivedScalarType | None = None,
    registered: Registered | None = None,
) -> AutoencoderEntry:
    """The autoencoder set of the files *by_layer*, which lie below *folder*; the rest is as in `set_in`."""
    config = _read_config(folder / _CONFIG)
    headers = {layer: read_header(path) for layer, path in sorted(by_layer.items())}
    dst = _dst_of(folder, config, headers, dst)
    for layer, header in headers.items():
        _check_in_folder(header, layer, dst, model)
    if len({header.n_latents for header in headers.values()}) > 1:
        raise corrupt(folder, "holds autoencoders that differ in their number of latents")
    files = {path.relative_to(folder).as_posix(): path for path in by_layer.values()}
    if config:
        files[_CONFIG] = folder / _CONFIG
    return AutoencoderEntry(
        name=name,
        element_type=model.element_type,
        device=model.device,
        files=FileSet(files),
        registered=registered or Registered(),
        model=model,
        dst=dst,
        headers=tuple(headers.items()),
        declared=tuple(check for check in _declared(folder / _CONFIG, config) if check.layer_index in headers),
    )


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
    folder: Path, config: dict[str, Any], headers: dict[int, AutoencoderHeader], dst: DerivedScalarType | None
) -> DerivedScalarType:
    """What the set reads: as the operator says, its config, or its files, which must agree; else its folder's name."""
    said = {dst.value} if dst is not None else set()
    said |= {header.dst for header in headers.values() if header.dst}
    said |= {config["dst"]} if isinstance(config.get("dst"), str) else set()
    if len(said) > 1:
        raise corrupt(folder, f"its files disagree on what they read: {', '.join(sorted(said))}")
    name = said.pop() if said else folder.name
    try:
        return DerivedScalarType(name)
    except ValueError:
        raise corrupt(folder, f"{name!r} is no derived scalar type that its autoencoders could read") from None


def _check_in_folder(header: AutoencoderHeader, layer: int, dst: DerivedScalarType, model: ModelEntry) -> None:
    if header.layer_index not in {None, layer}:
        raise corrupt(header.path, f"says that it belongs to layer {header.layer_index}")
    problem = _layer_problem(layer, dst, model) or _width_problem(header, dst, model)
    if problem:
        raise corrupt(header.path, problem)


def _layer_problem(layer: int | None, dst: DerivedScalarType, model: ModelEntry) -> str:
    if FACTS[dst].once:
        return "" if layer is None else f"must be absent: {dst} exists once per model"
    n_layers = model.dimensions.n_layers
    if layer is None:
        return f"is required: {dst} exists at every layer"
    return "" if layer < n_layers else f"layer {layer} does not exist: {model.name!r} has {n_layers} layers"


def _width_problem(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> str:
    width = input_width(dst, model.dimensions)
    if width is None:
        return f"{dst} cannot be read by an autoencoder"
    if header.n_inputs != width:
        return f"reads {header.n_inputs} inputs, but {dst} of {model.name!r} has {width}"
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
    if not all(math.isfinite(check.l0 + check.fraction_of_variance_unexplained) for check in checks):
        raise corrupt(path, "declares figures that are no numbers")
    return tuple(sorted(checks, key=lambda check: check.layer_index))


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
        path, identity = roots.regular_file(text)
        if path.suffix not in SUFFIXES:
            problems.add(f"{_FIELD}[{i}].path", f"must end in {' or '.join(SUFFIXES)}")
            continue
        header = read_header(path, identity)
        problem = _width_problem(header, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].path", problem)
        headers.append((layer, header))
    if len({header.n_latents for _, header in headers}) > 1:
        problems.add(_FIELD, "the autoencoders must have equally many latents")
    problems.raise_if_any()
    files = FileSet(
        {str(layer): header.path for layer, header in headers},
        {str(layer): header.identity for layer, header in headers},
    )
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
        is_anonymous=True,
    )
