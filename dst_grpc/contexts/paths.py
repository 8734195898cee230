"""Allowed paths of clients: those that lead to regular files below the operator's roots.

A path is judged after following all links. One that leads outside is refused with the same message whether or not a
file exists there, so that clients cannot explore the server's disk. The file is opened here, once, and later reads use
that descriptor. It keeps the given name, as caches of published files name them by links to blobs that have no names.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.engine.files import OPEN_FLAGS, File, corrupt
from dst_grpc.errors import InvalidRequest, NotAllowed, NotFound, Reason
from dst_grpc.failures import raise_if_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)
_MAX_PATH_BYTES = 4096
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link that leads round in a circle",
}


class AllowedRoots:
    """The folders below which clients may name files."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Resolve *roots* once; raises InvalidRequest (field `autoencoder_roots[i]`) for one that is not a folder."""
        for i, root in enumerate(roots):
            if not root.is_dir():
                raise InvalidRequest.of(f"autoencoder_roots[{i}]", f"{str(root)!r} is not a folder")
        self._roots = tuple(root.resolve(strict=True) for root in roots)
        self._as_given = tuple(Path(os.path.normpath(root.absolute())) for root in roots)
        for root in self._roots:
            if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
                _log.warning("%s holds links to %s: allow that instead", root, root.parent.parent)

    def open(self, text: str) -> File:
        """The file that a client names by *text*, held open; a relative path is looked up below each root in turn.

        Nothing else is opened except folders. The file's path is the given one, normalised, if that is below a root;
        else the one that its links lead to.

        Raises:
            NotAllowed: (PATH_NOT_ALLOWED) if it is outside every root, is a folder, a FIFO, a socket or a device, or is
                not a valid path.
            NotFound: if it would be allowed, but does not exist.
            DataLoss: if it cannot be opened.
        """
        if not self._roots:
            raise _refused(text, "paths are not allowed on this server: name a registered autoencoder instead")
        problem = _no_path(text)
        if problem:
            raise _refused(text, problem)
        inside = self._inside(text)
        if not inside:
            raise _refused(text, f"{text!r} lies outside the folders that the operator allows, or leads out of them")
        for start, root, path in inside:
            descriptor = _opened_below(text, root, path)
            if descriptor is not None:
                return File.held_open(self._named(start / text, path), descriptor)
        raise NotFound(
            f"there is no file {text!r}",
            resource_type="autoencoder",
            resource_name=text,
            reason=Reason.AUTOENCODER_NOT_FOUND,
            metadata={"resource_type": "autoencoder", "resource_name": text},
        )

    def _inside(self, text: str) -> list[tuple[Path, Path, Path]]:
        """The paths that *text* leads to, from each root, with the root that each is below; none twice."""
        found: dict[Path, tuple[Path, Path]] = {}
        for start in self._roots:
            path = _resolved(start / text)
            root = next((root for root in self._roots if path.is_relative_to(root)), None)
            if root is not None:
                found.setdefault(path, (start, root))
        return [(start, root, path) for path, (start, root) in found.items()]

    def _named(self, given: Path, path: Path) -> Path:
        """*given*, which leads to *path*, without dots and below a root; *path* if there is no such form."""
        plain = Path(os.path.normpath(given))
        for before, root in zip((*self._roots, *self._as_given), self._roots * 2, strict=True):
            if plain.is_relative_to(before):
                named = root / plain.relative_to(before)
                # Dots after a link to a folder are relative to the folder that the link leads to.
                return named if _resolved(named) == path else path
        return path


def _no_path(text: str) -> str:
    """Why *text* cannot be the path of a file; empty if it can."""
    if not text:
        return "a path must not be empty"
    if "\0" in text:
        return f"{text[:_MAX_PATH_BYTES]!r} is no path: it holds a NUL character"
    if len(os.fsencode(text)) > _MAX_PATH_BYTES:
        return f"a path of {len(os.fsencode(text))} bytes is too long: at most {_MAX_PATH_BYTES} are allowed"
    if _URL.match(text):
        return f"{text!r} is a URL: only files of the server are read, by their paths"
    return ""


def _resolved(path: Path) -> Path:
    """*path* with its links followed; one that cannot be followed stays, and `_opened_below` reports it."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # Python before 3.13 raises for cycles of links
        return Path(os.path.normpath(path))


def _opened_below(text: str, root: Path, path: Path) -> int | None:
    """Descriptor of the regular file at *path*, following no link below *root*; None if it does not exist.

    Each folder is opened relative to the one before, so that a link created meanwhile is not followed. The file is
    looked up before it is opened, since opening a device may have side effects.
    """
    *folders, name = path.relative_to(root).parts or (".",)
    descriptors = []
    try:
        descriptors.append(os.open(root, _FOLDER_FLAGS))
        for folder in folders:
            descriptors.append(os.open(folder, _FOLDER_FLAGS, dir_fd=descriptors[-1]))
        status = os.stat(name, dir_fd=descriptors[-1], follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise _refused(text, f"{text!r} is not a regular file but {kind}")
        return _opened(path, name, descriptors[-1])
    except (FileNotFoundError, NotADirectoryError):  # the latter also for a link in place of a folder
        return None
    except OSError as error:
        raise_if_out_of_memory(error)
        raise _refused(text, f"{text!r} cannot be opened: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _opened(path: Path, name: str, folder: int) -> int:
    try:
        return os.open(name, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a file without read permission, or a link created meanwhile
        raise_if_out_of_memory(error)
        raise corrupt(path, f"cannot be read: {error.strerror}") from None


def _refused(text: str, problem: str) -> NotAllowed:
    return NotAllowed(problem, reason=Reason.PATH_NOT_ALLOWED, metadata={"path": text})
