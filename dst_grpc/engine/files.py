"""Files of a checkpoint: how one is opened, what their digest is, whether they changed since they were registered.

A file is identified by what the system says of it once it is open, not by its path: whatever is read was read from the
very file that was checked. Knows nothing of what is inside; that is `safetensors_file`, `checkpoint` and `formats`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dst_grpc.errors import DataLoss, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import stat_result
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
# Opening must not wait: what was a file a moment ago may be a FIFO by now.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Identity(NamedTuple):
    """What tells a file from every other, and from itself after it was written to."""

    device: int
    inode: int
    size_bytes: int
    modified_nanos: int

    @classmethod
    def of(cls, status: stat_result) -> Identity:
        """The identity of the file of *status*."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def label(path: Path) -> str:
    """How messages name a file: with its folder, but without the rest of the server's tree."""
    return f"{path.parent.name}/{path.name}"


def corrupt(path: Path, problem: str) -> DataLoss:
    """The error for a file that is not what it should be."""
    return DataLoss(f"{label(path)}: {problem}", metadata={"file": label(path)})


def changed(path: Path) -> DataLoss:
    """The error for a file that is no longer the one that was checked."""
    return DataLoss(
        f"{label(path)}: changed since it was checked; ask again, or reload the registry, to use the new file",
        reason=Reason.DIGEST_MISMATCH,
        metadata={"file": label(path)},
    )


def regular_file_status(path: Path) -> stat_result:
    """Status of the file at *path*, looked up before it is opened: to open a device may do something to it.

    Raises:
        DataLoss: if there is none, or it is a directory, a FIFO or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    _check_regular(path, status)
    return status


def _check_regular(path: Path, status: stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise corrupt(path, "is not a regular file")


class OpenFile:
    """A regular file that is open. Made by `opened`."""

    def __init__(self, path: Path, descriptor: int, identity: Identity) -> None:
        """Read *descriptor*, which belongs to whoever opened it."""
        self.path = path
        self.descriptor = descriptor
        self.identity = identity

    def read(self, offset: int, n_bytes: int) -> bytes:
        """*n_bytes* from byte *offset* on; raises DataLoss if the file ends before."""
        block = bytearray(n_bytes)
        self.read_into(offset, memoryview(block))
        return bytes(block)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill *target* from byte *offset* on; raises DataLoss if the file ends before, or cannot be read."""
        done = 0
        while done < len(target):
            try:
                n_bytes = os.preadv(self.descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise corrupt(self.path, f"cannot be read: {error.strerror}") from error
            if not n_bytes:
                raise changed(self.path)
            done += n_bytes

    def check_unchanged(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) if somebody wrote to it since it was opened."""
        if Identity.of(os.fstat(self.descriptor)) != self.identity:
            raise changed(self.path)


@contextmanager
def opened(path: Path, identity: Identity | None = None) -> Iterator[OpenFile]:
    """The regular file at *path*, open for reading, and unchanged until the block ends.

    Args:
        path: where it lies.
        identity: of the one file that will do; None = any.

    Raises:
        DataLoss: if it is missing, no regular file or cannot be read; (DIGEST_MISMATCH) if it is another file, or
            somebody wrote to it meanwhile.
    """
    regular_file_status(path)
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status)
        file = OpenFile(path, descriptor, Identity.of(status))
        if identity not in {None, file.identity}:
            raise changed(path)
        yield file
        file.check_unchanged()
    finally:
        os.close(descriptor)


def read_small(path: Path, limit_bytes: int = 1 << 20) -> bytes:
    """Contents of a file that has no business being large.

    Raises:
        DataLoss: if it cannot be read or is longer than *limit_bytes*.
    """
    with opened(path) as file:
        size = file.identity.size_bytes
        if size > limit_bytes:
            raise corrupt(path, f"has {size} bytes; at most {limit_bytes} were expected")
        return file.read(0, size)


class FileSet:
    """The files of one checkpoint, by the name that each has in it, as they were when this was made."""

    def __init__(self, files: Mapping[str, Path], identities: Mapping[str, Identity] | None = None) -> None:
        """Note which file each is, unless *identities* tell; raises DataLoss if one is missing or no regular file."""
        self._files = dict(sorted(files.items()))
        known = identities or {}
        self._identities = {name: known.get(name) or _identity(path) for name, path in self._files.items()}
        self._digest = ""
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each file, in order."""
        return tuple(self._files)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(identity.size_bytes for identity in self._identities.values())

    @property
    def known_digest(self) -> str:
        """The digest if somebody has asked for it before, else the empty string."""
        return self._digest

    def identity(self) -> str:
        """A text that differs once another file lies in the place of one of these, or it is written to."""
        return "\0".join(f"{name}\0{path}\0{tuple(self._identities[name])}" for name, path in self._files.items())

    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names, sizes and contents in the names' order. Reads every byte, once.

        Raises:
            DataLoss: if a file changed since this was made, or cannot be read.
        """
        with self._lock:
            if not self._digest:
                sha = hashlib.sha256()
                for name, path in self._files.items():
                    sha.update(f"{name}\0{self._identities[name].size_bytes}\0".encode())
                    _feed(sha, path, self._identities[name])
                self.check_unchanged()
                self._digest = sha.hexdigest()
            return self._digest

    def digest_of(self, name: str) -> str:
        """SHA-256, in hexadecimal, of the content of the file *name*. Reads it once; raises as `digest` does."""
        with self._lock:
            if name not in self._digests:
                sha = hashlib.sha256()
                _feed(sha, self._files[name], self._identities[name])
                self._digests[name] = sha.hexdigest()
            return self._digests[name]

    def check_unchanged(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) if a file is no longer the one that was registered."""
        for name, path in self._files.items():
            if _identity(path) != self._identities[name]:
                raise changed(path)


def _identity(path: Path) -> Identity:
    return Identity.of(regular_file_status(path))


def _feed(sha: hashlib._Hash, path: Path, identity: Identity) -> None:
    with opened(path, identity) as file:
        block = memoryview(bytearray(min(_BLOCK_BYTES, identity.size_bytes)))
        for begin in range(0, identity.size_bytes, _BLOCK_BYTES):
            part = block[: identity.size_bytes - begin]
            file.read_into(begin, part)
            sha.update(part)
