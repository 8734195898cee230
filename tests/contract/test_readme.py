"""The README tells the truth: its code runs, its commands exist, its tables are complete, its links lead somewhere.

Numbers and digests in outputs are not compared: they are those of the model that was shipped when it was written.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dst_grpc._gen.dst.v1 import catalog_service_pb2, context_service_pb2, derived_scalar_service_pb2
from dst_grpc.wire.errors import CODE_OF_ERROR

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line[2:].partition("    #")[0].strip()
    for language, block in BLOCKS
    if language == "console"
    for line in block.splitlines()
    if line.startswith("$ ")
]
PROGRAMS = [
    (block, BLOCKS[i + 1][1] if i + 1 < len(BLOCKS) and BLOCKS[i + 1][0] == "text" else None)
    for i, (language, block) in enumerate(BLOCKS)
    if language == "python"
]
DEMO = BLOCKS[1][1]


@pytest.fixture(name="address", scope="module")
def _address() -> Iterator[str]:
    """HOST:PORT of a server as the README starts it."""
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "is ready at " in line
        try:
            yield line.split()[-1]
        finally:
            process.terminate()
            assert process.wait(60) == 0


def without_numbers(text: str) -> str:
    """*text* with what depends on the model replaced: digests and numbers."""
    return re.sub(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", "#", re.sub(r"@[0-9a-f]{12}:", "@DIGEST:", text))


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_python_runs_and_prints_what_is_shown(program: str, output: str | None, address: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.replace("127.0.0.1:50051", address), "README.md", "exec"), {})  # noqa: S102  our own text
    assert printed.getvalue()
    if output is not None:
        assert without_numbers(printed.getvalue()) == without_numbers(output)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command: str, address: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        (target,) = arguments
        assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert arguments[0] == "install"
        assert re.fullmatch(r"dst-grpc\[(\w+)\]", arguments[1])[1] in extras  # type: ignore[index]  # None fails too
    else:
        assert program == "dst-grpc"
        run_command(arguments, address)


def run_command(arguments: list[str], address: str) -> None:
    """Run `dst-grpc`; a server is not started, but its flags are read."""
    if arguments[0] == "serve":
        arguments = [*arguments, "--help"]
    done = subprocess.run(
        [sys.executable, "-m", "dst_grpc.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"DST_SERVER": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo_prints_what_is_shown() -> None:
    """Its sentences; which heads, neurons and words come first is the model's business."""
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    printed = {shape for line in done.stdout.splitlines() if (shape := sentence(line))}
    shown = {shape for line in DEMO.splitlines() if (shape := sentence(line))}
    assert len(shown) >= 6
    assert shown <= printed


def sentence(line: str) -> str:
    """What a line of the demo says whatever the model; empty for the rows of its tables."""
    return "" if line.startswith("  ") else without_numbers(re.sub(r": {2}'.*", ":", line)).strip()


def test_every_rpc_is_in_the_table() -> None:
    for module in (derived_scalar_service_pb2, catalog_service_pb2, context_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert f"| `{service.name}` |" in README
            for method in service.methods:
                assert f"`{method.name}`" in README


def test_every_error_is_in_the_table() -> None:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    rows = set(re.findall(r"^\| `([A-Z_]+)` \| `(\w+)` \|", README, re.MULTILINE))
    assert rows == {(codes[code], error.__name__) for error, code in CODE_OF_ERROR.items()}


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
