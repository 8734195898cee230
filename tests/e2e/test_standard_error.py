"""What other libraries and processes write to standard error is in the log, in its format; and so is why it ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dst_grpc.observability.logs import start_error
from tests.e2e.conftest import CALL_SECONDS, environment_with, ready_address, stopped
from tests.e2e.test_life import make_certificate

SERVE = """
import os, subprocess, sys
from dst_grpc.rpc import process, settings
from tests.fake_parts import FakeParts

def ready(address):
    os.write(2, b"from a library\\n")
    subprocess.run([sys.executable, "-S", "-c", "import os; os.write(2, b'from a process' + bytes([10]))"])

process.build_parts = lambda _: FakeParts().parts
process.serve(settings.Settings(**eval(sys.argv[1])), on_ready=ready)
"""
CRASH = """
import ctypes
from dst_grpc.observability.standard_error import logged_standard_error
with logged_standard_error():
    ctypes.string_at(0)
"""


def test_everything_on_standard_error_is_a_line_of_the_log(tmp_path: Path) -> None:
    certificate, key, _ = make_certificate(tmp_path)
    settings = {"port": 0, "log_format": "json", "tls_certificate": str(certificate), "tls_key": str(key)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, repr(settings)], stderr=subprocess.PIPE, text=True, env=environment_with()
    ) as server:
        try:
            host, _, port = ready_address(server).rpartition(":")
            with socket.create_connection((host, int(port))) as plain:
                plain.sendall(b"no TLS at all\n" * 10)
                while plain.recv(4096):  # until the server has seen what it is, and closes
                    pass
        finally:
            log = stopped(server)
    lines = [json.loads(line) for line in log.splitlines()]
    core = [line for line in lines if line["logger"] == "grpc.core"]
    assert any("Handshake failed" in line["event"] and line["source"] for line in core)
    others = [line["event"] for line in lines if line["logger"] == "dst_grpc.stderr"]
    assert {"from a library", "from a process"} <= {*others}


def test_a_crash_is_told_to_the_real_standard_error() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CRASH], capture_output=True, text=True, check=False, env=environment_with()
    )
    assert ended.returncode < 0
    assert "Fatal Python error" in ended.stderr
    assert "string_at" in ended.stderr


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dst_grpc.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=CALL_SECONDS,
        env=environment_with(**environment),
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "problem"),
    [
        (("--port", "x"), {"DST_LOG_FORMAT": "json"}, 2, "port = 'x'"),
        (("--host", "192.0.2.1", "--log-format", "json"), {}, 1, "cannot listen on 192.0.2.1:50051"),
    ],
)
def test_why_it_does_not_start_is_said_in_the_format_of_the_log(
    arguments: tuple[str, ...], environment: dict[str, str], code: int, problem: str
) -> None:
    ended = start(*arguments, **environment)
    assert ended.returncode == code
    *_, last = (json.loads(line) for line in ended.stderr.splitlines())
    assert (last["event"], last["level"]) == ("cannot start", "ERROR")
    assert problem in last["problem"]


def test_people_are_told_in_plain_words() -> None:
    assert start_error("no\n  reason", "text") == "error: no\n  reason"
