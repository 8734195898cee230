"""`dst-grpc serve --devices`: a process for each device, over real sockets, through what happens to processes."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from dst_grpc.client import Client

ROOT = Path(__file__).resolve().parents[2]
READY = "dst-grpc is ready at "
WAIT_SECONDS = 60.0


class Supervised:
    """A supervisor that serves, and its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.events.put(json.loads(line))
        self.events.put({"event": "the end of the log"})

    def ready(self) -> list[str]:
        """Wait for the addresses."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        assert line.startswith(READY), line
        return line.removeprefix(READY).strip().split(",")

    def until(self, event: str, **fields: object) -> dict[str, Any]:
        """The next event of the log that begins so and has these fields."""
        while True:
            found = self.events.get(timeout=WAIT_SECONDS)
            if found["event"].startswith(event) and found.items() >= fields.items():
                return found
            assert found["event"] != "the end of the log", f"no {event!r} with {fields}"


@contextmanager
def supervised(*arguments: str, **variables: str) -> Iterator[Supervised]:
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--log-format", "json", *arguments]
    pipe, environment = subprocess.PIPE, os.environ | variables
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield Supervised(process)
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def health(address: str) -> str:
    with Client(address) as client:
        return client.health(timeout=WAIT_SECONDS)


def test_each_device_has_a_process_that_is_started_again_reloads_and_drains_with_the_others() -> None:
    with supervised("--devices", "cpu,cpu", "--port", "0") as rig:
        pids = [rig.until("started a process", process_number=i, device="cpu")["pid"] for i in range(2)]
        first, second = rig.ready()
        assert first != second
        assert "libtorch" not in Path(f"/proc/{rig.process.pid}/maps").read_text()
        assert [health(address) for address in (first, second)] == ["serving", "serving"]
        os.kill(pids[0], signal.SIGKILL)
        ended = rig.until("a process ended", process_number=0)
        assert ended["status"] == -signal.SIGKILL
        assert health(second) == "serving"
        assert rig.until("started a process", process_number=0)["pid"] != pids[0]
        # Its own line, with its number; told to reload before it serves, it does so afterwards.
        rig.process.send_signal(signal.SIGHUP)
        reloaded = [rig.until("reloaded")["process_number"] for _ in range(2)]
        assert sorted(reloaded) == [0, 1]
        assert health(first) == "serving"
        rig.process.terminate()
        assert {rig.until("stopped").get("process_number") for _ in range(3)} == {0, 1, None}
        assert rig.process.wait(WAIT_SECONDS) == 0


def test_a_service_manager_hears_of_all_as_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_SECONDS)
        with supervised("--devices", "cpu", "--port", "0", NOTIFY_SOCKET=str(tmp_path / "notify")) as rig:
            assert manager.recv(100) == b"READY=1"
            rig.process.send_signal(signal.SIGHUP)
            assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(100) == b"READY=1"
            rig.until("reloaded", process_number=0)
            rig.process.terminate()
            assert manager.recv(100) == b"STOPPING=1"


def test_what_cannot_start_ends_all_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with supervised("--devices", "cpu", "--port", str(port)) as rig:
            assert f"cannot listen on 127.0.0.1:{port}" in rig.until("cannot start")["problem"]
            assert rig.until("a process could not start")["process_number"] == 0
            assert rig.process.wait(WAIT_SECONDS) == 1


def test_processes_outlive_their_supervisor_only_to_drain() -> None:
    with supervised("--devices", "cpu", "--port", "0") as rig:
        pid = rig.until("started a process")["pid"]
        (address,) = rig.ready()
        watch = os.pidfd_open(pid)
        try:
            rig.process.kill()
            assert select.select([watch], [], [], WAIT_SECONDS)[0]
        finally:
            os.close(watch)
        with socket.socket() as port:
            port.bind(("127.0.0.1", int(address.rpartition(":")[2])))
