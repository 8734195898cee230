"""The README and the guide tell the truth: their code runs and prints what they show, their tables are complete, their
links lead somewhere, and what the guide says of the model holds.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dst_grpc.wire.errors import CODE_OF_ERROR
from scripts.guide.__main__ import GUIDES, check
from scripts.guide.blocks import commands_of, printed_by, printed_by_command
from tests.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [command for language, block in BLOCKS if language == "console" for command in commands_of(block)]
PAGES_WITH_PROGRAMS = ("causal", "attribution", "circuits", "graphs")
PAGES = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in PAGES_WITH_PROGRAMS]
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", "".join([README, *PAGES]), re.MULTILINE | re.DOTALL)


@pytest.fixture(name="address", scope="module")
def _address() -> Iterator[str]:
    """HOST:PORT of a server as the README starts it: it says when it is ready, and stops when it is told to."""
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
            assert process.stdout.read() == ""


def test_every_output_is_that_of_the_model_that_is_shipped(address: str) -> None:
    """To the last digit but one. `python -m scripts.guide --write` makes them so."""
    assert check(address) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_python_runs(program: str, address: str) -> None:
    assert printed_by(program, address)


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
        # A server is not started, but its flags are read.
        assert printed_by_command([*arguments, "--help"] if arguments[0] == "serve" else arguments, address)


def test_every_rpc_is_in_the_table() -> None:
    for service in SERVICES:
        assert f"| `{service.name}` |" in README
        for method in service.methods:
            assert f"`{method.name}`" in README


def test_every_error_is_in_the_table() -> None:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    rows = set(re.findall(r"^\| `([A-Z_]+)` \| `(\w+)` \|", README, re.MULTILINE))
    assert rows == {(codes[code], error.__name__) for error, code in CODE_OF_ERROR.items()}


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(guide.page for guide in GUIDES),
    "docs/architecture.md",
    "docs/attribution.md",
    "docs/callers.md",
    "docs/causal.md",
    "docs/glossary.md",
    "docs/graphs.md",
    "docs/logs-and-traces.md",
    "docs/running.md",
    "docs/scaling.md",
    "deploy/README.md",
    "tests/README.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        file = link.split("#")[0]
        assert link.startswith("https://") or ((ROOT / page).parent / file).exists(), link


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    """Paths from the top, and modules of a package of ours; NAME, SERVICE and LANGUAGE stand for any."""
    found = re.findall(r"`([\w.-]+/[\w./-]*)`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(found) > 10
    for path in found:
        pattern = re.sub(r"NAME|SERVICE|LANGUAGE", "*", path)
        assert any(any(top.glob(pattern)) for top in (ROOT, ROOT / "dst_grpc")), path
