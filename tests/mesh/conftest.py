"""Two servers on the embedded model behind a proxy, all on 127.0.0.1.

The proxies run from the shipped configurations in `examples/mesh`, in which only ports are changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[2]
MESH = ROOT / "examples" / "mesh"
OPERATOR = "operator.dst.example"
"""The name in the certificate of whoever may see and change what is in memory."""
_READY = re.compile(r"ready at 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Backend:
    """One `dst-grpc serve`."""

    process: subprocess.Popen[str]
    port: int

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[list[Backend]]:
    """Two of them."""
    with ExitStack() as stack:
        yield [started(tmp_path / f"server-{i}.log", stack) for i in range(2)]


def started(log: Path, stack: ExitStack, *arguments: str) -> Backend:
    """A server with *arguments*, which runs as long as *stack* is open."""
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0", "--trusted-proxies", "127.0.0.1"]
    command += arguments
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    errors = stack.enter_context(log.open("wb"))
    server = stack.enter_context(
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    )
    stack.callback(server.kill)
    line = server.stdout.readline() if server.stdout else ""
    found = _READY.search(line)
    if not found:
        pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
    return Backend(server, int(found[1]))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who signs all certificates."""
    return trustme.CA()


@pytest.fixture(scope="session")
def build_folder(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run a proxy in, whose `build` holds what `make -C examples/mesh` would put there."""
    folder = tmp_path_factory.mktemp("mesh")
    build = folder / "build"
    build.mkdir()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(build / "ca.pem")
    certificate.private_key_pem.write_to_path(build / "server.key")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(build / "server.pem", append=True)
    targets = [f"{build}/descriptor.binpb", f"{build}/page.html"]
    subprocess.run(["make", "--silent", f"BUILD={build}", *targets], cwd=MESH, check=True)
    return folder


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask *condition* again and again, until it holds; fail with the log of *process* if that ends before."""
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the proxy ended with {process.returncode}:\n{log.read_text(encoding='utf-8')}")
