"""`dst-grpc serve`: every setting is a flag, and what is wrong is told in lines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from dst_grpc.cli._app import app
from dst_grpc.cli._serve import attribute_docstrings
from dst_grpc.rpc.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def test_every_setting_is_a_documented_flag() -> None:
    help_text = " ".join(CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).stdout.split())
    docs = attribute_docstrings(Settings)
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in help_text
        assert docs[name] in help_text
        assert f"DST_{name.upper()}" in help_text
    for name, default in {"reflection": "on", "return_freed_memory": "off", "strict": "off", "port": "50051"}.items():
        assert f"[env var: DST_{name.upper()}] [default: {default}]" in help_text


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 99999\ndevice = "gpu"\nprot = 1\n')
    result = CliRunner().invoke(app, ["serve", "--config", str(file), "--model", "x"])
    assert result.exit_code == 2
    for part in ("error: 4 problems", "port = 99999", "device = 'gpu'", "did you mean port?", "name=folder"):
        assert part in result.stderr
    assert "Traceback" not in result.output


def test_settings_are_shown_and_nothing_is_served() -> None:
    given = ["serve", "--print-settings", "--port", "7", "--no-reflection"]
    result = CliRunner().invoke(app, given, env={"DST_GRACE_SECONDS": "1min"})
    assert result.exit_code == 0
    shown = {"port = 7  # --port", "reflection = false  # --reflection", "grace_seconds = 60.0  # DST_GRACE_SECONDS"}
    assert shown < {*result.stdout.splitlines()}
    wrong = CliRunner().invoke(app, ["serve", "--print-settings", "--port", "x"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "port = 'x'" in wrong.stderr


def test_a_check_takes_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--check", "--port", port, "--pin", "embedded"])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["a-file", "a-folder"])
def test_a_check_tells_where_no_socket_can_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-folder").mkdir()
    result = CliRunner().invoke(app, ["serve", "--check", "--host", f"unix:{tmp_path / name}"])
    assert "host: there is a file there that is no socket" in result.stderr
    result = CliRunner().invoke(app, ["serve", "--check", "--host", f"unix:{tmp_path / name}", "--devices", "cpu"])
    assert (result.exit_code, result.stderr) == (0, "")  # its only socket is beside that
    result = CliRunner().invoke(app, ["serve", "--check", "--host", f"unix:{tmp_path}/none/{name}"])
    assert f"host: no socket can be made in the folder {tmp_path}/none" in result.stderr


def test_a_check_tells_of_certificates_that_have_expired(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert(
        "localhost", not_before=datetime(1999, 1, 1, tzinfo=UTC), not_after=datetime(2000, 1, 1, tzinfo=UTC)
    )
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    flags = ["--metrics-port", "1"]
    for name in ("tls", "metrics-tls"):
        flags += [f"--{name}-certificate", str(tmp_path / "certificate"), f"--{name}-key", str(tmp_path / "key")]
    result = CliRunner().invoke(app, ["serve", "--check", *flags])
    assert result.exit_code == 1
    for name in ("tls_certificate", "metrics_tls_certificate"):
        assert f"  {name}: has expired, at 2000-01-01T00:00:00+00:00: clients" in result.stderr


def test_a_check_tells_of_everything_that_is_wrong(tmp_path: Path) -> None:
    """Each is what a start would tell of, one after the other, or what it would serve without."""
    (tmp_path / "tokens").write_text("bare-token\n")
    (tmp_path / "callers.toml").write_text("[callers.a]\nweight = -1\n")
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("hello")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "registry.toml").write_text('[models]\nm.source.folder = "broken"\nn.source.folder = "gone"\n')
    arguments = {
        "--registry": tmp_path / "registry.toml",
        "--auth-token-file": tmp_path / "tokens",
        "--callers-file": tmp_path / "callers.toml",
        "--tls-certificate": tmp_path / "certificate",
        "--tls-key": tmp_path / "key",
        "--host": "192.0.2.1",
        "--health-host": "no.such.host.invalid",
        "--health-port": "1",
        "--metrics-host": "192.0.2.1",
        "--metrics-port": "1",
        "--metrics-token-file": tmp_path / "tokens",
        "--metrics-tls-certificate": tmp_path / "certificate",
        "--metrics-tls-key": tmp_path / "key",
        "--preload": "m,x",
        "--default-model": "y",
    }
    flags = [str(part) for pair in arguments.items() for part in pair]
    result = CliRunner().invoke(app, ["serve", "--check", "--devices", "cuda:99", *flags])
    assert result.exit_code == 1, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "error: 15 problems:", result.stderr
    for expected in (
        "auth_token_file.line 1: holds a token itself",
        "callers_file.callers.a.weight: ",
        "tls_certificate: holds no certificate in PEM",
        "tls_key: holds no private key in PEM",
        "host: that is no address of this machine",
        "health_host: 'no.such.host.invalid' is no address",
        "metrics_host: that is no address of this machine",
        "metrics_token_file.line 1: holds a token itself",
        "metrics_tls_certificate: holds no certificate in PEM",
        "metrics_tls_key: holds no private key in PEM",
        "device: this machine has",
        "default_model: 'y' is none of",
        "cannot be served: m: config.json: is no sound JSON",
        "cannot be served: n: ",
        "preload: ",
    ):
        assert any(line.startswith(f"  {expected}") for line in lines), expected


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = _serve("--port", str(port))
    assert result.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_install_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from dst_grpc.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dst-grpc[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", *arguments]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90, env=environment)
