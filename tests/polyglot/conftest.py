"""Servers for the example clients: processes of their own, as they would meet them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import trustme

from dst_grpc.client import Client, Tls
from dst_grpc.domain.callers import Role
from tests.parity.cases import GOLDEN
from tests.tokens import write as write_tokens

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
    credentials: Mapping[str, str] = field(default_factory=dict)
    """The variables by which the example clients, and the command, are told whom to trust and who they are."""

    def unload_all(self) -> None:
        """Make it as cold as a fresh one, so that every client sees it load what it needs."""
        authorities, token = (self.credentials.get(name) for name in ("DST_CLIENT_CA", "DST_CLIENT_TOKEN"))
        tls = authorities is not None and Tls(root_certificates=Path(authorities))
        with Client(self.address, tls=tls, token=token) as client:
            for context in client.contexts():
                client.unload_context(context.handle)


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that the reference results were computed with."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copytree(GOLDEN / "model", folder, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "autoencoders", folder / "autoencoders")
    return folder


@pytest.fixture(scope="session")
def server(golden: Path) -> Iterator[LiveServer]:
    """A server with the embedded model and the golden one, for everybody, in plain text."""
    with serving(golden) as (address, log):
        yield LiveServer(address, log)


@pytest.fixture(scope="session")
def secure_server(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The same over TLS, for who has a token."""
    folder = tmp_path_factory.mktemp("secrets")
    authority, tokens = trustme.CA(), folder / "tokens"
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    write_tokens(tokens, somebody=Role.OPERATE)
    files = ["--tls-certificate", folder / "server.pem", "--tls-key", folder / "server.pem"]
    with serving(golden, *map(str, files), "--auth-token-file", str(tokens)) as (address, log):
        known = {"DST_CLIENT_CA": str(folder / "ca.pem"), "DST_CLIENT_TOKEN": "somebody-token"}
        yield LiveServer(address, log, known)


@contextmanager
def serving(golden: Path, *flags: str) -> Iterator[tuple[str, Log]]:
    """The address and the log of a server within the block."""
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0", *flags]
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
            yield found[1], log
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()
                follower.join()
