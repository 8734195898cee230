"""Programs in a Markdown page and what they print, run again and compared.

A block ```console of one command, or a block ```python, is a program if a block ```text comes right after it: that is
what it prints. Numbers may differ in their last digit, as they do between processors; lengths of bars, which follow
from numbers, may too.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from typer.testing import CliRunner

from dst_grpc.cli._app import app

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100
"""Width of the terminal that outputs are made for."""
DEFAULT_ADDRESS = "127.0.0.1:50051"

_LINES = r"((?:(?!```).*\n)*)"
_PROGRAM = re.compile(rf"^```(console|python)\n{_LINES}```\n\n?```text\n{_LINES}```$", re.MULTILINE)
_BAR = re.compile(r"[+-]+|[#.:*]+")
_NUMBER = re.compile(r"([+-]?\d+\.\d+|\d+(?=%))")


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a page, and what the page says that it prints."""

    language: str
    """`console` or `python`."""
    text: str
    """The block."""
    output: str
    """What stands below it."""


def commands_of(block: str) -> list[str]:
    """The commands of a block ```console, continued lines joined and remarks left out."""
    joined = block.replace("\\\n", " ")
    return [line[2:].partition("    #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


def programs_of(page: str) -> list[Program]:
    """The programs of a page whose output it shows."""
    return [Program(*match.groups()) for match in _PROGRAM.finditer(page)]


def renewed(page: str, address: str) -> str:
    """The page with every output made again by a server at *address*."""

    def again(match: re.Match[str]) -> str:
        output = run(Program(*match.groups()), address)
        return match[0][: match.start(3) - match.start()] + output + "```"

    return _PROGRAM.sub(again, page)


def run(program: Program, address: str) -> str:
    """What the program prints, without blanks at the ends of lines.

    Raises:
        ValueError: If the block is no single `dst-grpc` command.
        RuntimeError: If the command fails.
    """
    if program.language == "python":
        printed = printed_by(program.text, address)
    else:
        found = commands_of(program.text)
        words = shlex.split(found[0]) if len(found) == 1 else []
        if words[:1] != ["dst-grpc"]:
            raise ValueError(f"a block whose output is shown must hold one dst-grpc command, not {program.text!r}")
        printed = printed_by_command(words[1:], address)
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def printed_by(text: str, address: str) -> str:
    """What a Python program prints, which asks the server at *address*."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text.replace(DEFAULT_ADDRESS, address), "page", "exec"), {})  # noqa: S102  our own text
    return printed.getvalue()


def printed_by_command(arguments: Sequence[str], address: str) -> str:
    """What `dst-grpc` with *arguments* prints, which asks the server at *address*.

    In this process: to import the command again for each takes longer than most questions.

    Raises:
        RuntimeError: If it fails.
    """
    environment = {"DST_SERVER": address, "COLUMNS": str(COLUMNS)}
    with contextlib.chdir(ROOT):
        done = CliRunner().invoke(app, arguments, env=environment, prog_name="dst-grpc")
    if done.exit_code:
        raise RuntimeError(f"dst-grpc {shlex.join(arguments)} ended with {done.exit_code}: {done.stderr}")
    return done.stdout


def difference(was: str, now: str) -> str:
    """What differs between two texts that should be the same but for last digits; empty if nothing does."""
    words = ([word for word in text.split() if not _BAR.fullmatch(word)] for text in (was, now))
    for old, new in zip_longest(*words, fillvalue=""):
        if not _same(old, new):
            return f"{old!r} is now {new!r}"
    return ""


def _same(old: str, new: str) -> bool:
    """Whether two words are the same, their numbers but for one unit in the last digit shown."""
    before, after = _NUMBER.split(old), _NUMBER.split(new)
    if len(before) != len(after):
        return False
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a == b:
            continue
        if not i % 2 or len(a.partition(".")[2]) != len(b.partition(".")[2]):
            return False
        unit = 10.0 ** -len(a.partition(".")[2])
        if abs(float(a) - float(b)) > 1.01 * unit:
            return False
    return True
