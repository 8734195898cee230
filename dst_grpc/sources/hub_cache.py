"""The cache folder of files pulled from the hub, and its lock files, which list what is complete.

    FOLDER/ORG--NAME/lock.json       which commit a revision was, which files are there, which selections are whole
    FOLDER/ORG--NAME/COMMIT/...      the files, as they lie in the repository

Reads locks and the sizes of files; `pull` fetches. A file is in the lock only once its content was checked, and a
selection only once all its files are.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst_grpc.engine.files import CorruptFile, corrupt
from dst_grpc.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.sources.specs import HubSource

LOCK = "lock.json"


def default_folder() -> Path:
    """The platform's folder for caches."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dst-grpc" / "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledFile:
    """A file whose content was checked when it was pulled."""

    size: int
    """Its bytes."""
    sha256: str
    """SHA-256 of its content."""

    def is_at(self, path: Path) -> bool:
        """Whether a file of this size is at *path*."""
        return path.is_file() and path.stat().st_size == self.size


@dataclass(slots=True, kw_only=True)
class Commit:
    """The pulled files of one commit."""

    files: dict[str, PulledFile] = field(default_factory=dict)
    """The files, by name in the repository."""
    selections: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The files of each complete selection, by its key."""


@dataclass(slots=True, kw_only=True)
class Lock:
    """The pulled files of one repository."""

    revisions: dict[str, str] = field(default_factory=dict)
    """The commit of each tag or branch when it was last pulled."""
    commits: dict[str, Commit] = field(default_factory=dict)
    """The pulled files of each commit."""

    def commit_of(self, source: HubSource) -> str | None:
        """The commit of *source* when it was pulled; None if its revision never was."""
        return source.revision if source.is_pinned else self.revisions.get(source.revision)

    @classmethod
    def read(cls, path: Path) -> Lock:
        """The lock at *path*, empty if there is none; raises DataLoss if it is invalid."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise corrupt(path, f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise corrupt(path, f"cannot be read: {error}") from error
        try:
            content = json.loads(text)
            return cls(
                revisions={str(name): str(commit) for name, commit in content["revisions"].items()},
                commits={commit: _commit(facts) for commit, facts in content["commits"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise corrupt(path, "is no sound lock: remove it, and pull again") from error

    def write(self, path: Path) -> None:
        """Write the lock to *path*, atomically."""
        content = {
            "revisions": dict(sorted(self.revisions.items())),
            "commits": {
                name: {
                    "files": {
                        file: {"size": facts.size, "sha256": facts.sha256}
                        for file, facts in sorted(commit.files.items())
                    },
                    "selections": {key: list(files) for key, files in sorted(commit.selections.items())},
                }
                for name, commit in sorted(self.commits.items())
            },
        }
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)


def _commit(facts: Mapping[str, Any]) -> Commit:
    return Commit(
        files={
            str(name): PulledFile(size=int(file["size"]), sha256=str(file["sha256"]))
            for name, file in facts["files"].items()
        },
        selections={str(key): tuple(map(str, files)) for key, files in facts["selections"].items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A complete model or autoencoder set in the cache."""

    folder: Path
    """The folder that its source names, within the commit."""
    commit: str
    """The commit."""
    names: tuple[str, ...]
    """Its files, by name below the folder."""


class HubCache:
    """Pulled files below one folder."""

    def __init__(self, folder: Path) -> None:
        """Use *folder*, which need not exist."""
        self.folder = folder

    def repository_folder(self, source: HubSource) -> Path:
        """The folder of the repository of *source*."""
        return self.folder / source.repository.replace("/", "--")

    def find(self, source: HubSource, key: str) -> Pulled | None:
        """The selection *key* of *source*; None if it was not pulled completely.

        Raises:
            DataLoss: if the lock is invalid, or a file that it lists is missing or has another size.
        """
        folder = self.repository_folder(source)
        lock = Lock.read(folder / LOCK)
        commit = lock.commit_of(source)
        if commit is None or commit not in lock.commits or key not in lock.commits[commit].selections:
            return None
        facts, folder = lock.commits[commit], folder / commit
        names = facts.selections[key]
        for name in names:
            if name not in facts.files or not facts.files[name].is_at(folder / name):
                problem = "is not what was pulled: pull it again"
                raise CorruptFile(folder / name, problem, reason=Reason.DIGEST_MISMATCH)
        prefix = f"{source.path}/" if source.path else ""
        return Pulled(
            folder=folder / source.path, commit=commit, names=tuple(name.removeprefix(prefix) for name in names)
        )

    def __repr__(self) -> str:
        """Its folder."""
        return f"HubCache({self.folder})"
