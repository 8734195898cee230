"""What others write to standard error, as records of the log: gRPC's core and torch, which are written in other
languages, and processes that this one starts.

While a server runs, file descriptor 2 leads into a pipe, which a thread reads. Nobody waits for that thread: what is
written while the pipe is full is lost. What ends the process from within, and so the thread too, still writes its
traceback to the real standard error.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import Thread
from typing import TextIO

from dst_grpc.observability.logs import CORE_LOGGER_NAME, LOGGER_NAME

_STANDARD_ERROR = 2
_CORE = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+\s+\d+ (?P<source>[^\s\]]+:\d+)\] (?P<event>.*)")
"""How gRPC's core writes, by the logging library that it uses."""
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_CLOSE_SECONDS = 1.0
READ_BYTES, _LINE_BYTES = 1 << 16, 1 << 20
"""What is read of a pipe at once; and the longest line, of which a longer one is logged in pieces."""

_core = logging.getLogger(CORE_LOGGER_NAME)
_others = logging.getLogger(f"{LOGGER_NAME}.stderr")


@contextmanager
def logged_standard_error() -> Generator[TextIO, None, None]:
    """Log, within the block, what is written to standard error; yields the real one, for the log itself.

    That stays open, as the last lines of the log are written later.
    """
    if not hasattr(os, "set_blocking"):  # Windows, before Python 3.12
        yield sys.stderr
        return
    sys.stderr.flush()
    real = os.fdopen(os.dup(_STANDARD_ERROR), "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.dup2(writing, _STANDARD_ERROR)
    os.close(writing)
    thread = Thread(target=_log_all, args=(reading,), name="dst-stderr", daemon=True)
    thread.start()
    faulthandler.enable(real)
    try:
        yield real
    finally:
        sys.stderr.flush()
        os.dup2(real.fileno(), _STANDARD_ERROR)
        # A process that was started and still runs may hold the pipe for longer.
        thread.join(_CLOSE_SECONDS)


def _log_all(reading: int) -> None:
    rest = b""
    while data := os.read(reading, READ_BYTES):
        lines, rest = split_lines(rest + data)
        for line in lines:
            log_line(line)
    log_line(text_of(rest))
    os.close(reading)


def split_lines(data: bytes) -> tuple[list[str], bytes]:
    """The lines that *data* begins with, without their ends, and the rest; one that is too long counts as ended."""
    *lines, rest = data.split(b"\n")
    if len(rest) > _LINE_BYTES:
        lines, rest = [*lines, rest], b""
    return [text_of(line) for line in lines], rest


def text_of(line: bytes) -> str:
    """A *line* as text, whatever is in it."""
    return line.decode("utf-8", "backslashreplace")


def log_line(line: str) -> None:
    """Log a *line* that somebody wrote to standard error."""
    found = _CORE.fullmatch(line)
    if found:
        _core.log(_LEVELS[found["level"]], "%s", found["event"], extra={"source": found["source"]})
    elif line.strip():
        _others.warning("%s", line)
