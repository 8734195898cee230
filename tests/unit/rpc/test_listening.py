"""Why a server cannot listen is told as it is: another process, another machine's address, permissions, files."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from dst_grpc.rpc.certificates import Certificates
from dst_grpc.rpc.listening import address_of, check_port, listen, locked
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.settings import Settings

ELSEWHERE = "192.0.2.1"
"""An address for documentation, which no machine has (RFC 5737)."""


def has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])  # noqa: S104  binds nothing, as it is taken
def test_a_port_in_use_is_told_even_if_other_addresses_of_the_name_are_free(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"{re.escape(address_of(host, port))}: another process listens there"):
            check_port(host, port)
    check_port(host, port)


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6")
def test_addresses_of_ipv6_are_told_in_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        for host, text in (("::1", rf"\[::1\]:{port}"), ("localhost", f"localhost:{port}")):
            with pytest.raises(StartupError, match=f"cannot listen on {text}: another process listens there"):
                check_port(host, port)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (ELSEWHERE, "that is no address of this machine"),
        ("256.1.1.1", "'256.1.1.1' is no address, and no name that can be resolved"),
        ("no.such.host.invalid", "'no.such.host.invalid' is no address, and no name that can be resolved"),
        ("gpu 1", "'gpu 1' is no address, and no name that can be resolved"),
        ("127.0.0.1:50051", "'127.0.0.1:50051' is no address, and no name that can be resolved: give it alone"),
        ("[::1]", "'[::1]' is no address, and no name that can be resolved: give it alone"),
        ("a" * 70, "is no address, and no name that can be resolved"),
    ],
)
def test_a_wrong_host_is_told(host: str, reason: str) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on {re.escape(host)}:50051: .*{re.escape(reason)}"):
        check_port(host, 50051)


def test_a_port_that_needs_a_permission_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root has it, and tests may run as root."""

    class Forbidden(socket.socket):
        def bind(self, address: Any, /) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", address)

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(StartupError, match=r"cannot listen on 127\.0\.0\.1:1: this user may not"):
        check_port("127.0.0.1", 1)


def test_a_stale_socket_is_taken_over_and_what_is_in_use_or_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "dst.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with locked(path), pytest.raises(StartupError, match="another server does"), locked(path):
        pytest.fail("two hold the lock")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as others:
        others.bind(str(path))
        others.listen()
        with pytest.raises(StartupError, match=f"cannot listen on unix:{path}: another process does"), locked(path):
            pytest.fail("another program listens")
    path.unlink()
    path.write_text("a file")
    with pytest.raises(StartupError, match="there is a file there that is no socket"), locked(path):
        pytest.fail("a file would be lost")
    assert path.read_text() == "a file"
    long = tmp_path / ("x" * 110)
    with pytest.raises(StartupError, match="path too long"), locked(long):
        pytest.fail("no socket can have that name")


@pytest.mark.parametrize(("mode", "expected"), [("660", 0o660), ("600", 0o600), (None, 0o755)])
async def test_a_unix_socket_has_the_permissions_in_the_settings(
    mode: str | None, expected: int, tmp_path: Path
) -> None:
    path = tmp_path / "dst.sock"
    umask = os.umask(0o022)
    try:
        server = grpc.aio.server()
        settings = Settings(host=f"unix:{path}", unix_socket_mode=mode)
        assert listen(server, settings, Certificates()) == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == expected
        assert os.umask(0o022) == 0o022
        await server.stop(None)
    finally:
        os.umask(umask)
