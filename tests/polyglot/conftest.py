"""A server for the example clients: its own process, as they would meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_SECONDS = 60


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a server with the embedded model; DST_TEST_ADDRESS names one that runs already."""
    if given := os.environ.get("DST_TEST_ADDRESS"):
        yield given
        return
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0"]
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield _listening(server, log)
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        finally:
            server.kill()
            server.wait()


def _listening(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        exited = server.poll() is not None
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8")):
            return found[1]
        if exited:
            break
        time.sleep(0.05)
    pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
