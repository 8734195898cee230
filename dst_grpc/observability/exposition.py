"""Serves metrics over HTTP: a port of its own, in threads of its own, with TLS and bearer tokens if wanted.

Nothing but /metrics is there. A client that is slow, or says nothing, holds one of few threads for a few seconds.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_PATH = "/metrics"
_SECONDS = 10.0
"""How long a client may take for a handshake, a request, or reading."""
_LOOK_SECONDS = 0.1
"""How often it is looked whether to stop."""
_CLIENTS = 16
"""Clients that are served at once; others are hung up on."""


class MetricsServer:
    """Serves a registry at /metrics."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        *,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        is_allowed: Callable[[str], bool] | None = None,
    ) -> None:
        """Listen at once, on every address of *host*.

        Args:
            registry: what is served.
            host: a name or an address.
            port: 0 lets the system choose.
            tls: the server's side of TLS, asked for at each connection; None = plain HTTP.
            is_allowed: whether who sends this header `authorization` may read; None = everybody.

        Raises:
            OSError: *host* is unknown, or the port is taken.
            UnicodeError: *host* cannot be a name.
        """

        class Handler(_Handler):
            metrics = registry
            allows = staticmethod(is_allowed or _everybody)

        self._servers: list[_Server] = []
        try:
            for family, address in _addresses(host, port):
                chosen = self._servers[0].server_port if self._servers else port
                self._servers.append(_Server(family, (address, chosen), Handler, tls))
        except OSError:
            for server in self._servers:
                server.server_close()
            raise
        self._threads = [
            Thread(target=server.serve_forever, args=(_LOOK_SECONDS,), name="dst-metrics", daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def port(self) -> int:
        """The port, chosen by the system if 0 was asked for."""
        return self._servers[0].server_port

    def close(self) -> None:
        """Stop listening."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _everybody(_authorization: str) -> bool:
    return True


def _addresses(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
    """The addresses of *host*: `localhost` usually has two. Those of families that the system does not have are left
    out, unless there is nothing else."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    every = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    usable = []
    for family, address in every:
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            usable.append((family, address))
    return usable or every


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self.address_family = family
        self._tls = tls
        self._places = BoundedSemaphore(_CLIENTS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As of the base class, but without looking up the name of the host, which may take seconds."""
        if self.address_family is socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        name, self.server_port = self.server_address[:2]
        self.server_name = str(name)

    def get_request(self) -> tuple[Any, Any]:
        """A connection; the handshake is the handler's, as it waits for the client."""
        connection, address = self.socket.accept()
        tls = self._tls()
        if tls is None:
            return connection, address
        return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client on a thread, if there is room."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As of the base class; there is room for another afterwards."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, or speak no TLS, are not worth a line."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    metrics: CollectorRegistry
    allows: Callable[[str], bool]

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if urlsplit(self.path).path != _PATH:
            self._answer(HTTPStatus.NOT_FOUND, b"only /metrics is here\n")
        elif not type(self).allows(self.headers.get("Authorization", "")):
            self._answer(HTTPStatus.UNAUTHORIZED, b"a bearer token is wanted\n", ("WWW-Authenticate", "Bearer"))
        else:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.metrics), content_type=content_type)

    def do_HEAD(self) -> None:
        """As for GET, without the metrics."""
        self.do_GET()

    def _answer(
        self, status: HTTPStatus, body: bytes, *headers: tuple[str, str], content_type: str = "text/plain"
    ) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content_type), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Nothing: a scrape is no event."""

    def version_string(self) -> str:
        """What the answers call the server."""
        return "dst-grpc"
