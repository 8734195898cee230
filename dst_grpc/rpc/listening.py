"""Where a server listens: a port, or a unix socket, with TLS or without; and why it cannot."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import grpc
import grpc.aio

from dst_grpc.rpc.certificates import Certificates
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.settings import UNIX_PREFIX, Settings

_ALL_OF = {"localhost": ("127.0.0.1", "::1"), "::": ("::", "0.0.0.0")}  # noqa: S104  what it means, not what we choose
"""Addresses that gRPC takes some hosts for: as many of them as the machine has."""
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NO_SOCKET = "there is a file there that is no socket"
_REASONS = {
    errno.EADDRINUSE: "another process listens there",
    errno.EACCES: "this user may not; ports below 1024 need CAP_NET_BIND_SERVICE",
    **dict.fromkeys(_NO_SUCH_ADDRESS, "that is no address of this machine"),
}


def listen(server: grpc.aio.Server, settings: Settings, certificates: Certificates) -> str:
    """Have *server* listen where *settings* say, with *certificates*; returns the address, as a client dials it.

    Raises:
        StartupError: It cannot.
    """
    credentials = certificates.credentials()
    if settings.unix_socket is None:
        return listen_on_port(server, settings.host, settings.port, credentials)
    with _created_with(settings.unix_socket_mode):
        _add(server, settings.host, credentials)
    return settings.host


def listen_on_port(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Have *server* listen on a port, 0 for one that the system chooses; returns the address.

    Raises:
        StartupError: It cannot.
    """
    check_port(host, port)
    chosen = _add(server, address_of(host, port), credentials)
    return address_of(host, chosen)


def address_of(host: str, port: int) -> str:
    """The two as one text, an address of IPv6 in brackets."""
    with suppress(ValueError):
        if ip_address(host).version == 6:
            return f"[{host}]:{port}"
    return f"{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Raise StartupError if nothing can listen on *port* of *host*; see `why_not`."""
    if reason := why_not(host, port):
        raise StartupError(f"cannot listen on {address_of(host, port)}: {reason}")


def why_not(host: str, port: int) -> str:
    """Why nothing can listen on *port* of *host*, 0 for any port, or only on some addresses of it; empty if all can.

    gRPC tells no reason, and takes one address of several for enough.
    """
    try:
        problems = list(_problems(host, port))
    except (socket.gaierror, UnicodeError):
        what = f"{host!r} is no address, and no name that can be resolved"
        return f"{what}: give it alone, as in 127.0.0.1, ::1 or localhost"
    if not all(problems) and all(problem is None or problem.errno in _NO_SUCH_ADDRESS for problem in problems):
        return ""
    error = next(problem for problem in problems if problem)
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def _problems(host: str, port: int) -> Iterator[OSError | None]:
    """Of each address of *host*: what keeps it from being listened on; None if nothing does."""
    for name in _ALL_OF.get(host, (host,)):
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
            except OSError as error:
                yield error
            else:
                yield None


def _add(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Have *server* listen on *address*; returns the port."""
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from None


@contextmanager
def locked(path: Path | None) -> Generator[None, None, None]:
    """Hold a lock beside the unix socket *path* within the block: gRPC would let a second server take it over silently.
    A socket that nobody listens on any more is taken over.

    Raises:
        StartupError: Another process holds it or listens there, or there can be no socket.
    """
    if path is None:
        yield
        return
    import fcntl  # Windows has none, nor gRPC's unix sockets there

    def fail(reason: str | None) -> StartupError:
        return StartupError(f"cannot listen on {UNIX_PREFIX}{path}: {reason}")

    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise fail(f"{lock}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise fail("another server does") from None
        try:
            _check_unix_socket(path)
        except OSError as error:
            raise fail(error.strerror or str(error)) from None
        yield
    finally:
        os.close(descriptor)


def why_no_socket(path: Path) -> str:
    """Why there can be no unix socket at *path*, whoever listens there now; empty if there can."""
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"no socket can be made in the folder {folder}"
    try:
        return "" if stat.S_ISSOCK(path.lstat().st_mode) else _NO_SOCKET
    except OSError:
        return ""


def _check_unix_socket(path: Path) -> None:
    """Raise OSError if there is something at *path* that may not be replaced, or its name is too long for a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise OSError(errno.EEXIST, _NO_SOCKET)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(str(path))
            raise OSError(errno.EADDRINUSE, "another process does")


@contextmanager
def _created_with(mode: str | None) -> Generator[None, None, None]:
    """Give files that are created within the block these permissions, in octal; None = those that the umask leaves."""
    before = None if mode is None else os.umask(0o777 & ~int(mode, 8))
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)
