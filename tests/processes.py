"""Programs that start others."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def group(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A program, as text on pipes; if the block fails, it is killed with all that it has started."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    ) as process:
        try:
            yield process
        except BaseException:  # an interrupt, too: the terminal's does not reach another group
            with suppress(ProcessLookupError):  # it has ended, and all others with it
                os.killpg(process.pid, signal.SIGKILL)
            raise
