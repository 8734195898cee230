"""A running Envoy, from one of the shipped configurations."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
import yaml

from tests.mesh.conftest import ROOT, wait_until

DEPLOY = ROOT / "deploy" / "envoy"
SECONDS = 60.0


@dataclass(frozen=True)
class Proxy:
    """A running Envoy."""

    address: str
    """HOST:PORT that clients dial."""
    admin: str
    """HOST:PORT of its own pages."""
    process: subprocess.Popen[bytes]
    log: Path
    """What it says: its errors, and its access log."""
    root: bytes = b""
    """Certificate of who signed its own."""

    def channel(self, operator: trustme.LeafCert | None = None, *, service_config: str = "{}") -> grpc.Channel:
        """A channel through it, with the certificate of an *operator* or without any; alone it tries nothing again."""
        key = operator.private_key_pem.bytes() if operator else None
        chain = operator.cert_chain_pems[0].bytes() if operator else None
        options = [("grpc.service_config", service_config)]
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.root, key, chain), options=options)

    def statistic(self, name: str) -> int:
        """One of its counters or gauges."""
        with urllib.request.urlopen(f"http://{self.admin}/stats?filter=^{name}$&format=json") as answer:
            stats: list[dict[str, Any]] = json.load(answer)["stats"]
        return int(next((stat["value"] for stat in stats if stat.get("name") == name), 0))

    def of_hosts(self, cluster: str, name: str) -> list[int]:
        """A statistic of each server of a cluster."""
        with urllib.request.urlopen(f"http://{self.admin}/clusters?format=json") as answer:
            statuses = json.load(answer)["cluster_statuses"]
        (hosts,) = [status["host_statuses"] for status in statuses if status["name"] == cluster]
        stats = [{stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]} for host in hosts]
        return [each[name] for each in stats]

    def wait_for(self, name: str, value: int) -> None:
        """Wait until a statistic has a value."""
        wait_until(lambda: self.statistic(name) == value, self.process, self.log)

    def fetch(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of a plain HTTPS request."""
        context = ssl.create_default_context(cadata=self.root.decode())
        request = urllib.request.Request(f"https://{self.address}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=SECONDS) as answer:  # noqa: S310  https above
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@contextmanager
def envoy_of(configuration: Path, ports: Sequence[int], folder: Path, tmp_path: Path) -> Iterator[Proxy]:
    """Envoy with *configuration*, in which only ports are changed, running in *folder*; its own are free ones.

    *ports* are the servers', on 127.0.0.1, in the clusters' first place for each; the first *ports* if there are more.
    """
    program = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if program is None:
        pytest.fail("Envoy is not installed: run `make mesh`")
    config = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": 0}
    for cluster in resources["clusters"]:
        if cluster["name"] != "collector":
            found = [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                for port in ports
            ]
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = found
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    log, admin_file = tmp_path / "envoy.log", tmp_path / "admin"
    command = [program, "-c", str(tmp_path / "envoy.yaml"), "--admin-address-path", str(admin_file)]
    command += ["--use-dynamic-base-id", "--log-level", "warning", "--concurrency", "1"]
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: admin_file.exists() and bool(admin_file.read_text(encoding="utf-8")), process, log)
            admin = admin_file.read_text(encoding="utf-8")
            listening: list[int] = []

            def listens() -> bool:
                with urllib.request.urlopen(f"http://{admin}/listeners?format=json") as answer:
                    statuses = json.load(answer).get("listener_statuses", [])
                listening[:] = [status["local_address"]["socket_address"]["port_value"] for status in statuses]
                return bool(listening)

            wait_until(listens, process, log)
            yield Proxy(f"127.0.0.1:{listening[0]}", admin, process, log)
        finally:
            process.terminate()


def deployed(authority: trustme.CA, folder: Path) -> Path:
    """A new *folder* to run the Envoy of `deploy` in: its files about certificates, and what they name."""
    write_certificates(authority, folder / "tls")
    for file in ("server-tls.yaml", "clients-tls.yaml"):
        shutil.copy(DEPLOY / file, folder)
    return folder


def write_certificates(authority: trustme.CA, target: Path) -> None:
    """The proxy's certificate and key, and that of the authority that signs clients'."""
    target.mkdir(parents=True)
    authority.cert_pem.write_to_path(target / "ca.crt")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(target / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(target / "tls.crt")
