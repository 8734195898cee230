"""The port of the metrics: what is there, for whom, and over what."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry, Counter

from dst_grpc.observability import exposition
from dst_grpc.observability.exposition import MetricsServer

SECONDS = 30.0
OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@contextmanager
def serving(
    host: str = "127.0.0.1",
    *,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    is_allowed: Callable[[str], bool] | None = None,
) -> Iterator[int]:
    """The port of a server of one counter."""
    registry = CollectorRegistry()
    Counter("seen", "What was seen.", registry=registry).inc()
    server = MetricsServer(registry, host, 0, tls=tls, is_allowed=is_allowed)
    try:
        yield server.port
    finally:
        server.close()


def ask(
    connection: http.client.HTTPConnection, path: str = "/metrics", method: str = "GET", **headers: str
) -> tuple[int, str, str]:
    """Status, content type and body of an answer."""
    with closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()


def plain(port: int, host: str = "127.0.0.1") -> http.client.HTTPConnection:
    return http.client.HTTPConnection(host, port, timeout=SECONDS)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """That of a server for everybody, without TLS."""
    with serving() as port:
        yield port


def test_metrics_are_text_or_open_metrics_as_the_client_wants_them(port: int) -> None:
    status, content_type, body = ask(plain(port))
    assert (status, "seen_total 1.0\n" in body) == (200, True)
    assert content_type.startswith("text/plain")
    status, content_type, body = ask(plain(port), **OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")
    assert ask(plain(port), method="HEAD")[::2] == (200, "")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics2", "/favicon.ico"])
def test_there_is_nothing_else(port: int, path: str) -> None:
    assert ask(plain(port), path)[0] == 404


def test_a_query_does_not_change_what_is_there(port: int) -> None:
    assert ask(plain(port), "/metrics?name=x")[0] == 200
    assert ask(plain(port), method="POST")[0] == 501


def test_only_who_is_allowed_may_read() -> None:
    with serving(is_allowed="Bearer right".__eq__) as port:
        assert ask(plain(port))[0] == 401
        assert ask(plain(port), Authorization="Bearer wrong")[0] == 401
        assert ask(plain(port), Authorization="Bearer right")[0] == 200


def test_over_tls_the_certificate_may_be_replaced(tmp_path: Path) -> None:
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    serials = []
    contexts: list[ssl.SSLContext] = []
    with serving(tls=lambda: contexts[-1]) as port:
        for _ in range(2):
            contexts.append(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            authority.issue_cert("127.0.0.1").configure_cert(contexts[-1])
            with (
                socket.create_connection(("127.0.0.1", port), SECONDS) as plain_socket,
                client.wrap_socket(plain_socket, server_hostname="127.0.0.1") as encrypted,
            ):
                serials.append((encrypted.getpeercert() or {})["serialNumber"])
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=client)
            assert ask(connection)[0] == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(plain(port))
    assert len(set(serials)) == 2


def test_a_name_is_served_on_all_its_addresses() -> None:
    with serving("localhost") as port:
        found = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
        reached = [ask(plain(port, str(address[0])))[0] for *_, address in found]
        assert reached == [200] * len(found)


def test_who_says_nothing_does_not_keep_others_from_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_CLIENTS", 2)
    with serving() as port:
        silent = [socket.create_connection(("127.0.0.1", port), SECONDS) for _ in range(3)]
        # The third finds no room, and is hung up on: what is there ends.
        assert silent[2].recv(1) == b""
        silent[0].close()
        while True:
            try:
                status = ask(plain(port))[0]
            except (http.client.HTTPException, OSError):
                continue  # the first is still being noticed
            break
        assert status == 200
        for one in silent:
            one.close()


def test_a_taken_port_and_an_unknown_host_are_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        MetricsServer(CollectorRegistry(), "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OSError, match="known"):
        MetricsServer(CollectorRegistry(), "no such host", 0)
