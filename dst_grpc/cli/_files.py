"""Files that options name, read and written whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dst_grpc.errors import InvalidRequest


def read_text(path: Path, option: str) -> str:
    """The text of the file that *option* names, less a byte order mark; raises InvalidRequest if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequest.of(option, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest.of(option, f"cannot read {path}: byte {error.start} is not UTF-8") from None


def read_json(path: Path, option: str) -> Any:
    """The JSON value in the file that *option* names; raises InvalidRequest if it cannot be read, or is none."""
    try:
        return json.loads(read_text(path, option))
    except ValueError as error:
        raise InvalidRequest.of(option, f"{path} is no JSON: {error}") from None


def check_page(html: Path | None, *, as_json: bool) -> None:
    """Raise InvalidRequest if the file of a page cannot be written, as `check_writable`, or JSON is asked for too."""
    if html is not None and as_json:
        raise InvalidRequest.of("--html", "must be absent with --json, which prints the answer instead of drawing it")
    check_writable(html, "--html")


def check_writable(path: Path | None, option: str) -> None:
    """Raise InvalidRequest if the file that *option* names, if it does, cannot be written; before work is done for it.

    A file that is there stays as it is, and none is made.
    """
    if path is None:
        return
    with _writing(path, option):
        os.stat(f"{path.parent}/.")  # noqa: PTH116  # the folder must be there and be one; a Path drops the dot
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def write_text(path: Path, text: str, option: str) -> None:
    """Write *text* to the file that *option* names; raises InvalidRequest if it cannot be written."""
    with _writing(path, option):
        path.write_text(text, encoding="utf-8")


@contextmanager
def _writing(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidRequest.of(option, f"cannot write {path}: {error.strerror}") from None
