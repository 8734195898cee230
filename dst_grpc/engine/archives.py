"""Untrusted zip archives: opened by the descriptor of a checked file, and read with bounds."""

from __future__ import annotations

import io
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.files import OpenFile

MAX_READ_BYTES = 1 << 20
"""Most bytes that are read at a time, and so the longest list of members."""


class _Bounded(io.FileIO):
    """A file with bounded reads: otherwise the archive itself would decide how long its list of members is."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does; raises BadZipFile for more than `MAX_READ_BYTES`."""
        wanted = MAX_READ_BYTES + 1 if size is None or size < 0 else size
        found = super().read(min(wanted, MAX_READ_BYTES + 1))
        if len(found) > MAX_READ_BYTES:
            raise zipfile.BadZipFile("the list of members is too long")
        return found


@contextmanager
def opened_archive(file: OpenFile) -> Iterator[zipfile.ZipFile]:
    """The zip archive in *file*. Its members are to be read in pieces of at most `MAX_READ_BYTES`.

    Raises:
        BadZipFile: if it is not a zip archive, or its list of members is longer than that.
    """
    with _Bounded(file.descriptor, closefd=False) as raw, zipfile.ZipFile(raw) as archive:
        yield archive
