"""Programs in a Markdown page and what they print, run again and compared.

A block ```console of one command, or a block ```python, is a program if a block ```text comes right after it: that is
what it prints. Numbers may differ in their last digit, as they do between processors; lengths of bars, which follow
from numbers, may too.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

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
        subprocess.CalledProcessError: If the program fails.
    """
    if program.language == "python":
        arguments = ["-c", program.text.replace(DEFAULT_ADDRESS, address)]
    else:
        found = commands_of(program.text)
        words = shlex.split(found[0]) if len(found) == 1 else []
        if words[:1] != ["dst-grpc"]:
            raise ValueError(f"a block whose output is shown must hold one dst-grpc command, not {program.text!r}")
        arguments = ["-m", "dst_grpc.cli", *words[1:]]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"DST_SERVER": address, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


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
