"""Time as work on a device's thread takes it: what runs in its midst has its own."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Others(threading.local):
    seconds = 0.0


_others = _Others()
"""How long others have run in the midst of what ran on this thread."""


def own_time() -> float:
    """Seconds from any beginning: between two readings in one piece of work, for how long it ran itself."""
    return time.monotonic() - _others.seconds


@contextmanager
def others_run() -> Iterator[None]:
    """The block, once it is over, is no part of the work in whose midst it was."""
    started = own_time()  # of what may have been in the midst of the block, no time counts twice
    try:
        yield
    finally:
        _others.seconds += own_time() - started


class Timer:
    """Times a piece of work from when this is made, on the thread that does it."""

    __slots__ = ("_own", "begun")

    def __init__(self) -> None:
        """Begin."""
        self.begun = time.monotonic()
        """When it began."""
        self._own = own_time()

    @property
    def seconds(self) -> float:
        """For how long the work has run itself."""
        return own_time() - self._own
