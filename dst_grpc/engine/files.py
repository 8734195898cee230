"""Files of a checkpoint: which may be opened, what their digest is, whether they changed since they were registered.

Knows nothing of what is inside them; that is `safetensors_file`, `checkpoint` and `formats`.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from typing import TYPE_CHECKING

from dst_grpc.errors import DataLoss, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import stat_result
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
_Identity = tuple[int, int, int, int]


def label(path: Path) -> str:
    """How messages name a file: with its folder, but without the rest of the server's tree."""
    return f"{path.parent.name}/{path.name}"


def corrupt(path: Path, problem: str) -> DataLoss:
    """The error for a file that is not what it should be."""
    return DataLoss(f"{label(path)}: {problem}", metadata={"file": label(path)})


def regular_file_status(path: Path) -> stat_result:
    """Status of the file at *path*, looked up before it is opened: opening a FIFO would wait for a writer for ever.

    Raises:
        DataLoss: if there is none, or it is a directory, a FIFO or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise corrupt(path, "is not a regular file")
    return status


def read_small(path: Path, limit_bytes: int = 1 << 20) -> bytes:
    """Contents of a file that has no business being large.

    Raises:
        DataLoss: if it cannot be read or is longer than *limit_bytes*.
    """
    size = regular_file_status(path).st_size
    if size > limit_bytes:
        raise corrupt(path, f"has {size} bytes; at most {limit_bytes} were expected")
    try:
        return path.read_bytes()
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error


class FileSet:
    """The files of one checkpoint, by the name that each has in it, as they were when this was made."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Note size and age of every file; raises DataLoss if one is missing or no regular file."""
        self._files = dict(sorted(files.items()))
        self._identities = {name: _identity(path) for name, path in self._files.items()}
        self._digest = ""
        self._lock = threading.Lock()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size, _ in self._identities.values())

    @property
    def known_digest(self) -> str:
        """The digest if somebody has asked for it before, else the empty string."""
        return self._digest

    def identity(self) -> str:
        """A text that differs once another file lies in the place of one of these, or it is written to."""
        return "\0".join(f"{name}\0{path}\0{self._identities[name]}" for name, path in self._files.items())

    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names, sizes and contents in the names' order. Reads every byte, once.

        Raises:
            DataLoss: if a file changed since this was made, or cannot be read.
        """
        with self._lock:
            if not self._digest:
                self.check_unchanged()
                sha = hashlib.sha256()
                for name, path in self._files.items():
                    sha.update(f"{name}\0{self._identities[name][2]}\0".encode())
                    _feed(sha, path)
                self.check_unchanged()
                self._digest = sha.hexdigest()
            return self._digest

    def check_unchanged(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) if a file is no longer the one that was registered."""
        for name, path in self._files.items():
            if _identity(path) != self._identities[name]:
                raise DataLoss(
                    f"{label(path)}: changed since it was registered; restart the server to serve the new file",
                    reason=Reason.DIGEST_MISMATCH,
                    metadata={"file": label(path)},
                )


def _identity(path: Path) -> _Identity:
    status = regular_file_status(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _feed(sha: hashlib._Hash, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                sha.update(block)
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
