"""SIGHUP, which tells a server to reload. It ends no process that has a `Hangups`, however early it comes: imports
little, as it is the first of our modules that the command runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Hangups:
    """Remembers that SIGHUP came, until somebody is there to be told."""

    def __init__(self) -> None:
        """None came yet."""
        self._came = False
        self._tell: Callable[[], object] | None = None

    @staticmethod
    def installed() -> Hangups:
        """The one that this process has, which it is given if it has none; on the main thread."""
        if not hasattr(signal, "SIGHUP"):  # Windows has none
            return Hangups()
        present = signal.getsignal(signal.SIGHUP)
        if isinstance(present, Hangups):
            return present
        hangups = Hangups()
        signal.signal(signal.SIGHUP, hangups)
        return hangups

    def __call__(self, *_signal: object) -> None:
        """Note one."""
        if self._tell is None:
            self._came = True
        else:
            self._tell()

    @contextmanager
    def told_to(self, tell: Callable[[], object]) -> Iterator[None]:
        """Call *tell*, on the main thread between any two of its steps, for each one that comes within the block, and
        once at its beginning if any came before."""
        self._tell = tell
        if self._came:
            self._came = False
            tell()
        try:
            yield
        finally:
            self._tell = None
