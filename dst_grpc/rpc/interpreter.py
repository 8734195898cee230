"""Settings of the interpreter for a process that serves: what keeps the event loop waiting for other threads."""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.001


def favour_event_loop() -> None:
    """Call it once the server serves.

    What lives as long as the process is taken out of the collections of garbage: they hold the interpreter while they
    look through everything, for a third of a second, each time that requests have made many objects. Threads that plan
    or convert let others run after a millisecond, not five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
