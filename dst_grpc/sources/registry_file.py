"""The registry file: TOML that names models and autoencoder sets. Reading it opens no other file.

`examples/registry.toml` shows every key. Everything that is wrong is reported together, by its path in the file.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.sources.selections import pattern_problem
from dst_grpc.sources.specs import (
    AutoencoderSpec,
    EmbeddedSource,
    FolderSource,
    HubSource,
    ModelSpec,
    field_of,
    toml_key,
)
from dst_grpc.sources.toml_file import Table, near, read_toml

if TYPE_CHECKING:
    from dst_grpc.sources.specs import Source

ELEMENT_TYPES = {
    "f32": TensorElementType.FLOAT32,
    "bf16": TensorElementType.BFLOAT16,
    "f16": TensorElementType.FLOAT16,
}
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_DEFAULT: dict[str, Any] = {}


def read_registry(file: Path) -> tuple[ModelSpec, ...]:
    """The models that *file* names, in its order; relative folders are relative to its own.

    Raises:
        InvalidRequest: listing everything that is wrong with it.
    """
    problems = Violations()
    models: list[ModelSpec] = []
    content = Table(read_toml(file), "", problems)
    tables = content.take("models", dict, _NO_DEFAULT)
    content.finish()
    for name, table in tables.items():
        path = field_of(name)
        _check_name(name, path, problems)
        if isinstance(table, dict):
            models.append(_model(name, Table(table, path, problems), file.parent))
        else:
            problems.add(path, "must be a table")
    if not problems.fields:
        problems.check(bool(models), "models", "must name a model, as in [models.NAME]")
    for extra in [model for model in models if model.is_default][1:]:
        problems.add(f"{field_of(extra.name)}.default", "another model is the default already")
    problems.raise_if_any()
    return tuple(models)


def _model(name: str, table: Table, base: Path) -> ModelSpec:
    source = _source(table, base, allows_embedded=True)
    if source is None and not table.has_problem("source"):
        table.problem("source", "is required: { folder = ... }, { hub = ..., revision = ... } or { embedded = true }")
    device = table.take("device", str, "")
    table.check(not device or device == "auto" or is_device(device), "device", "must be auto, cpu, cuda, cuda:N or mps")
    element_type = table.take("element_type", str, "")
    table.check(not element_type or element_type in ELEMENT_TYPES, "element_type", "must be f32, bf16 or f16")
    sets = []
    for set_name, content in table.take("autoencoders", dict, _NO_DEFAULT).items():
        path = field_of(name, set_name)
        _check_name(set_name, path, table.problems)
        if isinstance(content, dict):
            sets.append(_autoencoders(set_name, Table(content, path, table.problems), base))
        else:
            table.problems.add(path, "must be a table")
    spec = ModelSpec(
        name=name,
        source=source or EmbeddedSource(),
        element_type=ELEMENT_TYPES.get(element_type),
        device=device or None,
        digest=_digest(table),
        digests=_digests(table),
        is_default=table.take("default", bool, False),
        preload=table.take("preload", bool, False),
        pin=table.take("pin", bool, False),
        autoencoders=tuple(sets),
    )
    table.finish()
    return spec


def _autoencoders(name: str, table: Table, base: Path) -> AutoencoderSpec:
    pattern = table.take("pattern", str, "")
    problem = pattern_problem(pattern) if pattern else ""
    table.check(not problem, "pattern", problem)
    dst = table.take("dst", str, "")
    known = {one.value: one for one in DerivedScalarType}
    table.check(not dst or dst in known, "dst", f"there is no derived scalar type {dst!r}{near(dst, known)}")
    spec = AutoencoderSpec(
        name=name,
        source=_source(table, base, allows_embedded=False),
        pattern=pattern or None,
        layers=_layers(table),
        dst=known.get(dst),
        digest=_digest(table),
        digests=_digests(table),
        allow_failed_checks=table.take("allow_failed_checks", bool, False),
        in_files=table.take("in_files", bool, False),
        preload=table.take("preload", bool, False),
        pin=table.take("pin", bool, False),
    )
    table.finish()
    return spec


def _source(table: Table, base: Path, *, allows_embedded: bool) -> Source | None:
    """The source of a model or set; None if it is absent or wrong."""
    content = table.take("source", dict, None)
    if content is None:
        return None
    source = Table(content, f"{table.path}.source", table.problems)
    kinds = [kind for kind in ("folder", "hub", "embedded") if kind in content]
    if len(kinds) != 1:
        table.problem("source", "must have one of the keys folder, hub and embedded")
        return None
    found: Source | None
    match kinds[0]:
        case "folder":
            found = FolderSource(folder=base / Path(source.take("folder", str, "")).expanduser())
        case "hub":
            found = _hub(source)
        case _:
            source.check(source.take("embedded", bool, True), "embedded", "can only be true")
            source.check(
                allows_embedded, "embedded", "is for models; without a source, the set beside its model is taken"
            )
            found = EmbeddedSource()
    source.finish()
    return found


def _hub(source: Table) -> HubSource:
    repository = source.take("hub", str, "")
    source.check(
        not repository or bool(_REPOSITORY.fullmatch(repository)), "hub", 'must be a repository, as in "org/name"'
    )
    revision = source.take("revision", str, "")
    if not revision and not source.has_problem("revision"):
        source.problem("revision", "is required: a commit (40 digits), a tag, or a branch such as main")
    named = not revision or (_REVISION.fullmatch(revision) is not None and ".." not in revision)
    source.check(named, "revision", f"{revision!r} cannot be a commit, a tag or a branch")
    path = source.take("path", str, "")
    plain = not path or ("\\" not in path and str(PurePosixPath(path)) == path and not _leaves(path))
    source.check(plain, "path", "must be a folder in the repository, without a slash at either end and without ..")
    return HubSource(repository=repository, revision=revision, path=path)


def _leaves(path: str) -> bool:
    return path in {".", "/"} or path.startswith("/") or ".." in path.split("/")


def _layers(table: Table) -> tuple[int, ...] | None:
    given = table.take("layers", list, None)
    if given is None:
        return None
    if given and all(type(layer) is int and layer >= 0 for layer in given) and len(set(given)) == len(given):
        return tuple(sorted(given))
    table.problem("layers", "must be a list of different layers, as in [0, 1]")
    return None


def _digest(table: Table) -> str:
    digest: str = table.take("digest", str, "")
    table.check(
        not digest or bool(_SHA256.fullmatch(digest)), "digest", "must be a SHA-256: 64 hexadecimal digits, a-f"
    )
    return digest


def _digests(table: Table) -> dict[str, str]:
    digests: dict[str, Any] = table.take("digests", dict, _NO_DEFAULT)
    for name, digest in digests.items():
        sound = isinstance(digest, str) and _SHA256.fullmatch(digest)
        table.check(bool(sound), f"digests.{toml_key(name)}", "must be a SHA-256: 64 hexadecimal digits, a-f")
    return digests


def _check_name(name: str, path: str, problems: Violations) -> None:
    try:
        ContextRef.parse(name)
    except InvalidRequest as error:
        problems.extend(error, path)
        return
    problems.check("@" not in name, path, f"{name!r} is a handle, not a name")
    problems.check("/" not in name, path, "must not hold a slash: it stands between a model and its autoencoder set")
