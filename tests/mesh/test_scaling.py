"""`deploy/envoy` in front of two servers: a model's calls stay on one server, go elsewhere when it is busy, and never
to one that lacks the model; what a server keeps is found again; who may do what.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as catalog
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc.client import Client, Tls
from dst_grpc.errors import DstError, NotFound, Unavailable
from tests.mesh.conftest import OPERATOR, Backend, started, wait_until
from tests.mesh.proxy import DEPLOY, Proxy, deployed, envoy_of, write_certificates

MODELS = 40
SECONDS = 60.0


@pytest.fixture
def folder(authority: trustme.CA, tmp_path: Path) -> Path:
    """What Envoy runs in: the shipped files about certificates, and what they name."""
    return deployed(authority, tmp_path / "run")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Backend]]:
    """Two servers, which all tests here leave as they are."""
    logs = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        yield [started(logs / f"{i}.log", stack) for i in range(2)]


@pytest.fixture
def envoy(servers: list[Backend], folder: Path, authority: trustme.CA, tmp_path: Path) -> Iterator[Proxy]:
    with envoy_of(DEPLOY / "envoy.yaml", [server.port for server in servers], folder, tmp_path) as proxy:
        for cluster in ("servers", "homes", "embedded"):
            proxy.wait_for(f"cluster.{cluster}.membership_healthy", len(servers))
        yield replace(proxy, root=authority.cert_pem.bytes())


def client_of(envoy: Proxy, folder: Path, authority: trustme.CA, name: str | None = None) -> Client:
    """The Python client, as users have it; with a certificate of *name*, if there is one."""
    ca = folder / "tls" / "ca.crt"
    if name is None:
        return Client(envoy.address, tls=Tls(root_certificates=ca))
    issued = authority.issue_cert(name)
    issued.cert_chain_pems[0].write_to_path(folder / "client.crt")
    issued.private_key_pem.write_to_path(folder / "client.key")
    tls = Tls(root_certificates=ca, certificate=folder / "client.crt", private_key=folder / "client.key")
    return Client(envoy.address, tls=tls)


def calls_of(envoy: Proxy, count: int) -> list[dict[str, Any]]:
    """The first *count* lines of the access log."""

    def lines() -> list[str]:
        return [line for line in envoy.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]

    wait_until(lambda: len(lines()) >= count, envoy.process, envoy.log)
    return [json.loads(line) for line in lines()[:count]]


def test_a_model_s_calls_go_to_one_server_and_models_are_spread(envoy: Proxy) -> None:
    """Which server answers is in the access log, which has a line of JSON for each call."""
    with envoy.channel() as channel:
        ask = CatalogServiceStub(channel).GetServerInfo
        for _ in range(3):
            for i in range(MODELS):
                metadata = (("dst-model", f"model-{i}"),)
                ask(catalog.GetServerInfoRequest(), timeout=SECONDS, metadata=metadata)
        for _ in range(3):
            ask(catalog.GetServerInfoRequest(), timeout=SECONDS)
    calls = calls_of(envoy, 3 * MODELS + 3)
    homes = {(call["model"], call["server"]) for call in calls}
    assert len(homes) == MODELS + 1, "one server each"
    assert "default" in {model for model, _ in homes}
    assert len({server for _, server in homes}) == 2
    assert {call["method"] for call in calls} == {"/dst.v1.CatalogService/GetServerInfo"}
    assert {(call["code"], call["attempts"]) for call in calls} == {("OK", 1)}


def silence(over: threading.Event) -> Iterator[bytes]:
    """The requests of a client that says nothing until it is over."""
    over.wait(SECONDS)
    yield from ()


def test_calls_go_to_a_neighbour_when_a_server_is_busy(envoy: Proxy) -> None:
    """Of streams that stay open and are of one model, its server has half times 1.25, rounded up, and one more."""
    count, over = 8, threading.Event()
    with envoy.channel() as channel:
        stream: Any = channel.stream_stream("/dst.v1.DerivedScalarService/DeriveStream")
        calls = []
        for i in range(count):
            calls.append(stream(silence(over), metadata=(("dst-model", "one"),)))
            envoy.wait_for("cluster.servers.upstream_rq_active", i + 1)
        assert 2 <= min(envoy.of_hosts("servers", "rq_active")) <= count / 2
        over.set()
        assert [list(call) for call in calls] == [[]] * count


def test_what_a_server_keeps_is_found_again(envoy: Proxy, folder: Path, authority: trustme.CA) -> None:
    """A graph and tensors, of a model whose home some other models do not share, whoever asks meanwhile."""
    with client_of(envoy, folder, authority) as client:
        graph = client.graph("John gave a drink to", model="embedded")
        for i in range(4):
            tensor = client.put_tensor([1.0], model=f"model-{i}")
            client.delete_tensor(tensor)
        view = client.graph_neighbours(graph, graph.top(1)[0].name)
        assert len(view.edges) > 0
        assert graph.handle in {kept.handle for kept in client.graphs(model="embedded")}
        client.drop_graph(graph)


def test_a_server_that_lacks_a_model_gets_none_of_its_calls(
    servers: list[Backend], folder: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    """Its health by that name is NOT_FOUND; asked itself, it answers NOT_FOUND."""
    registry = tmp_path / "registry.toml"
    registry.write_text("[models.other]\nsource = { embedded = true }\n", encoding="utf-8")
    with ExitStack() as stack:
        lacking = started(tmp_path / "lacking.log", stack, "--registry", str(registry))
        with Client(f"127.0.0.1:{lacking.port}") as client, pytest.raises(NotFound):
            client.derive("a", "logits", model="embedded")
        ports = [lacking.port, servers[0].port]
        with envoy_of(DEPLOY / "envoy.yaml", ports, folder, tmp_path) as proxy:
            proxy.wait_for("cluster.servers.membership_healthy", 2)
            proxy.wait_for("cluster.embedded.membership_healthy", 1)
            with client_of(proxy, folder, authority) as client, ThreadPoolExecutor(4) as threads:
                answers = threads.map(lambda _: client.derive("a", "logits", model="embedded"), range(16))
                assert len(list(answers)) == 16


def test_only_operators_reach_what_is_in_memory(envoy: Proxy, folder: Path, authority: trustme.CA) -> None:
    with client_of(envoy, folder, authority, "somebody.example") as client, pytest.raises(DstError) as caught:
        client.contexts()
    assert "PERMISSION_DENIED" in str(caught.value.__cause__)
    with client_of(envoy, folder, authority, OPERATOR) as client:
        client.contexts()


def test_certificates_are_replaced_while_it_runs(envoy: Proxy, folder: Path, tmp_path: Path) -> None:
    """As their folder's comment says: a new folder is moved to where the old one was."""
    other = trustme.CA()
    files = tmp_path / "new"
    write_certificates(other, files)
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (files / name).replace(folder / "tls" / name)

    def is_renewed() -> bool:
        tls = Tls(root_certificates=folder / "tls" / "ca.crt")
        try:
            with Client(envoy.address, tls=tls) as client:
                return client.health() == "serving"
        except Unavailable:
            return False

    wait_until(is_renewed, envoy.process, envoy.log)


def test_servers_may_speak_tls(folder: Path, authority: trustme.CA, tmp_path: Path) -> None:
    """With what is a comment in the file, calls and checks of health reach them; not if their name is another's."""
    text = (DEPLOY / "envoy.yaml").read_text(encoding="utf-8")
    wanted = tmp_path / "tls.yaml"
    wanted.write_text(
        re.sub(r"^      # (transport_socket:|  +\S)", r"      \1", text, flags=re.MULTILINE), encoding="utf-8"
    )
    authority.cert_pem.write_to_path(folder / "tls" / "servers-ca.crt")
    with ExitStack() as stack:
        ports = []
        for i, name in enumerate(("dst-grpc.dst-grpc.svc", "other.example")):
            issued = authority.issue_cert(name)
            pair = [str(tmp_path / f"{i}.{kind}") for kind in ("crt", "key")]
            issued.cert_chain_pems[0].write_to_path(pair[0])
            issued.private_key_pem.write_to_path(pair[1])
            flags = ("--tls-certificate", pair[0], "--tls-key", pair[1])
            ports.append(started(tmp_path / f"{i}.log", stack, *flags).port)
        with envoy_of(wanted, ports, folder, tmp_path) as proxy:
            for cluster in ("servers", "homes", "embedded"):
                proxy.wait_for(f"cluster.{cluster}.membership_healthy", 1)
            with client_of(proxy, folder, authority) as client:
                client.derive("a", "logits", model="embedded")
            (call,) = calls_of(proxy, 1)
            assert call["server"] == f"127.0.0.1:{ports[0]}"
