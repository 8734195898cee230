"""A real Prometheus takes the alerts as they are shipped, and scrapes a server under load: every query of the dashboard
has an answer."""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from dst_grpc.client import Client, Tls, make_request
from dst_grpc.errors import DstError
from tests.lacking import skip_for_want_of
from tests.operate.conftest import DEPLOY, ROOT, free_port

RULES = DEPLOY / "prometheus"
READY = "ready at "
SECONDS = 30.0
N_SCRAPES = 12
VARIABLES = {"$job": "dst-grpc", "$instance": ".*", "$__rate_interval": "10s"}
NEURONS, GRADIENTS = "mlp_post_act", "mlp_act_times_grad"
MOST_ITEMS = 3


def program(name: str) -> str:
    """Where *name* of Debian's package `prometheus` is."""
    found = shutil.which(name)
    skip_for_want_of([] if found else [name])
    return str(found)


@pytest.mark.parametrize("arguments", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]])
def test_the_configuration_is_sound_and_each_alert_fires_and_does_not(arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=RULES, check=False, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """One that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **query: str) -> bytes:
        """What it answers; raises OSError while it does not listen."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as connection:
            connection.request("GET", f"{path}?{urllib.parse.urlencode(query)}")
            answer = connection.getresponse()
            body = answer.read()
        if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise OSError("it is not ready")
        assert answer.status == http.HTTPStatus.OK, body.decode()
        return body

    def data(self, path: str, **query: str) -> Any:
        """The data of an answer of its interface for programs."""
        return json.loads(self.get(f"/api/v1/{path}", **query))["data"]

    def values(self, query: str) -> list[float]:
        """The values of a query now."""
        return [float(one["value"][1]) for one in self.data("query", query=query)["result"]]

    def values_lately(self, query: str) -> list[float]:
        """The values that a query has had at each of the last scrapes."""
        now = time.time()
        shown = self.data("query_range", query=query, start=str(now - N_SCRAPES), end=str(now), step="1s")["result"]
        return [float(value) for series in shown for _, value in series["values"]]


@contextmanager
def running(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def tls(folder: Path) -> Tls:
    """Certificates for a server in *folder*, and how its clients trust it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.cert_pem.write_to_path(str(folder / "signer.pem"))
    return Tls(root_certificates=folder / "signer.pem")


@pytest.fixture(scope="module")
def server(folder: Path, tls: Tls) -> Iterator[tuple[str, int]]:
    """Address and metrics port of `dst-grpc serve`."""
    port = free_port()
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0", "--metrics-port", str(port)]
    command += ["--tls-certificate", str(folder / "certificate.pem"), "--tls-key", str(folder / "key.pem")]
    command += ["--max-items-per-stream", str(MOST_ITEMS), "--log-level", "WARNING"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with running(*command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else ""
        assert READY in line, "the server did not start"
        yield line.partition(READY)[2].strip(), port


@pytest.fixture(scope="module")
def prometheus(folder: Path, server: tuple[str, int]) -> Iterator[Prometheus]:
    """One that scrapes the server every second, by the configuration that is shipped but for times and addresses."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [f"127.0.0.1:{server[1]}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with running(*command, "--enable-feature=exemplar-storage"):
        found = Prometheus(port)
        ends = time.monotonic() + SECONDS
        while True:
            try:
                found.get("/-/ready")
            except OSError:
                assert time.monotonic() < ends, "Prometheus did not start"
            else:
                break
        yield found


@contextmanager
def load(address: str, tls: Tls) -> Iterator[None]:
    """A client that asks all kinds of questions within the block, some of them wrong."""
    is_over = threading.Event()

    def ask(client: Client, number: int) -> None:
        tokens = [1 + number % 1000, 2, 3]
        for _ in range(2):
            client.derive(tokens, NEURONS)
        client.derive(tokens, GRADIENTS, target=" Mary")
        items = [make_request(tokens, NEURONS, request_id=f"{i}") for i in range(MOST_ITEMS + 1)]  # one too many
        for _ in client.derive_stream([make_request(tokens, GRADIENTS, request_id="bad"), *items[1:]]):
            pass
        with suppress(DstError):
            client.derive(tokens, GRADIENTS)  # of what?
        with suppress(DstError):
            client.unload_context("embedded")

    def work() -> None:
        number = 0
        with Client(address, tls=tls) as client:
            while not is_over.is_set():
                ask(client, number)
                number += 1

    with ExitStack() as stack:
        worker = threading.Thread(target=work)
        worker.start()
        stack.callback(worker.join)
        stack.callback(is_over.set)
        yield


def queries() -> list[Any]:
    """Every query of the dashboard, by its panel."""
    dashboard = json.loads((DEPLOY / "grafana" / "dst-grpc.json").read_text(encoding="utf-8"))
    return [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.fixture(scope="module")
def under_load(prometheus: Prometheus, server: tuple[str, int], tls: Tls) -> Iterator[Prometheus]:
    """Prometheus, while the server has had work for some scrapes."""
    with load(server[0], tls):
        ends = time.monotonic() + SECONDS
        while prometheus.values('count_over_time(up{job="dst-grpc"}[1m]) > 0') < [N_SCRAPES]:
            assert time.monotonic() < ends, "the server is not scraped"
        yield prometheus


@pytest.mark.parametrize("query", queries())
def test_every_query_of_the_dashboard_has_an_answer(under_load: Prometheus, query: str) -> None:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    # As a panel draws it: one that shows what is loaded has nothing to show between an unloading and the next loading.
    values = under_load.values_lately(query)
    assert any(not math.isnan(value) for value in values), query


def test_the_alerts_are_looked_at_without_an_error(under_load: Prometheus) -> None:
    (group,) = under_load.data("rules")["groups"]
    assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"] if rule["health"] != "ok"} == {}
    assert not [rule["name"] for rule in group["rules"] if rule["state"] == "firing"]
