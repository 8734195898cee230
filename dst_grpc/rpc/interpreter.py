"""Settings of the interpreter for a process that serves: what keeps the event loop waiting for other threads."""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.0001
"""How long a thread may keep the interpreter that another waits for. A device's thread gives it up in each of the
hundreds of operations of a pass, and waits so long to have it back while the event loop is busy."""


def favour_event_loop() -> None:
    """Call it once the server serves.

    What lives as long as the process is taken out of the collections of garbage: they hold the interpreter while they
    look through everything, for a third of a second, each time that requests have made many objects. Threads let others
    run after a tenth of a millisecond, not five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
