"""Settings of the interpreter for a process that serves: what keeps the event loop waiting for other threads."""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.00002
"""How long a thread may keep the interpreter that another waits for. A device's thread gives it up in each of the
hundreds of operations of a pass, and waits so long to have it back while the event loop is busy. Below this nothing
more is won: to switch takes some microseconds."""
_FULL_COLLECTIONS = 1000
"""Collections of younger objects for one that looks through all, instead of ten. Little is left to it, while requests
and plans that are kept make it take up to a third of a second; at ten, every few seconds of a busy server."""


def favour_event_loop() -> None:
    """Call it once the server serves.

    Collections of garbage hold the interpreter while they look through everything. What lives as long as the process is
    taken out of them, and they look through the rest a hundred times less often. Threads let others run after
    `_SWITCH_SECONDS`, not five milliseconds.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_COLLECTIONS)
    sys.setswitchinterval(_SWITCH_SECONDS)
