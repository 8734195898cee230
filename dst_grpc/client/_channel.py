"""The connection: how to reach a server, as a value, and the channel made from it.

Independent of any RPC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import grpc.aio

from dst_grpc import __version__
from dst_grpc.client._forks import check_may_open, check_same_process, note_open
from dst_grpc.client._routing import ROUTING_KEY, route_of
from dst_grpc.client._unreachable import host_and_port, is_this_machine
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

DEFAULT_TARGET = "127.0.0.1:50051"
"""Where `dst-grpc serve` listens unless told otherwise."""
_MAX_PORT = 65535

SERVICE_CONFIG = files("dst_grpc.client").joinpath("service_config.json").read_text(encoding="utf-8")
"""Retry policy, the same in any language. Every RPC is idempotent and the server sends no headers before it has
admitted a call, so a call that failed as UNAVAILABLE did no work and is sent again."""

_SCHEMES = {"http://": "", "grpc://": "", "https://": "; Tls(root_certificates=...) asks for TLS"}
"""What addresses of web pages begin with, and what to say of each besides that it does not belong there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to trust a server, and how to prove who the client is."""

    root_certificates: Path | str | None = None
    """PEM file of the authorities to trust; None = those that gRPC trusts by default."""
    certificate: Path | str | None = None
    """PEM file of the client's own certificate chain, for mutual TLS; None = none."""
    private_key: Path | str | None = None
    """PEM file of the key to `certificate`."""
    server_name: str | None = None
    """Name that the server's certificate must carry; None = the host that is dialled."""

    def __post_init__(self) -> None:
        """Refuse half a client certificate; raises InvalidRequest."""
        problems = Violations()
        if self.certificate is not None and self.private_key is None:
            problems.add("tls.private_key", "is required, as there is a certificate")
        if self.private_key is not None and self.certificate is None:
            problems.add("tls.certificate", "is required, as there is a key")
        for name in ("root_certificates", "certificate", "private_key"):
            path: Path | str | None = getattr(self, name)
            problems.check(path is None or Path(path).is_file(), f"tls.{name}", f"there is no file {path}")
        problems.raise_if_any()

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""

        def read(path: Path | str | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(
            root_certificates=read(self.root_certificates),
            private_key=read(self.private_key),
            certificate_chain=read(self.certificate),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Address of a server, and credentials."""

    target: str = DEFAULT_TARGET
    """`HOST:PORT`, or any other target that gRPC knows (`unix:///run/dst.sock`, `dns:///name:port`)."""
    tls: Tls | None = None
    """None = plain text."""
    token: str | None = field(default=None, repr=False)
    """Bearer token, sent with every call; give it over TLS or to this machine only."""
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further metadata, sent with every call; `dst-model` in it is sent in place of a call's own."""
    pid: int = field(default_factory=os.getpid, repr=False)
    """The process that calls may be made in."""

    def __post_init__(self) -> None:
        """Refuse an invalid target or token; raises InvalidRequest, and TypeError for a target that is no text."""
        problems = Violations()
        check_text(problems, "target", self.target)
        problems.check(bool(self.target), "target", "must not be empty; give HOST:PORT")
        for scheme, besides in _SCHEMES.items():
            problems.check(not self.target.startswith(scheme), "target", f"give HOST:PORT without {scheme}{besides}")
        # gRPC would take the port modulo 65536, and ask another server.
        port = host_and_port(self.target)[1]
        beyond = port.isdecimal() and int(port) > _MAX_PORT
        problems.check(not beyond, "target", f"must have a port of at most {_MAX_PORT}, not {port}")
        # The value is a secret, so the message does not repeat it.
        problems.check(
            self.token is None or (self.token.isascii() and self.token.isprintable() and " " not in self.token),
            "token",
            "must be printable ASCII without spaces",
        )
        problems.raise_if_any()

    def call_metadata(self, model: str | None) -> tuple[tuple[str, str], ...]:
        """Metadata of a call about a model, given by name or handle; None or empty = the server's default.

        Raises:
            RuntimeError: In a child of the process that this was made in.
        """
        check_same_process(self.pid)
        pairs = {ROUTING_KEY: route_of(model)} | {key.lower(): value for key, value in self.metadata.items()}
        if self.token is not None:
            pairs["authorization"] = f"Bearer {self.token}"
        return tuple(pairs.items())

    def open(self) -> grpc.aio.Channel:
        """Make the channel, on the running event loop. It connects at the first call.

        Raises:
            RuntimeError: If the process was forked while a channel was open.
        """
        check_may_open()
        channel = self._channel()
        note_open(channel)
        return channel

    def _channel(self) -> grpc.aio.Channel:
        options: list[tuple[str, str | int]] = [
            ("grpc.primary_user_agent", f"dst-grpc-python/{__version__}"),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", SERVICE_CONFIG),
            # Proxies are for other machines, whatever the environment's no_proxy forgets.
            ("grpc.enable_http_proxy", int(not is_this_machine(self.target))),
        ]
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        if self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(self.target, self.tls.credentials(), options=options)
