"""The process `dst-grpc`: what becomes of its streams, and of Ctrl-C before a command has begun."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dst_grpc import cli

ROOT = Path(__file__).resolve().parents[3]
FULL = Path("/dev/full")


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["dst-grpc", "types"])
    monkeypatch.setitem(sys.modules, "dst_grpc.cli._app", Interrupted("dst_grpc.cli._app"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "dst_grpc.cli", "--version"]
        done = subprocess.run(command, check=False, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_what_an_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ModuleType("dst_grpc.cli._app")
    command.app = lambda prog_name: sys.stdout.write(f"{prog_name} é ▒")  # type: ignore[attr-defined]
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["dst-grpc", "types"])
    monkeypatch.setitem(sys.modules, "dst_grpc.cli._app", command)
    cli.main()
    assert out.buffer.getvalue() == b"dst-grpc \xe9 \\u2592"
