"""A server of our own, for scripts that ask one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READY = "is ready at "
STOP_SECONDS = 30.0


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Run `dst-grpc serve` with *arguments* on a free port; yields HOST:PORT once ready, and stops it afterwards."""
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0", "--log-level", "WARNING", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if READY not in line:
                sys.exit("the server did not start; what it said stands above")
            yield line.partition(READY)[2].strip()
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)
