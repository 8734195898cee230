"""Files of a checkpoint: opening them safely, their digest, and whether they changed since they were registered.

A file is identified by device, inode, size and modification time, not by its path, so that everything is read from the
very file that was checked. Contents are parsed by `safetensors_file`, `checkpoint` and `formats`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dst_grpc.errors import DataLoss, Reason
from dst_grpc.failures import raise_if_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from os import stat_result
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
_POINTER = b"version https://git-lfs.github.com/spec/"
"""How what a repository holds in place of a large file begins, until Git LFS fetches that."""
_MAX_POINTER_BYTES = 1024
# Opening must not wait: what was a file a moment ago may be a FIFO by now.
OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Identity(NamedTuple):
    """Identifies a file: differs from that of any other file, and after the file was written to."""

    device: int
    inode: int
    size_bytes: int
    modified_nanos: int

    @classmethod
    def of(cls, status: stat_result) -> Identity:
        """The identity of the file of *status*."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def label(path: Path) -> str:
    """The name of a file in messages: with its folder, if it is named with one, but without the rest of its path."""
    return f"{path.parent.name}/{path.name}".removeprefix("/")


class CorruptFile(DataLoss):
    """A file whose content is wrong."""

    def __init__(
        self,
        path: Path,
        problem: str,
        *,
        name: str = "",
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """The file at *path* has a *problem*: the predicate of a sentence whose subject is its *name*.

        Without a *name* it is the file's label.
        """
        self.path, self.problem = path, problem
        name = name or label(path)
        super().__init__(f"{name}: {problem}", reason=reason, metadata={**(metadata or {}), "file": name})

    def below(self, root: Path) -> CorruptFile:
        """The same error, naming the file by its path below *root*, if it is there."""
        name = ""
        if self.path == root:
            name = root.name
        elif self.path.is_relative_to(root):
            name = self.path.relative_to(root).as_posix()
        return CorruptFile(self.path, self.problem, name=name, reason=self.reason, metadata=self.metadata)


def corrupt(path: Path, problem: str) -> CorruptFile:
    """The error for a file whose content is wrong."""
    return CorruptFile(path, problem)


def changed(path: Path) -> CorruptFile:
    """The error for a file that is no longer the one that was checked."""
    problem = "changed since it was checked; reload the registry to use the new file, or ask again if a path names it"
    return CorruptFile(path, problem, reason=Reason.DIGEST_MISMATCH)


def regular_file_status(path: Path) -> stat_result:
    """Status of the file at *path*, looked up before it is opened: to open a device may do something to it.

    Raises:
        DataLoss: if there is no file, or it is a directory, a FIFO or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise_if_out_of_memory(error)
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    _check_regular(path, status)
    return status


def _check_regular(path: Path, status: stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise corrupt(path, "is not a regular file")


def _check_no_pointer(path: Path, status: stat_result, descriptor: int) -> None:
    if status.st_size < _MAX_POINTER_BYTES and os.pread(descriptor, len(_POINTER), 0) == _POINTER:
        raise corrupt(path, "is a pointer of Git LFS to the file, not the file: git lfs pull fetches that")


class OpenFile:
    """A regular file that is open until it is closed or garbage collected."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over *descriptor*; raises DataLoss, and closes it, if it is not of a regular file, or of one that only
        stands for another."""
        self.path = path
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)
        """Close it now; a second time does nothing."""
        try:
            status = os.fstat(descriptor)
            _check_regular(path, status)
            _check_no_pointer(path, status, descriptor)
        except BaseException:
            self.close()
            raise
        self.identity = Identity.of(status)

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
                raise self._unreadable(error) from error
            if not n_bytes:
                raise changed(self.path)
            done += n_bytes

    def _unreadable(self, error: OSError) -> CorruptFile:
        raise_if_out_of_memory(error)
        return corrupt(self.path, f"cannot be read: {error.strerror}")

    def read_each(self, offsets: Iterable[int], n_bytes: int, target: memoryview) -> None:
        """Fill *target* with *n_bytes* from each of the bytes *offsets* on, one after the other; raises as
        `read_into` does."""
        descriptor, begin = self.descriptor, 0
        try:
            for offset in offsets:
                part = target[begin : begin + n_bytes]
                if os.preadv(descriptor, [part], offset) != n_bytes:  # rarely, so that `read_into` may be slower
                    self.read_into(offset, part)
                begin += n_bytes
        except OSError as error:
            raise self._unreadable(error) from error

    def check_unchanged(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) if it was written to since it was opened."""
        if Identity.of(os.fstat(self.descriptor)) != self.identity:
            raise changed(self.path)


class File:
    """A regular file with its identity: if it is replaced or written to, it is not read any more.

    While it is held open it is read through that one descriptor; otherwise each read opens it by its path.
    """

    __slots__ = ("_held", "identity", "path")

    def __init__(self, path: Path, identity: Identity, held: OpenFile | None = None) -> None:
        """Use `at` or `held_open`."""
        self.path = path
        self.identity = identity
        self._held = held

    @classmethod
    def at(cls, path: Path) -> File:
        """The file at *path*; raises DataLoss if there is none, or it is not a regular file."""
        return cls(path, Identity.of(regular_file_status(path)))

    @classmethod
    def held_open(cls, path: Path, descriptor: int) -> File:
        """The file of *descriptor*, which it takes over; raises DataLoss, and closes it, if it is not a regular
        file."""
        held = OpenFile(path, descriptor)
        return cls(path, held.identity, held)

    @contextmanager
    def opened(self) -> Iterator[OpenFile]:
        """The file, open for reading, and unchanged until the block ends.

        Raises:
            DataLoss: if it is missing, not a regular file or cannot be read; (DIGEST_MISMATCH) if it was replaced or
                written to.
        """
        held = self._held  # a reference of our own: `let_go` of another thread does not close it
        if held is not None:
            held.check_unchanged()
            yield held
            held.check_unchanged()
            return
        file = _opened(self.path)
        try:
            if file.identity != self.identity:
                raise changed(self.path)
            yield file
            file.check_unchanged()
        finally:
            file.close()

    def held(self) -> File:
        """The same file, held open until this is garbage collected; raises DataLoss as `opened` does."""
        held = self._held
        if held is None:
            held = _opened(self.path)
            if held.identity != self.identity:
                held.close()
                raise changed(self.path)
        return File(self.path, self.identity, held)

    def let_go(self) -> None:
        """Stop holding it open; reads in progress go on."""
        self._held = None

    def check_in_place(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) unless its path still leads to it, unchanged."""
        if Identity.of(regular_file_status(self.path)) != self.identity:
            raise changed(self.path)

    def __repr__(self) -> str:
        """Its path, and whether it is held open."""
        return f"File({label(self.path)}{', held open' if self._held is not None else ''})"


def _opened(path: Path) -> OpenFile:
    regular_file_status(path)
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except OSError as error:
        raise_if_out_of_memory(error)
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    return OpenFile(path, descriptor)


def read_small(file: File, limit_bytes: int = 1 << 20) -> bytes:
    """Contents of a file that must be small.

    Raises:
        DataLoss: if it cannot be read or is longer than *limit_bytes*.
    """
    with file.opened() as opened:
        size = opened.identity.size_bytes
        if size > limit_bytes:
            raise corrupt(file.path, f"has {size} bytes; at most {limit_bytes} were expected")
        return opened.read(0, size)


class FileSet:
    """The files of one checkpoint by their names in it, as they were when this was made."""

    def __init__(self, files: Mapping[str, File]) -> None:
        """Consist of *files*."""
        self._files = dict(sorted(files.items()))
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
        return sum(file.identity.size_bytes for file in self._files.values())

    @property
    def known_digest(self) -> str:
        """The digest if it has been computed before, else the empty string."""
        return self._digest

    def identity(self) -> str:
        """A string that changes when any of the files is replaced or written to."""
        return "\0".join(f"{name}\0{file.path}\0{tuple(file.identity)}" for name, file in self._files.items())

    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names, sizes and contents in the names' order. Reads every byte, once.

        Raises:
            DataLoss: if a file changed since this was made, or cannot be read.
        """
        with self._lock:
            if not self._digest:
                sha = hashlib.sha256()
                for name, file in self._files.items():
                    sha.update(f"{name}\0{file.identity.size_bytes}\0".encode())
                    _feed(sha, file)
                self.check_unchanged()
                self._digest = sha.hexdigest()
            return self._digest

    def digest_of(self, name: str) -> str:
        """SHA-256, in hexadecimal, of the content of the file *name*. Reads it once; raises as `digest` does."""
        with self._lock:
            if name not in self._digests:
                sha = hashlib.sha256()
                _feed(sha, self._files[name])
                self._digests[name] = sha.hexdigest()
            return self._digests[name]

    def check_unchanged(self) -> None:
        """Raise DataLoss (DIGEST_MISMATCH) if any of them was replaced or written to."""
        for file in self._files.values():
            file.check_in_place()

    def let_go(self) -> None:
        """Stop holding files open."""
        for file in self._files.values():
            file.let_go()


def _feed(sha: hashlib._Hash, file: File) -> None:
    size = file.identity.size_bytes
    with file.opened() as opened:
        block = memoryview(bytearray(min(_BLOCK_BYTES, size)))
        for begin in range(0, size, _BLOCK_BYTES):
            part = block[: size - begin]
            opened.read_into(begin, part)
            sha.update(part)
