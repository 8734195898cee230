"""Four processes behind Envoy under mixed load, by the commands of `deploy/` as they are written there, while all
happens to them: one is killed, one drained, a model reloaded, tokens and certificates rotated.

No call is lost that had not begun to answer, and none is answered by another model than was asked. Two minutes, a third
of them undisturbed; OPERATE_SECONDS=300 for longer. How long calls took is printed: others may have the machine.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as catalog
from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.client._channel import SERVICE_CONFIG
from tests import tokens
from tests.load.common import quantile, simple
from tests.mesh.proxy import DEPLOY, Proxy, deployed, envoy_of, write_certificates

UNIT = DEPLOY.parent / "systemd" / "dst-grpc.service"
SECONDS = float(os.environ.get("OPERATE_SECONDS", "120"))
PROCESSES, CALLERS = 4, 6
MODELS = ("first", "second")
CALL_SECONDS = 60.0
READY = "dst-grpc is ready at "

pytestmark = pytest.mark.timeout(SECONDS + 600)


def command_of(name: str, folder: Path, pid: int = 0) -> list[str]:
    """A command of the unit, with paths and programs of here."""
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    here = {"/opt/dst-grpc/bin/dst-grpc": f"{sys.executable} -m dst_grpc.cli", "/etc/dst-grpc": str(folder)}
    for theirs, ours in (here | {"$MAINPID": str(pid)}).items():
        found = found.replace(theirs, ours)
    return shlex.split(found)


@dataclass
class Host:
    """What an operator has: a folder of settings, the supervisor, its log."""

    folder: Path
    process: subprocess.Popen[str]
    log: Path
    ports: list[int] = field(default_factory=list)

    def reload(self) -> None:
        """`systemctl reload`."""
        subprocess.run(command_of("ExecReload", self.folder, self.process.pid), check=True)

    def pids(self) -> list[int]:
        """Of the processes, by device number, as the log tells."""
        found = re.findall(r"started a process process_number=(\d+) .*pid=(\d+)", self.log.read_text(encoding="utf-8"))
        return [pid for _, pid in sorted({int(number): int(pid) for number, pid in found}.items())]

    def lines(self, text: str) -> Counter[str]:
        """How many lines of the log have a text, by the process that they are of."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return Counter(line.partition("]")[0] for line in lines if text in line)


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again, until it holds."""
    pause, deadline = threading.Event(), time.monotonic() + 5 * CALL_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.1)


def write_registry(folder: Path, element_type: str) -> None:
    """Two names of the embedded model; the second is loaded as *element_type*."""
    first, second = MODELS
    lines = [f"[models.{first}]", "source = { embedded = true }", "preload = true", f"[models.{second}]"]
    lines += ["source = { embedded = true }", f'element_type = "{element_type}"', "preload = true"]
    part = folder / "registry.part"
    part.write_text("\n".join(lines), encoding="utf-8")
    part.replace(folder / "registry.toml")


def write_tokens(folder: Path, *names: str) -> None:
    part = folder / "tokens.part"
    part.write_text("".join(tokens.line("load", name) for name in names), encoding="utf-8")
    part.replace(folder / "tokens")


@contextmanager
def serving(folder: Path) -> Iterator[Host]:
    """The unit's service: checked and started as it says, stopped as systemd stops it."""
    write_registry(folder, "f32")
    write_tokens(folder, "old")
    devices = ",".join(["cpu"] * PROCESSES)
    settings = ["port = 0", f'devices = "{devices}"', 'registry = "registry.toml"', 'auth_token_file = "tokens"']
    settings += ['trusted_proxies = "127.0.0.1"', "watch_seconds = 0"]
    (folder / "server.toml").write_text("\n".join(settings), encoding="utf-8")
    subprocess.run([*command_of("ExecStart", folder), "--check"], check=True, stdout=subprocess.DEVNULL)
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command_of("ExecStart", folder),
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        host = Host(folder, process, log)
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert line.startswith(READY), log.read_text(encoding="utf-8")
            host.ports = [int(address.rpartition(":")[2]) for address in line.strip().split(",")]
            yield host
        finally:
            process.terminate()
            assert process.wait(CALL_SECONDS * 2) == 0


@dataclass
class Load:
    """Callers that ask all the time, and what became of their calls."""

    proxy: Proxy
    token: str = "old"
    shown: dict[int, str] = field(default_factory=dict)
    """The token of each caller's latest call."""
    seconds: list[float] = field(default_factory=list)
    """How long calls took, that were not broken off."""
    broken: int = 0
    """Calls that broke after their answer had begun, and were made again."""
    element_types: set[str] = field(default_factory=set)
    """Of the second model's answers."""
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """One caller, until it is over; it tries again what clients do."""
        with self.proxy.channel(service_config=SERVICE_CONFIG) as channel:
            i = number
            while not self.over.is_set():
                self.shown[number] = self.token
                started = time.monotonic()
                (self.describe if i % 3 == 0 else self.derive)(channel, MODELS[i % 2], i)
                self.seconds.append(time.monotonic() - started)
                i += CALLERS + 1

    def metadata(self, model: str) -> tuple[tuple[str, str], ...]:
        return (*tokens.bearer(self.token), ("dst-model", model))

    def describe(self, channel: grpc.Channel, model: str, _number: int) -> None:
        """A small call, which has nothing to break off."""
        request = catalog.GetModelRequest(name=model)
        found = CatalogServiceStub(channel).GetModel(request, timeout=CALL_SECONDS, metadata=self.metadata(model))
        assert found.model.name == model

    def derive(self, channel: grpc.Channel, model: str, number: int) -> None:
        """A prompt that nobody asked before, on a stream of one item every other time."""
        request = simple(text=f"John gave {number} drinks to", model=model, request_id=str(number))
        stub, frames = DerivedScalarServiceStub(channel), []
        try:
            if number % 2:
                answer: Any = stub.Derive(request, timeout=CALL_SECONDS, metadata=self.metadata(model))
            else:
                items = iter([inference_pb2.DeriveStreamRequest(request=request)])
                answer = stub.DeriveStream(items, timeout=CALL_SECONDS, metadata=self.metadata(model))
            for message in answer:
                frames += message.frames
        except grpc.RpcError as error:
            # A connection that breaks after the headers is INTERNAL; before them, it is Envoy's to try again.
            if not frames and error.code() is not grpc.StatusCode.INTERNAL:
                raise
            self.broken += 1
            self.derive(channel, model, number)
            return
        name, _, rest = frames[0].header.model.partition("@")
        assert name == model
        assert frames[-1].HasField("trailer")
        if model == MODELS[1]:
            self.element_types.add(rest.split(":")[1])


def rotate_tokens(host: Host, load: Load) -> None:
    """The new token beside the old one; and the old one goes once no caller shows it."""
    before = host.lines(" reloaded ")
    write_tokens(host.folder, "old", "new")
    host.reload()
    until(lambda: len(host.lines(" reloaded ") - before) == PROCESSES)
    load.token = "new"
    until(lambda: set(load.shown.values()) == {"new"})
    write_tokens(host.folder, "new")
    host.reload()


def replace_certificates(authority: trustme.CA, folder: Path) -> None:
    write_certificates(authority, folder / "new")
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (folder / "new" / name).replace(folder / "tls" / name)


def reload_model(host: Host) -> None:
    """The second model is from now on loaded as another type."""
    write_registry(host.folder, "bf16")
    host.reload()


def shown_serial(proxy: Proxy) -> str:
    """The serial number of the certificate that a new connection is shown."""
    host, _, port = proxy.address.partition(":")
    script = f"openssl s_client -connect {host}:{port} -alpn h2 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def failed(callers: list[Future[None]]) -> bool:
    """Whether any has ended, which none does by itself."""
    return any(caller.done() for caller in callers)


def test_nothing_is_lost_while_everything_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = trustme.CA()
    settings, run = tmp_path / "dst-grpc", tmp_path / "run"
    settings.mkdir()
    with (
        serving(settings) as host,
        envoy_of(DEPLOY / "envoy.yaml", host.ports, deployed(authority, run), tmp_path) as found,
        ThreadPoolExecutor(CALLERS) as threads,
    ):
        proxy = Proxy(found.address, found.admin, found.process, found.log, authority.cert_pem.bytes())
        proxy.wait_for("cluster.servers.membership_healthy", PROCESSES)
        load = Load(proxy)
        callers = [threads.submit(load.run, number) for number in range(CALLERS)]
        try:
            serial = shown_serial(proxy)
            load.over.wait(SECONDS / 3)
            undisturbed, load.seconds = load.seconds, []
            started = time.monotonic()
            replace_certificates(authority, run)
            rotate_tokens(host, load)
            killed, drained, *_ = host.pids()
            os.kill(killed, signal.SIGKILL)
            os.kill(drained, signal.SIGTERM)
            reload_model(host)
            until(lambda: sum(host.lines("a process ended, and is started again").values()) == 2 or failed(callers))
            load.over.wait(max(0.0, started + 2 * SECONDS / 3 - time.monotonic()))
            proxy.wait_for("cluster.servers.membership_healthy", PROCESSES)
        finally:
            load.over.set()
        for caller in callers:
            caller.result()
        assert shown_serial(proxy) != serial
        assert "bfloat16" in load.element_types
        with proxy.channel() as channel:
            ask = CatalogServiceStub(channel).GetServerInfo
            with pytest.raises(grpc.RpcError) as caught:
                ask(catalog.GetServerInfoRequest(), timeout=CALL_SECONDS, metadata=tuple(tokens.bearer("old")))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(undisturbed) > CALLERS
    assert len(load.seconds) > CALLERS
    before, during = quantile(undisturbed, 0.99), quantile(load.seconds, 0.99)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(undisturbed)} calls undisturbed, 99 % within {before:.2f} s; {len(load.seconds)} in all that,"
            f" within {during:.2f} s: x {during / before:.2f} (3 is right); {load.broken} broke off in their answers\n"
        )
