"""Why a server cannot be reached: each cause has its own sentence, and it is true."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme

from dst_grpc.client import Client, Tls
from dst_grpc.client._unreachable import is_this_machine, why_unreachable
from dst_grpc.errors import Unavailable
from tests.fake_service import FakeService, fake_server

ELSEWHERE = "192.0.2.7:50051"
"""An address for documentation: nobody has it."""


@pytest.fixture(name="environment", autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what the machine at hand says of proxies."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of something that reads once, answers and closes; or, given None, closes at once."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                if answer is not None:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def message(target: str, *, tls: Tls | bool = False) -> str:
    """What a call to *target* fails with."""
    with Client(target, tls=tls) as client, pytest.raises(Unavailable) as raised:
        client.models()
    return raised.value.message


def test_a_dead_server() -> None:
    with nobody() as target:
        assert message(target) == f"no server answers at {target}; start one with `dst-grpc serve`"
        assert message(target, tls=True) == f"no server answers at {target}; start one with `dst-grpc serve`"


def test_a_wrong_host() -> None:
    assert message("nobody.invalid:50051") == "the name in 'nobody.invalid:50051' cannot be resolved"


def test_a_host_where_something_else_answers() -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as target:
        assert message(target) == f"what answers at {target} is no gRPC server: it does not speak HTTP/2"
    with listening(None) as target:
        assert message(target).startswith(f"{target} closes the connection: it wants TLS, or")


def test_a_server_without_tls(service: FakeService) -> None:
    assert message(service.target, tls=True) == f"{service.target} does not speak TLS"


def test_a_certificate_that_is_not_trusted_or_another_host_s(pki: Path) -> None:
    pair = [((pki / "key.pem").read_bytes(), (pki / "cert.pem").read_bytes())]
    with fake_server(grpc.ssl_server_credentials(pair)) as service:
        assert "is not trusted (self signed certificate): name its authority" in message(service.target, tls=True)
        told = message(service.target, tls=Tls(root_certificates=pki / "cert.pem"))
        assert told.startswith(f"the certificate of {service.target} is another host's")
        assert "it wants TLS" in message(service.target)


def test_a_server_that_wants_a_certificate_of_its_client(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    files = {name: tmp_path / name for name in ("ca", "alice", "alice.key", "eve", "eve.key")}
    ca.cert_pem.write_to_path(str(files["ca"]))
    for name, authority in (("alice", ca), ("eve", other)):
        issued = authority.issue_cert(f"{name}.example")
        issued.cert_chain_pems[0].write_to_path(str(files[name]))
        issued.private_key_pem.write_to_path(str(files[f"{name}.key"]))
    own = ca.issue_cert("127.0.0.1")
    pair = [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())]

    def tls(certificate: str = "", key: str = "", authority: str = "ca") -> Tls:
        return Tls(root_certificates=files[authority], certificate=files.get(certificate), private_key=files.get(key))

    with fake_server(grpc.ssl_server_credentials(pair, ca.cert_pem.bytes(), require_client_auth=True)) as service:
        with Client(service.target, tls=tls("alice", "alice.key")) as client:
            assert len(client.models()) == 3
        wanted = "closes the connection: it wants TLS, or a client's certificate, or is no gRPC server"
        for given in (False, tls(), tls("eve", "eve.key")):
            assert wanted in message(service.target, tls=given)
        for given in (tls("alice", "eve.key"), tls(authority="eve.key")):
            assert message(service.target, tls=given).endswith("are no PEM, or key and certificate differ")


@pytest.mark.parametrize(
    ("target", "dialled"),
    [
        ("127.0.0.1", "127.0.0.1:443"),
        ("gpu-1", "gpu-1:443"),
        ("[::1]", "[::1]:443"),
        ("[::1]:50051", "[::1]:50051"),
        ("gpu-1:50051", "gpu-1:50051"),
        ("unix:/run/dst.sock", "unix:/run/dst.sock"),
        ("dns:///gpu-1", "dns:///gpu-1"),
    ],
)
def test_the_port_that_grpc_takes_if_none_is_given_is_told(target: str, dialled: str) -> None:
    assert why_unreachable("connection refused", target).startswith(f"no server answers at {dialled};")


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_that_refuses(environment: pytest.MonkeyPatch, variable: str) -> None:
    with listening(b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        environment.setenv(variable, f"http://somebody:s3cret@{proxy}")
        told = message(ELSEWHERE)
    assert told == (
        f"the proxy {proxy}, which {variable} names, refuses to connect to {ELSEWHERE}, by 403; with 192.0.2.7 in "
        "no_proxy, the server is connected to without it"
    )


@pytest.mark.parametrize("proxy", ["localhost", "127.0.0.1", "nobody.invalid"])
def test_a_proxy_that_does_not_answer(environment: pytest.MonkeyPatch, proxy: str) -> None:
    with nobody() as address:
        port = address.partition(":")[2]
        environment.setenv("http_proxy", f"http://{proxy}:{port}")
        told = message(ELSEWHERE)
    assert told.startswith(f"the proxy {proxy}:{port}, which http_proxy names, cannot be reached; with 192.0.2.7 in")


def test_what_no_proxy_lists_is_not_said_of_the_proxy(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://127.0.0.1:1")
    environment.setenv("no_proxy", "nobody.invalid")
    assert message("nobody.invalid:50051") == "the name in 'nobody.invalid:50051' cannot be resolved"


def test_a_server_on_this_machine_is_behind_no_proxy(environment: pytest.MonkeyPatch, service: FakeService) -> None:
    with nobody() as proxy:
        environment.setenv("http_proxy", f"http://{proxy}")
        with Client(service.target) as client:
            assert len(client.models()) == 3


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("dns:///localhost:1", True),
        ("[::1]:50051", True),
        ("127.8.8.8", True),
        ("192.0.2.7:50051", False),
        ("localhost.example:1", False),
        ("[2001:db8::1]:1", False),
    ],
)
def test_which_addresses_are_this_machine_s(target: str, expected: bool) -> None:
    assert is_this_machine(target) is expected


@pytest.mark.parametrize(
    ("details", "sentence"),
    [
        (
            "... SSL:CERTIFICATE_VERIFY_FAILED: certificate has expired: Invalid certificate verification context",
            "the certificate of h:1 has expired",
        ),
        ("DNS resolution failed for x", "the name in 'h:1' cannot be resolved"),
        ("Socket closed", "the connection to h:1 broke: Socket closed"),
        ("failed to connect to all addresses; no route", "no connection to h:1: failed to connect to all addresses;"),
        ("Tls handshake failed: what {it} says", "no TLS connection to h:1: Tls handshake failed: what {it} says"),
        ("HTTP proxy returned response code 502", "a proxy refuses to connect to h:1, by 502; with h in no_proxy"),
    ],
)
def test_words_of_grpc(details: str, sentence: str) -> None:
    assert why_unreachable(details, "h:1").startswith(sentence)
