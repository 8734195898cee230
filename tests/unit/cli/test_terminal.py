"""On a real terminal: colours, unless NO_COLOR is set, and a progress bar that leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_service import FakeService

ROOT = Path(__file__).resolve().parents[3]
COLOUR = "\x1b[1;36m"


def on_a_terminal(service: FakeService, *arguments: str, **environment: str) -> tuple[str, int]:
    """What a person sees who runs `dst-grpc ARGUMENTS`, control sequences included, and the exit code."""
    ours, theirs = pty.openpty()
    everything = os.environ | {"DST_SERVER": service.target, "TERM": "xterm-256color", "COLUMNS": "80"} | environment
    command = [sys.executable, "-m", "dst_grpc.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=everything) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 4096):
                seen += part
        except OSError:  # what Linux says when the other end of a terminal is closed
            pass
        finally:
            os.close(ours)
    return seen.decode(), process.returncode


def test_a_terminal_gets_colours_and_progress(service: FakeService) -> None:
    seen, code = on_a_terminal(service, "derive", "When Mary", "--target", " x")
    assert code == 0
    assert COLOUR in seen
    assert "deriving" in seen
    # The bar is wiped before the answer is printed.
    assert seen.rindex("\x1b[2K") < seen.index("2 tokens")


@pytest.mark.parametrize(
    ("arguments", "amount"),
    [
        (("patch", "a b", "c d", "--target", " x"), "patching 2/2 runs"),
        (("attribute", "a b", "c d", "--target", " x"), "scoring 1/1 pair"),
        (("circuit", "a b", "c d", "--target", " x"), "running circuits 2/2 runs"),
        (("graph", "a b"), "edges into nodes 12/12 nodes"),
    ],
)
def test_progress_says_what_it_counts(service: FakeService, arguments: tuple[str, ...], amount: str) -> None:
    seen, code = on_a_terminal(service, *arguments)
    assert code == 0, seen
    assert amount in words_of(seen)
    assert "bytes" not in seen


def test_what_tells_no_progress_is_said_to_be_worked_on(service: FakeService) -> None:
    seen, code = on_a_terminal(service, "explain", "When Mary", "--target", " x")
    assert code == 0, seen
    assert seen.index("explaining") < seen.rindex("\x1b[2K") < seen.index("To explain")


def words_of(seen: str) -> str:
    """The text of what is seen, without control sequences and bars, one space between words."""
    return " ".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|[━╸╺]", " ", seen).split())


def test_colours_can_be_turned_off(service: FakeService) -> None:
    seen, _ = on_a_terminal(service, "derive", "When Mary", "--target", " x", NO_COLOR="1")
    assert "[36m" not in seen
    assert "36m" not in seen


def test_an_error_is_red(service: FakeService) -> None:
    seen, code = on_a_terminal(service, "derive", "When Mary", "-t", "nonesuch")
    assert code == 1
    assert "\x1b[1;31merror:" in seen
