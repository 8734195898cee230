"""A server for the example clients: its own process, as they would meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

READY = re.compile(r"ready at (127\.0\.0\.1:\d+)")


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a server with the embedded model; DST_TEST_ADDRESS names one that runs already."""
    if given := os.environ.get("DST_TEST_ADDRESS"):
        yield given
        return
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True) as server,
    ):
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not (found := READY.search(line)):
                pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            yield found[1]
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            finally:
                server.kill()
