"""Where a server listens: a port, or a unix socket, with TLS or without."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio

from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.settings import UNIX_PREFIX, Settings


def listen(server: grpc.aio.Server, settings: Settings) -> str:
    """Have *server* listen where *settings* say; returns the address, as a client dials it.

    Raises:
        StartupError: It cannot.
    """
    is_port, credentials = settings.unix_socket is None, _credentials(settings)
    host = f"[{settings.host}]" if is_port and ":" in settings.host else settings.host
    wanted = f"{host}:{settings.port}" if is_port else host
    try:
        port = server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        cause = "is it in use?" if credentials is None else "is it in use, or a certificate unusable?"
        raise StartupError(f"cannot listen on {wanted}: {cause} ({error})") from None
    return f"{host}:{port}" if is_port else host


@contextmanager
def locked(socket: Path | None) -> Generator[None, None, None]:
    """Hold a lock beside *socket* within the block: gRPC would let a second server take it over silently.

    Raises:
        StartupError: Another process holds it, or the folder cannot be written to.
    """
    if socket is None:
        yield
        return
    import fcntl  # Windows has none, nor gRPC's unix sockets there

    lock = socket.with_name(f"{socket.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"cannot listen on {UNIX_PREFIX}{socket}: {lock}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(f"cannot listen on {UNIX_PREFIX}{socket}: another server does") from None
        yield
    finally:
        os.close(descriptor)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Certificates for TLS, or None."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
        client_ca = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    except OSError as error:
        raise StartupError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_credentials([pair], root_certificates=client_ca, require_client_auth=client_ca is not None)
