"""A server for the example clients: its own process, as they would meet it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import pytest

from dst_grpc.client import Client
from tests.parity.cases import GOLDEN

READY = re.compile(r"ready at (127\.0\.0\.1:\d+)")


@dataclass
class Log:
    """What the server says, line by line, as it comes."""

    lines: list[str] = field(default_factory=list)
    _grown: threading.Condition = field(default_factory=threading.Condition)

    def follow(self, stream: IO[str]) -> None:
        """Read *stream* to its end."""
        for line in stream:
            with self._grown:
                self.lines.append(line)
                self._grown.notify_all()

    def wait_for(self, holds: Callable[[list[str]], bool], *, since: int = 0) -> bool:
        """Wait until something holds for the lines from number *since* on; answers whether it ever did."""
        with self._grown:
            return self._grown.wait_for(lambda: holds(self.lines[since:]), timeout=30)


@dataclass(frozen=True)
class LiveServer:
    """A server that runs."""

    address: str
    """HOST:PORT."""
    log: Log
    """Its log."""

    def unload_all(self) -> None:
        """Make it as cold as a fresh one, so that every client sees it load what it needs."""
        with Client(self.address) as client:
            for context in client.contexts():
                client.unload_context(context.handle)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the embedded model and the one that the reference results were computed with."""
    golden = tmp_path_factory.mktemp("golden")
    shutil.copytree(GOLDEN / "model", golden, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "autoencoders", golden / "autoencoders")
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0"]
    # The autoencoders of the reference are random: they reconstruct nothing.
    command += ["--model", f"golden={golden}", "--allow-failed-checks"]
    log = Log()
    with subprocess.Popen(
        command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        follower = threading.Thread(target=log.follow, args=[process.stderr])
        follower.start()
        try:
            line = process.stdout.readline()
            if not (found := READY.search(line)):
                process.wait(timeout=30)
                follower.join()
                pytest.fail(f"the server did not start:\n{''.join(log.lines)}")
            yield LiveServer(found[1], log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()
                follower.join()
