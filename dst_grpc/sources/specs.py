"""Specs: models and autoencoder sets as an operator registers them, with their sources and how they are loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dst_grpc.domain.components import TensorElementType
    from dst_grpc.domain.scalar_types import DerivedScalarType

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
AUTOENCODERS = "autoencoders"
"""Folder beside a model that has a folder for each set."""
TRANSCODERS = "transcoders"
"""Another such folder."""


def is_commit(revision: str) -> bool:
    """Whether *revision* is the full name of a commit, which always means the same files."""
    return _COMMIT.fullmatch(revision) is not None


def toml_key(name: str) -> str:
    """*name* as a key in TOML."""
    return name if _BARE_KEY.fullmatch(name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def field_of(model: str, autoencoders: str = "") -> str:
    """The path in the registry file of *model*, or of one of its *autoencoders*."""
    field = f"models.{toml_key(model)}"
    return f"{field}.autoencoders.{toml_key(autoencoders)}" if autoencoders else field


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSource:
    """Files that ship with the package."""

    def __str__(self) -> str:
        """For humans."""
        return "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A folder of this machine."""

    folder: Path
    """Its path, absolute or relative to the working folder."""

    def __str__(self) -> str:
        """For humans, without the path of the folder."""
        return "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A folder of a repository on the Hugging Face hub, or on a server that speaks its API."""

    repository: str
    """Owner and name, as in "org/name"."""
    revision: str
    """Commit, tag or branch, as the operator wrote it."""
    path: str = ""
    """Folder within the repository, without slashes at its ends; empty for its root."""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit."""
        return is_commit(self.revision)

    def below(self, folder: str) -> HubSource:
        """The *folder* within this one."""
        path = f"{self.path}/{folder}" if self.path else folder
        return HubSource(repository=self.repository, revision=self.revision, path=path)

    def __str__(self) -> str:
        """For humans."""
        return f"hub:{self.repository}" + (f"/{self.path}" if self.path else "")


Source = EmbeddedSource | FolderSource | HubSource


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSpec:
    """An autoencoder set, as registered."""

    name: str
    """Its name within its model; clients say MODEL/NAME."""
    source: Source | None = None
    """Its source; None = the folder autoencoders/NAME beside its model."""
    pattern: str | None = None
    """Pattern of its files in the source, with {layer} for the number of the layer; None = the source is a folder of
    its own."""
    layers: tuple[int, ...] | None = None
    """Layers to serve; None = all that are found."""
    dst: DerivedScalarType | None = None
    """The derived scalar that it reads; None = as its files say."""
    digest: str = ""
    """SHA-256 over all its files, as the catalogue reports it; empty = not checked."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of single files, by name."""
    allow_failed_checks: bool = False
    """Whether to serve it even if its self-check fails."""
    in_files: bool = False
    """Whether encoders and decoders, of transcoders, stay in their files, and are read as they are needed."""
    preload: bool = False
    """Whether to load it before the server is ready."""
    pin: bool = False
    """Whether it is pinned: not evicted to make room for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model, as registered."""

    name: str
    """The name that clients use."""
    source: Source
    """Its source."""
    element_type: TensorElementType | None = None
    """Element type of its weights once loaded; None = float32."""
    device: str | None = None
    """Its device; None = the server's."""
    digest: str = ""
    """SHA-256 over all its files, as the catalogue reports it; empty = not checked."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of single files, by name."""
    is_default: bool = False
    """Whether it is the model of requests that name none."""
    preload: bool = False
    """Whether to load it before the server is ready."""
    pin: bool = False
    """Whether it is pinned: not evicted to make room for others."""
    autoencoders: tuple[AutoencoderSpec, ...] = ()
    """The sets that are registered for it, by name."""

    def source_of(self, autoencoders: AutoencoderSpec) -> Source:
        """The source of a set of this model."""
        if autoencoders.source is not None:
            return autoencoders.source
        folder = f"{AUTOENCODERS}/{autoencoders.name}"
        match self.source:
            case FolderSource():
                return FolderSource(folder=self.source.folder / folder)
            case HubSource():
                return self.source.below(folder)
            case EmbeddedSource():
                return self.source
