"""Writes the log on a thread of its own: nobody waits for whoever reads it.

The standard library's QueueHandler and QueueListener pass records on; but a record holds its exception, whose frames
hold tensors, its queue is unbounded or raises, and it cannot be stopped while nobody reads.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_MOST_CHARACTERS = 4 << 20
_FLUSH_SECONDS = 1.0
_LINGER_SECONDS = 0.01
"""How long a line waits for more to be written with it: a turn of the thread for each would take a fifth more of the
processor's time of small calls."""


class LogWriter(logging.Handler):
    """Writes records as lines to a stream.

    While the stream takes none, some MiB of lines wait, and further ones are dropped: that is counted, and said in the
    log once there is room again.
    """

    def __init__(self, stream: TextIO, *, max_characters: int = _MOST_CHARACTERS) -> None:
        """Start a thread that writes to *stream*; at most *max_characters* wait."""
        super().__init__()
        self._stream, self._max_characters = stream, max_characters
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._n_waiting = 0
        """Characters that wait, or are being written."""
        self.dropped = 0
        """Records that were dropped."""
        self._told = 0
        """How many of them the log tells of."""
        self._is_closed = False
        threading.Thread(target=self._write_all, name="dst-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have *record* written, or drop it."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  as every handler of the standard library
            self.handleError(record)
            return
        self.write_line(line)

    def write_line(self, text: str) -> None:
        """Have a line written as it is, without its end, or drop it."""
        line = f"{text}\n"
        with self._changed:
            if self._n_waiting + len(line) > self._max_characters:
                self.dropped += 1
                return
            self._lines.append(line)
            self._n_waiting += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until what was logged before is written, for a second at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._n_waiting, _FLUSH_SECONDS)

    def close(self) -> None:
        """Write what waits, as `flush` does, and end the thread."""
        self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    # On its thread

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    return
            time.sleep(_LINGER_SECONDS)
            with self._changed:
                text = "".join(self._lines)
                self._lines.clear()
                untold, self._told = self.dropped - self._told, self.dropped
            self._write(text + self._notice(untold) if untold else text)
            with self._changed:
                self._n_waiting -= len(text)
                self._changed.notify_all()

    def _notice(self, count: int) -> str:
        """A line that says how many records are missing after those before it."""
        values = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "dropped": count}
        return self.format(logging.makeLogRecord(values | {"msg": "the log was not read: records are missing"})) + "\n"

    def _write(self, text: str) -> None:
        """Write *text*; what cannot be written, as to a full disk, is lost."""
        try:
            file = self._stream.fileno()
        except io.UnsupportedOperation:  # a stream in memory
            self._stream.write(text)
            return
        # Past the stream's own buffer: a thread that waits with its lock would abort the interpreter's end.
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                try:
                    data = data[os.write(file, data) :]
                except BlockingIOError:  # another process, which has the same terminal, wants to wait for nothing
                    select.select([], [file], [])
        except OSError:
            return
