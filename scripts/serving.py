"""Servers in processes of their own, for whoever asks one: scripts, benchmarks and attacks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

READY = "is ready at "
SERVE = ("-m", "dst_grpc.cli", "serve", "--port", "0")
"""What Python runs for a server on a free port."""
STOP_SECONDS = 30.0
_PROCESS_CLOCK = 2


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    address: str
    """HOST:PORT."""
    pid: int
    """Its process."""

    @property
    def cpu_seconds(self) -> float:
        """The processor's time that all its threads have taken; clock_getcpuclockid(3) of the process."""
        return time.clock_gettime(~self.pid << 3 | _PROCESS_CLOCK)


def queued_seconds(pid: int) -> float:
    """How long the first thread of a process, which runs its event loop, has waited for a processor; 0 where the system
    does not tell."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def undisturbed_seconds(pid: int) -> float:
    """Reading of a clock that stands still while the event loop of this process, or of *pid*, waits for a processor."""
    return time.perf_counter() - queued_seconds(os.getpid()) - queued_seconds(pid)


@contextmanager
def running(*command: str, log: Path | None = None, **environment: str) -> Iterator[Server]:
    """Run Python with *command*, which prints where it is ready, and stop it afterwards.

    Its log goes to *log*, or else to where ours goes.
    """
    with ExitStack() as stack:
        errors = None if log is None else stack.enter_context(log.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | environment,
            )
        )
        stack.callback(_stop, process)
        line = process.stdout.readline() if process.stdout else ""
        if READY not in line:
            said = "what it said stands above" if log is None else log.read_text(encoding="utf-8")
            sys.exit(f"the server did not start: {' '.join(command)}\n{said}")
        yield Server(line.partition(READY)[2].strip(), process.pid)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the server did not stop within {STOP_SECONDS:.0f} s, and is killed", file=sys.stderr)
        process.kill()


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Run `dst-grpc serve` with *arguments* on a free port; yields HOST:PORT once ready, and stops it afterwards."""
    with running(*SERVE, "--log-level", "WARNING", *arguments) as found:
        yield found.address


def write_tokens(file: Path, tokens: Mapping[str, str]) -> None:
    """Write the file of callers' *tokens*, by their names: all may ask, for ever."""
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in tokens.items()}
    file.write_text("".join(f"{name} sha256:{digest} ask never\n" for name, digest in digests.items()))
